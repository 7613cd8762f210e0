"""The gate: paired values of a candidate and the active model in, verdicts with their reasons out. No model, no files.

A candidate passes a row when a loss as large as the margin is ruled out, fails it when such a loss is shown, and is
inconclusive in between. On a blocking row inconclusive blocks as fail does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from rlhflab.analysis.suite_results import Paired
from rlhflab.core.stats import (
    Estimate,
    bound_power,
    detectable_change,
    holm,
    non_inferiority_power,
    paired_bootstrap,
    paired_rate_change,
    rate_bound,
    sign_test,
)
from rlhflab.suites import GatePolicy, PolicyRow

Verdict = Literal["pass", "fail", "inconclusive"]
Better = Literal["higher", "lower"]
MOST_UNSCORED = 0.5
"""Share of the prompts scored for the active model that the candidate may leave unscored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowVerdict:
    """One row of the gate, as flat as its JSON. What does not apply is None."""

    suite: str
    metric: str
    test: str
    verdict: Verdict
    blocking: bool
    """Whether the verdict can block: the policy says so and the row has the power."""
    declared_blocking: bool
    reason: str
    n: int
    """Items that both scored."""
    unscored: int
    candidate: float | None = None
    """The candidate's mean on these items."""
    active: float | None = None
    change: float | None = None
    """Candidate less active; for relative rows by which share of the active mean; for no_new_failures their share."""
    low: float | None = None
    high: float | None = None
    """Interval of the change whose two bounds each hold with the policy's confidence."""
    margin: float | None = None
    relative: bool = False
    discordance: float | None = None
    """Mean square of the paired change that was found; relative where the margin is."""
    declared_discordance: float | None = None
    design_power: float | None = None
    """Chance that an equally good candidate passes, at the discordance the policy declares."""
    power: float | None = None
    """The same at the discordance that was found."""
    detectable: float | None = None
    """Smallest true change a two-sided test at .05 finds with power .8, at the discordance that was found."""
    p: float | None = None
    """Exact two-sided p that nothing changed, by prompt (McNemar for rates), Holm-adjusted inside the suite."""

    @property
    def blocks(self) -> bool:
        """Whether this row alone keeps the candidate out."""
        return self.blocking and self.verdict != "pass"


def judged(policy: GatePolicy, pairs: Sequence[Paired], better: Sequence[Better]) -> list[RowVerdict]:
    """Each row of the policy on its paired values, with p adjusted inside each suite."""
    rows = [judge_row(row, each, way, confidence=policy.confidence, power=policy.power)
            for row, each, way in zip(policy.rows, pairs, better, strict=True)]
    for suite in {row.suite for row in rows}:
        places = [i for i, row in enumerate(rows) if row.suite == suite and row.p is not None]
        for i, p in zip(places, holm([rows[i].p or 0.0 for i in places]), strict=True):
            rows[i] = replace(rows[i], p=p)
    return rows


def overall(rows: Sequence[RowVerdict]) -> Verdict:
    """The worst verdict of a blocking row: fail, then inconclusive, then pass."""
    found = {row.verdict for row in rows if row.blocking}
    return "fail" if "fail" in found else "inconclusive" if "inconclusive" in found else "pass"


def judge_row(row: PolicyRow, pairs: Paired, better: Better, *, confidence: float = 0.95,
              power: float = 0.99) -> RowVerdict:
    """One row's verdict. `power`: what a row declared as blocking needs at its declared discordance to block."""
    design = _design_power(row, pairs.before_prompts, confidence)
    verdict = RowVerdict(suite=row.suite, metric=row.metric, test=row.test, verdict="inconclusive", reason="",
                         declared_blocking=row.blocking, blocking=row.blocking and (design is None or design >= power),
                         n=len(pairs.after), unscored=pairs.unscored, margin=row.margin, relative=row.relative,
                         declared_discordance=row.discordance, design_power=design)
    both = len(set(pairs.prompts))
    if not both or both < (1 - MOST_UNSCORED) * pairs.before_prompts:
        verdict = replace(verdict, reason=f"only {both} of the {pairs.before_prompts} prompts that were scored for the "
                          "active model were scored for the candidate too, too few to say anything")
    elif row.test == "exact":
        verdict = _exact(verdict, pairs)
    else:
        verdict = _with_means(verdict, row, pairs)
        test = _no_new_failures if row.test == "no_new_failures" else _non_inferior
        verdict = test(verdict, row, pairs, better, confidence)
    if verdict.declared_blocking and not verdict.blocking:
        verdict = replace(verdict, reason=f"{verdict.reason}. It only warns: an equally good candidate would pass with "
                          f"a chance of {design:.2f} on {pairs.before_prompts} prompts; blocking needs {power:g}")
    return verdict


