"""`rlhflab data judge`: labels of a judge model, which people's labels vouch for before any of them is written.

What a judge replied is kept by its content, so that asking again costs nothing. No training.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from rlhflab.analysis.agreement import against_majority, rate
from rlhflab.analysis.reward_report import plain_json
from rlhflab.data.formats import write_jsonl
from rlhflab.data.forms import winner
from rlhflab.data.types import Comparison, Judged, Judgment, Prompt
from rlhflab.errors import ConfigError, RunError
from rlhflab.model.load import cache_folder
from rlhflab.model.shared import SharedModel, adapter_digest
from rlhflab.progress import Progress
from rlhflab.rollout.http import authorization, checked_url
from rlhflab.rollout.judges import CRITERIA, Ask, Duel, Verdict, decide, model_ask
from rlhflab.rollout.served_judge import server_ask
from rlhflab.runs.comparisons import judged_row, read_judged
from rlhflab.runs.kept import Kept, content_key

PREFIX = "judge:"
"""Of the name under which a judge's verdicts stand among those of people."""
ROLE = "judge"
"""Name of a judge's adapter while it is loaded."""
PART = 16
"""Comparisons that are judged before their replies are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Something that can be asked, and what its replies depend on besides the question."""

    name: str
    key: tuple[str, ...]
    ask: Ask


class Replies:
    """Owns a judge's replies to questions."""

    def __init__(self, path: Path, judge: Judge) -> None:
        self.judge, self.kept = judge, Kept(path)
        self.asked = 0

    def __call__(self, questions: Sequence[Prompt]) -> list[str | None]:
        """The reply to each; only those that are not known yet are asked for. A question too long has none."""
        keys = [self._key(question) for question in questions]
        new = {key: question for key, question in zip(keys, questions, strict=True) if key not in self.kept.known}
        replies = self.judge.ask(list(new.values())) if new else []
        self.asked += len(new)
        self.kept.add({key: reply for key, reply in zip(new, replies, strict=True) if reply is not None})
        return [self.kept.known.get(key) for key in keys]

    def _key(self, question: Prompt) -> str:
        """Of the judge and of every word it reads: conversation, answers in their order, rubric."""
        return content_key(self.judge.key, [(turn.role, turn.content) for turn in question.messages])


class Labelled(NamedTuple):
    """A comparison with what the judge made of it."""

    judged: Judged
    verdict: Verdict

    @property
    def side(self) -> str | None:
        """The side it chose in both orders; None where it did not."""
        if self.verdict.winner is None:
            return None
        return "a" if self.verdict.winner == self.judged.comparison.a else "b"


def open_judge(name: str, *, served_as: str | None, adapter: Path | None, max_new_tokens: int,
               token_env: str | None) -> Judge:
    """A judge by what `--judge` says: an address, behind which `served_as` answers, or a model to load here."""
    if "://" in name:
        if served_as is None or adapter is not None:
            raise ConfigError("--judge: an address needs --served-as, the model's name there, and takes no --adapter")
        headers = {} if token_env is None else authorization(token_env, where="--token-env")
        ask = server_ask(checked_url(name, where="--judge"), served_as, max_new_tokens=max_new_tokens, headers=headers)
        return Judge(name=f"{PREFIX}{served_as}", key=("served", name, served_as, str(max_new_tokens)), ask=ask)
    if served_as is not None or token_env is not None:
        raise ConfigError("--served-as and --token-env: go with a judge at an address; this one is loaded here")
    model = SharedModel.load(name)
    called, digest = f"{PREFIX}{model.base.name}", ""
    if adapter is not None:
        model.load_role(ROLE, adapter)
        called, digest = f"{called}+{adapter.name}", adapter_digest(adapter)
    return Judge(name=called, key=("local", model.base.digest, digest, str(max_new_tokens)),
                 ask=model_ask(model, role=ROLE if adapter else None, max_new_tokens=max_new_tokens))


