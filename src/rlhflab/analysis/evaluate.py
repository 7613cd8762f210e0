"""Answers to a scenario's prompts, judged by its gold check, as rows and as rates with intervals."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlhflab.core.batch import TokenAnswer, Tree
from rlhflab.core.stats import Estimate, mean_interval, paired_change
from rlhflab.data.chat import ChatFormat
from rlhflab.data.types import Prompt, Rollout
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.sampling import sample
from rlhflab.rollout.scoring import tree_logprobs
from rlhflab.scenarios.base import Scenario

Row = dict[str, Any]

FIXED_TEXT = """\
The harbour town wakes before the sun does. Boats that left in the dark come back one by one, low in the water, and the
gulls know it before anyone else. On the quay a woman in a yellow coat counts crates, writes a number in a small book,
and calls it out to the clerk behind the window. By seven the market is open. People come for the fish, but they stay
for the talk: whose roof the storm took, which road is closed, why the ferry was late again. The old lighthouse on the
rock has not been used for thirty years, yet every spring somebody paints its door red. Nobody has ever admitted to it.
When the school bell rings, the square empties, and for an hour the only sound is water against stone. In the afternoon
the wind turns, as it nearly always does, and the flags on the customs house point towards the hills. A scientist who
came to measure the tides once explained that the bay is shaped like a funnel, so that a small change far out becomes a
large one here. The fishermen listened politely. They had known it all their lives, though they had never needed a word
for it."""
"""Plain English, written for this project, on which the perplexity of every policy is measured."""


def answer_prompts(model: SharedModel, chat: ChatFormat, prompts: Sequence[Prompt], *, role: str | None, samples: int,
                   max_new_tokens: int, seed: int, advance: Callable[[int], None]) -> dict[str, list[Rollout]]:
    """The greedy answer and `samples` answers at temperature 1 to each prompt, by mode."""
    rollouts = sample(model, chat, prompts, role=role, samples=samples, greedy=True, max_new_tokens=max_new_tokens,
                      seed=seed, advance=advance)
    return {"greedy": [r for r in rollouts if r.seed is None], "sampled": [r for r in rollouts if r.seed is not None]}


def judged_rows(task: Scenario, policy: str, answers: Mapping[str, Sequence[Rollout]]) -> list[Row]:
    """One row an answer, with the gold verdict, as written to `evaluation/POLICY.jsonl`."""
    rows = []
    for mode, rollouts in answers.items():
        for rollout in rollouts:
            verdict = task.judge(rollout.prompt, rollout.text, stopped=rollout.stopped)
            rows.append({
                "policy": policy, "mode": mode, "prompt_id": rollout.prompt.id,
                "prompt": [{"role": m.role, "content": m.content} for m in rollout.prompt.messages],
                "answer": rollout.text, "finish": rollout.finish, "tokens": len(rollout.token_ids),
                "measures": dict(verdict.measures), "reason": verdict.reason})
    return rows


def rates(task: Scenario, rows: Sequence[Row], mode: str) -> dict[str, dict[str, float] | None]:
    """Each measure's mean with interval and count, clustered by prompt; None where it applied to no answer."""
    result: dict[str, dict[str, float] | None] = {}
    for measure in task.measures:
        seen = [(row["measures"][measure.name], row["prompt_id"]) for row in rows
                if row["mode"] == mode and row["measures"][measure.name] is not None]
        result[measure.name] = mean_interval(*zip(*seen, strict=True))._asdict() if seen else None
    return result


def change(rows: Sequence[Row], before: Sequence[Row], *, mode: str = "sampled", measure: str = "gold") -> Estimate:
    """Paired change of a measure on the same prompts and seeds, clustered by prompt."""
    after, earlier = ([row for row in each if row["mode"] == mode] for each in (rows, before))
    assert [row["prompt_id"] for row in after] == [row["prompt_id"] for row in earlier]
    return paired_change([row["measures"][measure] for row in after], [row["measures"][measure] for row in earlier],
                         [row["prompt_id"] for row in after])


def perplexity(model: SharedModel, *, role: str | None, text: str = FIXED_TEXT) -> float:
    """Exp of the mean negative log-prob of `text`'s tokens after the first."""
    nats = nats_a_token(model, [text], role=role)[0]
    assert nats is not None
    return math.exp(nats)


def nats_a_token(model: SharedModel, texts: Sequence[str], *, role: str | None) -> list[float | None]:
    """Mean negative log-prob of each text's tokens after the first, without a chat format; None of a single token."""
    ids: list[list[int]] = [model.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    trees = [Tree(prompt=tuple(each[:1]), answers=(TokenAnswer(ids=tuple(each[1:])),)) for each in ids if len(each) > 1]
    longest = max(map(len, ids), default=1)
    read = iter(tree_logprobs(model, trees, role=role, micro_tokens=max(longest, 512)))
    return [float(-next(read).mean()) if len(each) > 1 else None for each in ids]
