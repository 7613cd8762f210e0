"""`rlhflab compare`: several adapters of one base answer a suite, each two are compared, and all are ranked."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from rlhflab.core.ranking import bradley_terry, win_rate
from rlhflab.data.formats import finite
from rlhflab.data.types import Rollout
from rlhflab.errors import ConfigError, RunError
from rlhflab.model.load import cache_folder
from rlhflab.progress import Progress
from rlhflab.rollout.judges import CRITERIA, Duel, Verdict, decide
from rlhflab.runs.evaluating import Checks, Respondent, check_checks
from rlhflab.runs.folder import RunFolder
from rlhflab.runs.judging import Replies, open_judge
from rlhflab.runs.kept import content_key
from rlhflab.runs.lab import Lab
from rlhflab.runs.targets import Target, refuse_other_base
from rlhflab.suites import Suite

FAR = 0.10
"""Difference of raw and length-controlled win rate from which length explains much of it."""


class Won(NamedTuple):
    """One comparison of two answers to a prompt."""

    prompt: str
    share: float | None
    """1 where the first won, .5 for a tie, None where nobody could tell."""
    words: float
    """Words of the first less those of the second."""


def compare(targets: Sequence[Target], suite: Suite, *, metric: str | None, judge: str | None, out: Path | None,
            device: str = "auto", progress: Progress) -> tuple[Path, dict[str, Any]]:
    """The new folder with `comparison.json`, and what is in it: win rates of each two, and a ranking."""
    RunFolder.refuse_taken(out)
    if suite.kind != "answers":
        raise ConfigError(f"suite {suite.name}: is of kind {suite.kind}, which has no answers to compare")
    if metric is not None:
        suite.better(metric)
    check_checks(suite)
    for target in targets[1:]:
        refuse_other_base(target, targets[0])
    lab = Lab.load(targets[0].model, device=device, progress=progress)
    checks = Checks(lab.model)
    answering = [Respondent(lab, target, role=f"compared-{i}", checks=checks) for i, target in enumerate(targets)]
    decided = _decider(answering, suite, metric, judge)
    pairs: dict[tuple[int, int], list[Won]] = {}
    with progress.track("comparing", len(targets) * (len(targets) - 1) // 2) as bar:
        for i, j in combinations(range(len(targets)), 2):
            pairs[i, j] = decided(i, j)
            bar.advance()
    record = finite({"suite": suite.name, "decided_by": metric or f"judge:{judge}",
                     "targets": [each.record() for each in answering],
                     **summary([target.name for target in targets], pairs)})
    folder = RunFolder.named("compare") if out is None else RunFolder.create(out)
    folder.write_json("comparison.json", record)
    return folder.path, record


def _decider(answering: Sequence[Respondent], suite: Suite, metric: str | None,
             judge: str | None) -> Callable[[int, int], list[Won]]:
    """What decides between two of them, by their numbers: a judge whose replies are kept, or a metric."""
    opened = None if judge is None else open_judge(judge, served_as=None, adapter=None, max_new_tokens=4,
                                                   token_env=None)
    answers = [each.rollouts(suite) for each in answering]
    if opened is not None:
        replies = Replies(cache_folder() / "judgments" / f"{content_key(list(opened.key))[:16]}.jsonl", opened)
        return lambda i, j: judged_wins(answers[i], answers[j], replies)
    assert metric is not None
    better = suite.better(metric)
    values = [[row["values"].get(metric) for row in each.rows(suite)] for each in answering]
    return lambda i, j: measured_wins(answers[i], answers[j], values[i], values[j], better)


def judged_wins(first: Sequence[Rollout], second: Sequence[Rollout], ask: Replies) -> list[Won]:
    """Who wins each prompt by a judge asked in both orders; equal texts are a tie, without asking."""
    duels = {Duel.of(one.prompt, one.text, other.text): None
             for one, other in zip(first, second, strict=True) if one.text != other.text}
    verdicts: Mapping[Duel, Verdict] = dict(zip(duels, decide(list(duels), ask, CRITERIA), strict=True))

    def share(one: Rollout, other: Rollout) -> float | None:
        if one.text == other.text:
            return 0.5
        winner = verdicts[Duel.of(one.prompt, one.text, other.text)].winner
        return None if winner is None else float(winner == one.text)

    return [_won(one, other, share(one, other)) for one, other in zip(first, second, strict=True)]


def measured_wins(first: Sequence[Rollout], second: Sequence[Rollout], values: Sequence[float | None],
                  others: Sequence[float | None], better: str) -> list[Won]:
    """Who has the better value at each prompt."""
    sign = 1 if better == "higher" else -1

    def share(value: float | None, other: float | None) -> float | None:
        if value is None or other is None:
            return None
        return 0.5 if value == other else float(sign * (value - other) > 0)

    return [_won(one, other, share(value, against))
            for one, other, value, against in zip(first, second, values, others, strict=True)]


def _won(one: Rollout, other: Rollout, share: float | None) -> Won:
    return Won(one.prompt.id, share, float(len(one.text.split()) - len(other.text.split())))


def summary(names: Sequence[str], pairs: Mapping[tuple[int, int], Sequence[Won]]) -> dict[str, Any]:
    """Win rates of each two, with length control, and the ranking. RunError where nothing could be told."""
    scored = {two: [(won.prompt, won.share, won.words) for won in each if won.share is not None]
              for two, each in pairs.items()}
    every = [(i, j, share, prompt) for (i, j), each in scored.items() for prompt, share, _ in each]
    if not every:
        raise RunError("compare: no comparison could be decided, so there is nothing to rank by")
    rates = []
    for (i, j), each in scored.items():
        row: dict[str, Any] = {"first": names[i], "second": names[j], "unscored": len(pairs[i, j]) - len(each)}
        if each:
            prompts, shares, words = zip(*each, strict=True)
            rate = win_rate(shares, words, prompts)
            row |= {"win_rate": rate.raw._asdict(), "length_controlled": rate.controlled._asdict(), "phi": rate.phi,
                    "length_explains_much": abs(rate.raw.mean - rate.controlled.mean) > FAR}
        rates.append(row)
    ranks = bradley_terry(names, [(i, j, share) for i, j, share, _ in every], [prompt for *_, prompt in every])
    return {"pairs": rates, "ranking": [{**rank._asdict(), "elo": rank.elo._asdict()} for rank in ranks]}
