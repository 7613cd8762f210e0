"""`rlhflab best-of-n`: one pool of answers, chosen from by one reward after the other.

A pool is text, so it can be read again by a reward model that did not exist when it was sampled.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlhflab.analysis.curves import Curve, curve_of
from rlhflab.analysis.overoptimisation import best_of_n_way
from rlhflab.config import RewardRun, RewardSource, make_run
from rlhflab.data.chat import ChatFormat
from rlhflab.data.formats import prompt_row, read_pairs, read_prompts, read_rows, write_jsonl
from rlhflab.data.types import Prompt, Rollout
from rlhflab.errors import ConfigError, DataError
from rlhflab.progress import Progress
from rlhflab.rollout.rewards import make_reward
from rlhflab.rollout.sampling import rollout_trees, sample
from rlhflab.rollout.scoring import score_members
from rlhflab.runs import sources
from rlhflab.runs.curves import write_curves
from rlhflab.runs.folder import RunFolder
from rlhflab.runs.lab import Lab
from rlhflab.scenarios import names, scenario
from rlhflab.train.reward import fit_frozen_heads

MICRO_TOKENS = 512
Table = dict[str, list[list[float]]]
"""By measure: the values of each prompt's answers."""


def draw_best_of_n(*, model: str, adapter: Path | None, rewards: Sequence[Path], prompts: str, n: int, samples: int,
                   max_new_tokens: int, pool: Path | None, pairs: Path | None, sizes: Sequence[int],
                   against: str | None, seed: int, out: Path | None, progress: Progress) -> dict[str, Any]:
    """Sample a pool, or read `pool`; score it with every reward and draw the curves into a new folder.

    `pairs` and `sizes`: rewards that are refitted here, heads on the frozen states of `adapter`, on so many of the
    pairs each. `against`: what the rewards stand for: gold where it is known, else the other rewards.
    """
    if not rewards and not sizes:
        raise ConfigError("--reward: give the folder of at least one reward role, such as runs/reward/roles/reward")
    if sizes and pairs is None:
        raise ConfigError("--sizes: heads are refitted on preference pairs; give their file as --pairs")
    RunFolder.refuse_taken(out)
    lab = Lab.load(model, progress=progress)
    rollouts, measures = read_pool(pool, lab.chat) if pool is not None else sample_pool(
        lab, adapter, prompts=prompts, n=n, samples=samples, max_new_tokens=max_new_tokens, seed=seed)
    folder = RunFolder.create(out) if out is not None else RunFolder.named("best-of-n")
    write_jsonl(folder.path / "pool.jsonl", map(pool_row, rollouts, measures))
    groups = by_prompt(rollouts)
    table = {name: [[float(measures[i][name] or 0.0) for i in group] for group in groups]
             for name in (measures[0] if measures else {}) if all(each.get(name) is not None for each in measures)}
    scores = role_tables(lab, rewards, rollouts, groups)
    if pairs is not None and sizes:
        scores |= refitted(lab, adapter, pairs, sizes, rollouts, groups, seed=seed)
    curves = curves_of(scores, table, against, seed=seed)
    lead = f"{len(groups)} prompts, {len(rollouts)} answers of {adapter or model}."
    return write_curves(folder, curves, name=folder.path.name, lead=lead, pool=str(folder.path / "pool.jsonl"))


def curves_of(scores: Mapping[str, Sequence[Sequence[float]]], table: Table, against: str | None, *,
              seed: int) -> list[Curve]:
    """One curve a reward. The scores are standardised over the pool, so that rewards compare."""
    z = {name: standardised(name, each) for name, each in scores.items()}
    truth = {"gold": table["gold"]} if "gold" in table and against is None else {}
    known = {**table, **z}
    if against is not None:
        if against not in known:
            raise ConfigError(f"--against: nothing in the pool is called {against!r}; there are {', '.join(known)}")
        truth = {against: known[against]}
    made = []
    for proxy in z:
        others = truth or {name: each for name, each in z.items() if name != proxy}
        if not others or proxy in truth:
            if len(z) == 1:
                raise ConfigError("nothing but the reward itself is known of this pool; give a second --reward, or "
                                  "prompts of a scenario")
            continue
        first = next(iter(others))
        made.append(curve_of(best_of_n_way({proxy: z[proxy], **others}, proxy=proxy), proxy, first, seed=seed))
    return made


def standardised(name: str, scores: Sequence[Sequence[float]]) -> list[list[float]]:
    """In deviations of the whole pool, its mean 0. A constant stays what it is and is refused later, by name."""
    every = np.concatenate([np.asarray(each, dtype=float) for each in scores])
    if not np.isfinite(every).all():
        raise DataError(f"{name}: holds a score that is no finite number")
    deviation = float(every.std()) or 1.0
    return [((np.asarray(each) - every.mean()) / deviation).tolist() for each in scores]


# -- the pool ------------------------------------------------------------------------------------------------------


def sample_pool(lab: Lab, adapter: Path | None, *, prompts: str, n: int, samples: int, max_new_tokens: int,
                seed: int) -> tuple[list[Rollout], list[dict[str, float | None]]]:
    """Answers to `n` prompts of a file or a scenario, a prompt's next to each other, with a scenario's measures."""
    task = scenario(prompts) if prompts in names() else None
    asked = task.prompts("evaluation", n, seed=seed) if task else read_prompts(sources.file_of(prompts))[:n]
    role = None
    if adapter is not None:
        role = "sampler"
        lab.start_role(role, make_run("sft", {"model": lab.model.base.name, "start": str(adapter)}))
    with lab.progress.track("answers for the pool", len(asked) * samples) as bar:
        rollouts = sample(lab.model, lab.chat, asked, role=role, samples=samples, max_new_tokens=max_new_tokens,
                          seed=seed, advance=bar.advance)
    lab.drop_roles()
    measures = [dict(task.judge(r.prompt, r.text, stopped=r.stopped).measures) if task else {} for r in rollouts]
    return [retold(lab.chat, r.prompt, r.text, stopped=r.stopped) for r in rollouts], measures


