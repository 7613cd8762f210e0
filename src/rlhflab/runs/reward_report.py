"""`rlhflab report reward`: a stored reward role, the pairs it was held back from, and the page about both."""

from collections.abc import Sequence
from pathlib import Path

from rlhflab.analysis.perturbations import Text
from rlhflab.analysis.reward_page import write_reward_page
from rlhflab.analysis.reward_report import FEWEST_PAIRS, Record, Scorer, reward_record
from rlhflab.config import RewardRun, make_run, read_run
from rlhflab.core.batch import TokenAnswer, Tree
from rlhflab.data.chat import ChatFormat
from rlhflab.data.types import Message, PreferencePair, Prompt
from rlhflab.errors import DataError, ModelError
from rlhflab.model.adapters import ADAPTER, ADAPTER_CONFIG
from rlhflab.model.shared import HEAD, read_record
from rlhflab.progress import Progress
from rlhflab.registry.sources import folder_digest
from rlhflab.rollout.reward_role import role_scores
from rlhflab.runs.folder import RunFolder
from rlhflab.runs.lab import Lab
from rlhflab.runs.probe_records import REPORT
from rlhflab.runs.sources import MOST_PAIRS, gold_of
from rlhflab.runs.stages import fitting_pairs, split_by_prompt
from rlhflab.scenarios import names
from rlhflab.scenarios.base import Scenario

JUDGED = "judged-reward"
"""Name of the role while it is read."""
PART = 16
"""Prompts between two words on how far it is."""


def report_on_role(role: Path, *, data: Path | None, scenario: str | None, probes: int,
                   progress: Progress) -> tuple[Record, Path]:
    """Judge the reward role in a folder; returns the record and the page. Both are written into its run's folder.

    Without a run, into the role's own. ModelError for a folder that holds no reward role or one of another base,
    DataError where the pairs are gone or too few.
    """
    run, home = run_of(role)
    if data is not None:
        run = run.model_copy(update={"data": str(data)})
    if scenario is not None:
        run = run.model_copy(update={"gold": scenario})
    if run.data not in names() and not Path(run.data).is_file():
        raise DataError(f"{run.data or role}: the pairs are not there (a relative path starts where the command runs); "
                        "give their file with --data")
    progress.say(f"Loading {run.model} ...")
    lab = Lab.load(run.model, dtype=run.dtype, device=run.device, quantize=run.quantize, progress=progress)
    pairs = fitting_pairs(run, lab)
    train, held_out = split_by_prompt(pairs, share=run.held_out, seed=run.seed)
    if len(held_out) < FEWEST_PAIRS:
        raise DataError(f"{run.data}: {len(pairs)} pairs leave {len(held_out)} to judge the role on; a report needs at "
                        f"least {FEWEST_PAIRS}")
    same = same_split(home, train, held_out)
    if same is not True:
        progress.say("These are not known to be the pairs of the role's own run, so it may be judged on pairs that it "
                     "has learnt from.")
    task = gold_of(run, (pair.prompt for pair in pairs))
    record = reward_report(lab, role, train, held_out, task=task, probes=probes, seed=run.seed,
                           micro_tokens=run.micro_tokens)
    record = {"role": str(role), "role_digest": folder_digest(role), "model": run.model, "data": run.data,
              "seed": run.seed, "same_split": same, **record}
    RunFolder(home).write_json(REPORT, record)
    return record, write_reward_page(record, home / "reward_report.html")


def reward_report(lab: Lab, role: Path, train: Sequence[PreferencePair], held_out: Sequence[PreferencePair], *,
                  task: Scenario | None, probes: int = 64, seed: int = 0, micro_tokens: int = 2048) -> Record:
    """The record of `rlhflab report reward` for the role in a folder, on a lab that is loaded already."""
    lab.model.load_role(JUDGED, role, head="stored")
    try:
        return reward_record(role_scorer(lab, JUDGED, micro_tokens=micro_tokens), train, held_out, task=task,
                             probes=probes, seed=seed)
    finally:
        lab.model.drop_role(JUDGED)


def run_of(role: Path) -> tuple[RewardRun, Path]:
    """(the run that trained the role in a folder, that run's folder).

    A role without a run, such as an average of roles, stands for one with default settings on its own base, whose data
    has to be given. ModelError where the folder is not that of a reward role.
    """
    missing = [name for name in (ADAPTER_CONFIG, ADAPTER, HEAD) if not (role / name).is_file()]
    if missing:
        raise ModelError(f"{role}: is not the folder of a reward role: it has no {missing[0]}")
    home = role.resolve().parent.parent
    if (home / "config.yaml").is_file():
        run = read_run(None, home / "config.yaml")
        if isinstance(run, RewardRun):
            return run, home
    record = read_record(role)
    if record is None:
        raise ModelError(f"{role}: has no rlhflab.json, and no run beside it says which base it belongs to")
    run = make_run("reward", {"model": record.base, "data": ""})
    assert isinstance(run, RewardRun)
    return run, role


def same_split(home: Path, train: Sequence[PreferencePair], held_out: Sequence[PreferencePair]) -> bool | None:
    """Whether these are as many pairs on both sides as the run in a folder says it had; None where it does not say."""
    folder = RunFolder(home)
    summary = folder.read_json("summary.json") if folder.has("summary.json") else {}
    if not {"pairs", "held_out_pairs"} <= summary.keys():
        return None
    return bool((summary["pairs"], summary["held_out_pairs"]) == (len(train), len(held_out)))


def role_scorer(lab: Lab, role: str, *, micro_tokens: int) -> Scorer:
    """Scores of a loaded reward role, standardised; answers to one prompt are read with it in one go."""

    def score(texts: Sequence[Text]) -> list[float | None]:
        found: dict[Text, float] = {}
        groups = grouped(lab.chat, texts, context=lab.model.context)
        with lab.progress.track("scoring answers", sum(len(group) for group, _ in groups)) as bar:
            for part in (groups[i:i + PART] for i in range(0, len(groups), PART)):
                read = role_scores(lab.model, [tree for _, tree in part], role=role, micro_tokens=micro_tokens)
                for (group, _), values in zip(part, read, strict=True):
                    found.update(zip(group, values.tolist(), strict=True))
                bar.advance(sum(len(group) for group, _ in part))
        return [found.get(text) for text in texts]

    return score


def grouped(chat: ChatFormat, texts: Sequence[Text], *, context: int) -> list[tuple[list[Text], Tree]]:
    """Texts that fit the context, by prompt, at most `MOST_PAIRS` of them in a tree."""
    by_prompt: dict[tuple[Message, ...], list[tuple[Text, TokenAnswer]]] = {}
    prompts: dict[tuple[Message, ...], tuple[int, ...]] = {}
    for text in dict.fromkeys(texts):
        if text.messages not in prompts:
            prompts[text.messages] = chat.prompt(Prompt(id="", messages=text.messages))
        ids = chat.answer(text.answer)
        answer = TokenAnswer(ids=ids if text.stopped else ids[:-1] or ids)
        if len(prompts[text.messages]) + len(answer.ids) <= context:
            by_prompt.setdefault(text.messages, []).append((text, answer))
    return [([text for text, _ in part], Tree(prompt=prompts[messages], answers=tuple(answer for _, answer in part)))
            for messages, each in by_prompt.items()
            for part in (each[i:i + MOST_PAIRS] for i in range(0, len(each), MOST_PAIRS))]
