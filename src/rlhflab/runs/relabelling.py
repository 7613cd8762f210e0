"""`rlhflab propose-labels`: from a run's rollouts to a file of comparisons, or of pairs that gold has judged."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from rlhflab.analysis.evidence import Sample
from rlhflab.analysis.recorded import read_samples
from rlhflab.analysis.relabel import Batch, Proposal, random_batch, targeted_batch
from rlhflab.analysis.report_data import DEFAULT_MEASURES
from rlhflab.config import SampledRun, read_run
from rlhflab.data.formats import comparison_row, pair_row, write_jsonl
from rlhflab.data.types import Comparison, Message, PreferencePair, Prompt
from rlhflab.errors import ConfigError, DataError, RunError
from rlhflab.progress import Progress
from rlhflab.rollout.sampling import sample
from rlhflab.runs import sources
from rlhflab.runs.lab import Lab
from rlhflab.scenarios import names
from rlhflab.scenarios import scenario as scenario_named
from rlhflab.scenarios.base import Scenario

WHOLES = ("gold", "strict", "format_loose")
"""Measures that say again what others say: no kinds of failure of their own."""


def propose_labels(folder: Path, *, n: int, label: bool, scenario: str | None, random: bool, samples: int, seed: int,
                   out: Path | None, progress: Progress) -> dict[str, Any]:
    """Write a batch of comparisons, or with `label` of pairs by gold; returns what was proposed and where it is.

    Canary prompts are never proposed: what measures a run must not be learnt from.
    """
    rollouts = read_samples(folder / "rollouts.jsonl")
    if not rollouts:
        raise RunError(f"{folder}: has no rollouts.jsonl with rollouts in it; give the folder of a run that wrote one")
    run = read_run(None, folder / "config.yaml") if (folder / "config.yaml").is_file() else None
    prompts = prompts_of(run, rollouts) if isinstance(run, SampledRun) else prompts_as_told(rollouts)
    task = _task(run, scenario, label)
    extra: list[Sample] = []
    if samples:
        if not isinstance(run, SampledRun):
            raise RunError(f"{folder}: has no config.yaml of a run that samples, so nobody knows what its start was; "
                           "leave --samples out")
        extra = fresh_answers(run, rollouts, prompts, samples=samples, seed=seed, progress=progress)
    if task is not None and label:
        rollouts, extra = ([judged(task, prompts, each) for each in part] for part in (rollouts, extra))
    better = {m.name: m.better for m in (task.measures if task else DEFAULT_MEASURES)
              if m.better and m.name not in WHOLES}
    batch = random_batch([*rollouts, *extra], n=len(prompts) if label else n, seed=seed) if random else \
        targeted_batch(rollouts, better=better, n=n, extra=extra)
    rows = pair_rows(batch.proposals, prompts)[:n] if label else comparison_rows(batch.proposals, prompts, seed=seed)
    out = out or folder / f"{'random' if random else 'proposed'}-{'pairs' if label else 'comparisons'}.jsonl"
    write_jsonl(out, rows)
    return said(batch, rows, out, n=n, label=label, samples=samples)


def said(batch: Batch, rows: Sequence[Mapping[str, Any]], out: Path, *, n: int, label: bool,
         samples: int) -> dict[str, Any]:
    """What was proposed, by cluster, and what to do next."""
    chosen = Counter(row["cluster"] for row in rows)
    more = "" if samples or not batch.alone or len(rows) >= n else \
        "; --samples 4 lets the run's start answer the prompts of failures that nothing can be compared with"
    return {"file": str(out), "asked": n, "proposed": len(rows),
            "clusters": [{"cluster": name, "failures": found, "proposed": chosen[name]}
                         for name, found in batch.failures.items()],
            "without_a_better_answer": batch.alone,
            "next": (f"refit a reward model, rlhflab train reward recipes/reward.yaml --data {out}" if label else
                     f"let people judge {out}, or --label gold where a scenario knows the right answers") + more}


# -- prompts and answers -------------------------------------------------------------------------------------------


def prompts_of(run: SampledRun, rollouts: Sequence[Sample]) -> dict[str, Prompt]:
    """The run's prompts by id, with all turns and facts. DataError where a rollout's is not among them."""
    found = {prompt.id: prompt for prompt in sources.prompts(run)}
    missing = next((each.prompt_id for each in rollouts if each.prompt_id not in found), None)
    if missing is not None:
        raise DataError(f"{run.data}: has no prompt {missing!r}, which a rollout answers; it is not the data the run "
                        "was made with")
    return found


def prompts_as_told(rollouts: Sequence[Sample]) -> dict[str, Prompt]:
    """Prompts of one turn from the rollouts themselves, where no run file says what they were."""
    empty = next((each.prompt_id for each in rollouts if not each.prompt.strip()), None)
    if empty is not None:
        raise DataError(f"rollout of prompt {empty!r}: has no 'prompt', and there is no config.yaml to find it by")
    return {each.prompt_id: Prompt(id=each.prompt_id, messages=(Message(role="user", content=each.prompt),))
            for each in rollouts}


def _task(run: Any, scenario: str | None, label: bool) -> Scenario | None:
    """The scenario whose check knows the right answers."""
    name = scenario or (None if run is None else run.gold or (run.data if run.data in names() else None))
    if label and name is None:
        raise ConfigError("--label gold: a scenario's check has to know the right answers; name it as --scenario")
    return None if name is None else scenario_named(name)


def judged(task: Scenario, prompts: Mapping[str, Prompt], answer: Sample) -> Sample:
    """The sample with gold's measures. DataError where its prompt has no facts to judge by."""
    prompt = prompts[answer.prompt_id]
    if not prompt.facts:
        raise DataError(f"prompt {prompt.id!r}: has no 'facts', by which {task.name} could judge an answer")
    return replace(answer, measures=task.judge(prompt, answer.answer, stopped=answer.stopped is not False).measures)