def judge_file(path: Path, judge: Judge, *, out: Path, rubric: str = CRITERIA, labelled: Path | None = None,
               min_agreement: float = 0.6, form: str | None = None, skip_bad: bool = False,
               progress: Progress) -> dict[str, Any]:
    """Write the comparisons of `path` with the judge's verdicts to `out`, if it agrees with people often enough.

    The judge first labels the comparisons of `labelled`, or of `path` itself, on which people's majority took a side.
    RunError, before anything else is asked or written, where it is with them less often than `min_agreement`, or was
    never of one opinion in both orders; `min_agreement` 0 asks for nothing. `skip_bad` leaves broken rows out.
    """
    rows = read_judged(path, form=form, skip_bad=skip_bad, progress=progress)
    known = rows if labelled is None else read_judged(labelled, form=form, skip_bad=skip_bad, progress=progress)
    known = [row for row in map(_without_judges, known) if winner(row) is not None]
    if not known and min_agreement > 0:
        raise RunError(f"{labelled or path}: holds no comparison on which people's majority took a side, so nothing "
                       "says how good the judge is; give such a file with --labelled, or --min-agreement 0")
    replies = Replies(cache_folder() / "judgments" / f"{_named(judge)}.jsonl", judge)
    measured = agreement_of(label(known, replies, rubric, progress, "judging what people judged"))
    _vouch(judge, measured, min_agreement)
    labels = label(rows, replies, rubric, progress, "judging")
    write_jsonl(out, map(judged_row, (_with_verdict(each, judge.name) for each in labels)))
    return {"judge": judge.name, "rubric": rubric, "comparisons": len(rows), "people": measured,
            "scored": sum(each.side is not None for each in labels),
            "unscored": dict(Counter(each.verdict.reason for each in labels if each.side is None)),
            "asked": replies.asked, "written": str(out)}


def label(rows: Sequence[Judged], replies: Replies, rubric: str, progress: Progress, what: str) -> list[Labelled]:
    """What the judge makes of each comparison, asked in both orders."""
    found: list[Labelled] = []
    if not rows:
        return found
    with progress.track(what, len(rows)) as bar:
        for part in (rows[start:start + PART] for start in range(0, len(rows), PART)):
            duels = [_duel(row.comparison) for row in part]
            found += [Labelled(*each) for each in zip(part, decide(duels, replies, rubric), strict=True)]
            bar.advance(len(part))
    return found


def agreement_of(labels: Sequence[Labelled]) -> dict[str, Any] | None:
    """How often the judge is with people's majority, and how often it is of one opinion in both orders."""
    if not labels:
        return None
    prompts = [each.judged.comparison.prompt.messages for each in labels]
    both = [(prompt, str(winner(each.judged)), each.side) for prompt, each in zip(prompts, labels, strict=True)
            if each.side is not None]
    return dict(plain_json({**(against_majority(both) or {"agreement": None, "kappa": None}),
                            "scored": rate([float(each.side is not None) for each in labels], prompts),
                            "unscored": dict(Counter(each.verdict.reason for each in labels if each.side is None))}))


def _vouch(judge: Judge, measured: dict[str, Any] | None, least: float) -> None:
    """RunError where people's labels do not vouch for the judge."""
    if measured is None or least <= 0:
        return
    agreement = measured["agreement"]
    if agreement is None:
        reason, often = max(measured["unscored"].items(), key=lambda item: int(item[1]))
        raise RunError(f"{judge.name}: gave no verdict that counts on {measured['scored']['n']} comparisons that "
                       f"people judged ({reason}: {often}); no labels were written")
    if agreement["mean"] < least:
        low, high = ("?" if agreement[bound] is None else f"{agreement[bound]:.3f}" for bound in ("low", "high"))
        raise RunError(f"{judge.name}: is with the majority of people on {agreement['mean']:.3f} [{low}, {high}] of "
                       f"{agreement['n']} comparisons, below --min-agreement {least:g}; no labels were written")


def _duel(comparison: Comparison) -> Duel:
    return Duel.of(comparison.prompt, comparison.a, comparison.b)


def _without_judges(row: Judged) -> Judged:
    return replace(row, judgments=tuple(each for each in row.judgments if not each.annotator.startswith(PREFIX)))


def _with_verdict(each: Labelled, name: str) -> Judged:
    """The comparison with the judge's verdict behind those of people, or in `meta` why there is none."""
    others = tuple(judgment for judgment in each.judged.judgments if judgment.annotator != name)
    if each.side is None:
        return replace(each.judged, judgments=others, meta={
            **each.judged.meta, "unscored": {"by": name, "reason": each.verdict.reason}})
    return replace(each.judged, judgments=(*others, Judgment(verdict=each.side, annotator=name)))  # type: ignore[arg-type]


def _named(judge: Judge) -> str:
    return hashlib.sha256(json.dumps(judge.key).encode()).hexdigest()[:16]