def _design_power(row: PolicyRow, n: int, confidence: float) -> float | None:
    if row.margin is None or row.discordance is None or n == 0:
        return None
    if row.test == "no_new_failures":
        return bound_power(n, row.discordance, row.margin, confidence=confidence)
    return non_inferiority_power(n, row.discordance, row.margin, alpha=1 - confidence)


def _exact(verdict: RowVerdict, pairs: Paired) -> RowVerdict:
    wrong = sum(value != 1 for value in pairs.after)
    return replace(verdict, verdict="fail" if wrong else "pass", candidate=float(np.mean(pairs.after)), reason=(
        f"{wrong} of {verdict.n} items are not as they must be" if wrong else f"all {verdict.n} items are as they must "
        "be"))


def _with_means(verdict: RowVerdict, row: PolicyRow, pairs: Paired) -> RowVerdict:
    """What both did, how often they differ, and what could have been seen."""
    after, before = np.asarray(pairs.after), np.asarray(pairs.before)
    scale = float(before.mean()) if row.relative else 1.0
    discordance = float(((after - before) ** 2).mean()) / scale**2 if scale else None
    by_prompt: dict[object, float] = {}
    for prompt, change in zip(pairs.prompts, after - before, strict=True):
        by_prompt[prompt] = by_prompt.get(prompt, 0.0) + float(change)
    verdict = replace(verdict, candidate=float(after.mean()), active=float(before.mean()), discordance=discordance,
                      p=sign_test(list(by_prompt.values())))
    if discordance is None or row.margin is None or row.test != "non_inferior":
        return verdict
    return replace(verdict, power=non_inferiority_power(len(by_prompt), discordance, row.margin),
                   detectable=detectable_change(len(by_prompt), discordance))


def _non_inferior(verdict: RowVerdict, row: PolicyRow, pairs: Paired, better: Better,
                  confidence: float) -> RowVerdict:
    """Non-inferiority: the bound on the side of the loss is compared with the margin."""
    assert row.margin is not None
    change = paired_interval(pairs, relative=row.relative, confidence=2 * confidence - 1)
    least, most = (-change.high, -change.low) if better == "higher" else (change.low, change.high)
    found: Verdict = "pass" if most < row.margin else "fail" if least > row.margin else "inconclusive"
    loss = f"a loss of {_amount(row.margin, row.relative)}"
    says = {"pass": f"{loss} is ruled out", "fail": "the loss is larger than the margin of "
            f"{_amount(row.margin, row.relative)}", "inconclusive": f"{loss} is neither ruled out nor shown"}[found]
    return replace(verdict, verdict=found, change=change.mean, low=change.low, high=change.high, reason=(
        f"changed by {_signed(change.mean, row.relative)} [{_signed(change.low, row.relative)}, "
        f"{_signed(change.high, row.relative)}] on {change.n} items ({better} is better): {says}"))


def _no_new_failures(verdict: RowVerdict, row: PolicyRow, pairs: Paired, better: Better,
                     confidence: float) -> RowVerdict:
    """New failures: prompts that the active model passes and the candidate does not, with exact bounds."""
    assert row.margin is not None
    sign = 1 if better == "higher" else -1
    worse: dict[object, bool] = {}
    for prompt, new, old in zip(pairs.prompts, pairs.after, pairs.before, strict=True):
        worse[prompt] = worse.get(prompt, False) or sign * (new - old) < 0
    failures, n = sum(worse.values()), len(worse)
    low, high = 1 - rate_bound(n - failures, n, confidence=confidence), rate_bound(failures, n, confidence=confidence)
    found: Verdict = "pass" if high < row.margin else "fail" if low > row.margin else "inconclusive"
    says = {"pass": "below", "fail": "and even its lower bound is above", "inconclusive": "not below"}[found]
    return replace(verdict, verdict=found, change=failures / n, low=low, high=high, reason=(
        f"{failures} new failures on {n} prompts, of which the active model has {verdict.active:.2f} and the candidate "
        f"{verdict.candidate:.2f}: at most a share of {high:.3f}, {says} the margin of {row.margin:g}"))


def paired_interval(pairs: Paired, *, relative: bool, confidence: float) -> Estimate:
    """Change of the mean: Tango's score interval for rates of single answers, else a bootstrap over prompts."""
    single = len(set(pairs.prompts)) == len(pairs.prompts)
    if single and not relative and set(pairs.after) | set(pairs.before) <= {0.0, 1.0}:
        return paired_rate_change(pairs.after, pairs.before, confidence=confidence)
    return paired_bootstrap(pairs.after, pairs.before, pairs.prompts, relative=relative, confidence=confidence)


def _amount(value: float, relative: bool) -> str:
    return f"{value:.0%}" if relative else f"{value:g}"


def _signed(value: float, relative: bool) -> str:
    return f"{value:+.1%}" if relative else f"{value:+.3f}"