def fresh_answers(run: SampledRun, rollouts: Sequence[Sample], prompts: Mapping[str, Prompt], *, samples: int,
                  seed: int, progress: Progress) -> list[Sample]:
    """Answers of the policy as the run started, to every prompt of its later half."""
    late = rollouts[len(rollouts) // 2:]
    asked = [prompts[name] for name in dict.fromkeys(each.prompt_id for each in late)]
    lab = Lab.load(run.model, dtype=run.dtype, device=run.device, quantize=run.quantize, progress=progress)
    role = None
    if run.start is not None:
        role = "sampler"
        lab.start_role(role, run)
    with progress.track("answers of the start", len(asked) * samples) as bar:
        written = sample(lab.model, lab.chat, asked, role=role, samples=samples, max_new_tokens=run.max_new_tokens,
                         temperature=run.temperature, seed=seed, advance=bar.advance)
    return [Sample(step=0, prompt_id=r.prompt.id, answer=r.text, stopped=r.stopped, tokens=len(r.token_ids))
            for r in written]


# -- rows ----------------------------------------------------------------------------------------------------------


def comparison_rows(proposals: Sequence[Proposal], prompts: Mapping[str, Prompt], *, seed: int) -> list[dict[str, Any]]:
    """Comparisons for people to judge. Which answer is a is drawn, so that the file's order tells nothing."""
    random = Random(f"comparisons-{seed}")
    rows = []
    for each in proposals:
        sides = [each.suspect, each.better]
        random.shuffle(sides)
        comparison = Comparison(prompt=prompts[each.suspect.prompt_id], a=sides[0].answer, b=sides[1].answer)
        rows.append({**comparison_row(comparison), "cluster": each.cluster, "kinds": list(each.kinds), "why": each.why,
                     "suspect": "a" if sides[0] is each.suspect else "b"})
    return rows


def pair_rows(proposals: Sequence[Proposal], prompts: Mapping[str, Prompt]) -> list[dict[str, Any]]:
    """Pairs as gold orders them, with the source `gold`; ties make no pair."""
    rows = []
    for each in proposals:
        worse, best = sorted((each.suspect, each.better), key=lambda answer: answer.measures["gold"] or 0.0)
        if best.measures["gold"] != worse.measures["gold"]:
            pair = PreferencePair(prompt=prompts[best.prompt_id], chosen=best.answer, rejected=worse.answer,
                                  source="gold")
            rows.append({**pair_row(pair), "cluster": each.cluster, "kinds": list(each.kinds), "why": each.why})
    return rows