def pool_row(rollout: Rollout, measures: Mapping[str, float | None]) -> dict[str, Any]:
    """One answer of `pool.jsonl`."""
    return {**prompt_row(rollout.prompt), "answer": rollout.text, "finish": rollout.finish, "measures": dict(measures)}


def read_pool(path: Path, chat: ChatFormat) -> tuple[list[Rollout], list[dict[str, float | None]]]:
    """What `pool_row` wrote, in its order."""
    rollouts, measures = [], []
    prompts: dict[tuple[Any, ...], Prompt] = {}
    for row in read_rows(path):
        answer = row.values.get("answer", "")
        if not isinstance(answer, str):
            raise row.wrong("answer", "must be text")
        found = row.values.get("measures", {})
        if not isinstance(found, dict) or not all(
                value is None or (isinstance(value, int | float) and np.isfinite(value)) for value in found.values()):
            raise row.wrong("measures", "must be an object of finite numbers")
        prompt = Prompt(id=row.id, messages=row.prompt(), facts=row.facts)
        prompt = prompts.setdefault((prompt.id, prompt.messages), prompt)
        rollouts.append(retold(chat, prompt, answer, stopped=row.values.get("finish", "stop") == "stop"))
        measures.append(found)
    return rollouts, measures


def retold(chat: ChatFormat, prompt: Prompt, text: str, *, stopped: bool) -> Rollout:
    """An answer in the tokens of its text, so that a pool scores alike when it is read again."""
    ids = chat.answer(text)
    return Rollout(prompt=prompt, prompt_ids=chat.prompt(prompt), token_ids=ids if stopped else ids[:-1] or ids,
                   logprobs=(), text=text, finish="stop" if stopped else "length", seed=None)


def by_prompt(rollouts: Sequence[Rollout]) -> list[list[int]]:
    """The numbers of each prompt's answers."""
    groups: dict[int, list[int]] = {}
    for i, rollout in enumerate(rollouts):
        groups.setdefault(id(rollout.prompt), []).append(i)
    return list(groups.values())


# -- the rewards ---------------------------------------------------------------------------------------------------


def role_tables(lab: Lab, rewards: Sequence[Path], rollouts: Sequence[Rollout],
                groups: Sequence[Sequence[int]]) -> Table:
    """The scores of every reward role, by a name that tells them apart."""
    table: Table = {}
    for path in rewards:
        name = role_name(path, taken=table)
        reward = make_reward([RewardSource.model_validate({"name": "role", "path": str(path), "role": "reward"})],
                             lab.model, micro_tokens=MICRO_TOKENS)
        lab.progress.say(f"Scoring {len(rollouts)} answers with {path} ...")
        scores = reward(rollouts)
        missing = next((score for score in scores if score.value is None), None)
        if missing is not None:
            raise DataError(f"{path}: an answer of the pool could not be scored: {missing.reason}")
        lab.drop_roles()
        table[name] = [[float(scores[i].value or 0.0) for i in group] for group in groups]
    return table


def role_name(path: Path, *, taken: Mapping[str, Any]) -> str:
    """The last part of a role's folder that says something; numbered where two are alike."""
    parts = [part for part in path.resolve().parts if part not in ("/", "roles", "reward")]
    name = parts[-1] if parts else str(path)
    number = sum(other.partition(" #")[0] == name for other in taken)
    return f"{name} #{number + 1}" if number else name


def refitted(lab: Lab, adapter: Path | None, pairs: Path, sizes: Sequence[int], rollouts: Sequence[Rollout],
             groups: Sequence[Sequence[int]], *, seed: int) -> Table:
    """Scores of heads fitted on the first 50, 100 ... pairs, prompts in a seeded order: how much data a peak needs.

    Heads on the frozen states of `adapter` (arXiv:2210.10760 figure 4 does it with whole models): convex, so no other
    seed is in them. The pool is read once for all heads.
    """
    found = read_pairs(pairs)
    order = np.random.default_rng(seed).permutation(len(found))
    if max(sizes) > len(found):
        raise DataError(f"{pairs}: has {len(found)} pairs, fewer than the {max(sizes)} asked for")
    run = make_run("reward", {"model": lab.model.base.name, "features": "frozen",
                              **({"start": str(adapter)} if adapter else {})})
    assert isinstance(run, RewardRun)
    lab.start_role("reward", run, head="random", outputs=1)
    heads = []
    for size in sizes:
        lab.progress.say(f"Fitting a head on {size} pairs ...")
        trees = [sources.preference_tree(lab.chat, group)
                 for group in sources.group_by_prompt(found[i] for i in order[:size])]
        fit_frozen_heads(run, lab.model, trees, role="reward")
        heads.append(lab.model.head_parameters("reward")[0].detach().clone())
    lab.model.set_head("reward", torch.cat(heads))
    outputs = torch.cat(score_members(lab.model, rollout_trees(rollouts), role="reward", micro_tokens=MICRO_TOKENS))
    lab.drop_roles()
    return {f"{size} pairs": [outputs[group, i].tolist() for group in map(list, groups)]
            for i, size in enumerate(sizes)}
