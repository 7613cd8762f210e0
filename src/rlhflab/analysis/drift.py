"""Whether answers to the same prompts have changed between two sides, by several measures with one verdict each.

Replies in, JSON values out: no files, no model and no page. "No difference found" is not "equivalent": the first says
that nothing was seen, the second that whatever there is lies within a margin that was named beforehand.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from rlhflab.analysis.bag_of_words import Vocabulary
from rlhflab.analysis.behaviour import declines, shape
from rlhflab.analysis.reward_report import plain_json
from rlhflab.analysis.texts import words
from rlhflab.core.drift import (
    Array,
    Kernel,
    Layout,
    Test,
    above,
    change,
    energy,
    hamming,
    ks_test,
    mean_test,
    over_prompts,
    over_test,
    prompt_differences,
    psi_test,
    within_test,
    zero_bound,
)
from rlhflab.core.signals import cusum, cusum_false_alarms
from rlhflab.core.stats import Estimate, holm
from rlhflab.errors import ConfigError, DataError

Verdict = Literal["changed", "too few to say", "no difference found", "equivalent"]
VERDICTS: tuple[Verdict, ...] = ("changed", "too few to say", "no difference found", "equivalent")
"""The gravest first: the whole is what its gravest measure is."""
ALPHA = 0.05
PREFIX = 200
"""Characters of an answer that the string kernel reads."""
MOST = 4000
"""Answers of both sides together that are compared, at most; more are drawn from by prompt."""
LEAST = 10
"""Prompts below which nothing is called equivalent or unchanged."""
MARGINS: Mapping[str, float] = {
    "text": 0.10, "text_over_prompts": 0.02, "embedding": 0.10, "embedding_over_prompts": 0.02, "length": 0.15,
    "length_distribution": 0.10, "declines": 0.10, "outcome": 0.10, "reward": 0.2, "kl_forward": 0.1,
    "kl_reverse": 0.1, "jsd": 0.02}
"""What still counts as the same. Of length a share of the baseline's mean, of reward in its deviations."""
BANDS = ((0.1, "below .1, usually called stable"), (0.25, ".1 to .25, usually called a small shift"),
         (math.inf, "above .25, usually called a shift"))
SIGNED = ("length", "declines", "reward")
"""Measures that go up and down; the others are distances."""
K, H = 0.5, 5.0
"""Slack and limit of the charts over releases, in deviations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer of one side."""

    prompt: str
    """Equal where the prompts are."""
    text: str
    reward: float | None = None
    outcomes: Mapping[str, str] = field(default_factory=dict)
    """By name, categories that its source gives it."""
    tokens: tuple[int, ...] | None = None
    state: tuple[float, ...] | None = None
    """A model's mean last hidden state over the answer."""


class Matched(NamedTuple):
    """The replies of both sides to the prompts that both answered, and how they lie."""

    replies: Sequence[Reply]
    layout: Layout
    counts: Mapping[str, int]


class Row(NamedTuple):
    """One measure before the family of all measures is looked at."""

    name: str
    says: str
    unit: str
    effect: Estimate
    margin: float
    within: bool
    """Whether the whole interval for equivalence lies within the margin."""
    method: str
    p: float
    test: Test | None = None
    growth: float = 2.0
    """The detectable change falls with n to the power of -1 / growth."""
    rate: bool = False
    detail: Mapping[str, Any] = {}


def match(baseline: Sequence[Reply], current: Sequence[Reply], *, names: tuple[str, str], seed: int = 0) -> Matched:
    """The replies to the prompts that both sides have. DataError where there is none, or nothing at all."""
    sides = [Counter(reply.prompt for reply in side) for side in (baseline, current)]
    for name, side in zip(names, sides, strict=True):
        if not side:
            raise DataError(f"{name}: holds no answer")
    shared = [prompt for prompt in sides[0] if prompt in sides[1]]
    if not shared:
        raise DataError(f"{names[0]} and {names[1]}: none of their {len(sides[0])} and {len(sides[1])} prompts is in "
                        "both; drift is measured on answers to the same prompts, which have to be equal to the letter")
    kept = _at_most(shared, sides, seed)
    number = {prompt: i for i, prompt in enumerate(kept)}
    both = [(reply, late) for late, side in enumerate((baseline, current)) for reply in side if reply.prompt in number]
    layout = Layout(np.array([number[reply.prompt] for reply, _ in both]), np.array([bool(late) for _, late in both]))
    counts = {"baseline_prompts": len(sides[0]), "current_prompts": len(sides[1]), "shared_prompts": len(shared),
              "prompts": len(kept), "baseline_answers": int((~layout.current).sum()),
              "current_answers": int(layout.current.sum()), "repeated_prompts": int(layout.repeated.sum())}
    return Matched([reply for reply, _ in both], layout, counts)


def _at_most(prompts: Sequence[str], sides: Sequence[Mapping[str, int]], seed: int) -> list[str]:
    """As many prompts, drawn by the seed and in their order, as have MOST answers together."""
    if sum(side[prompt] for prompt in prompts for side in sides) <= MOST:
        return list(prompts)
    total, taken = 0, set[int]()
    for i in np.random.default_rng(seed).permutation(len(prompts)):
        total += sum(side[prompts[i]] for side in sides)
        if total > MOST and taken:
            break
        taken.add(int(i))
    return [prompts[i] for i in sorted(taken)]


def drift_record(baseline: Sequence[Reply], current: Sequence[Reply], *,
                 names: tuple[str, str] = ("baseline", "current"), margins: Mapping[str, float] | None = None,
                 token_divergence: Mapping[str, Sequence[float]] | None = None, alpha: float = ALPHA,
                 seed: int = 0) -> dict[str, Any]:
    """Everything that `rlhflab drift` says of two sides.

    `token_divergence`: by `kl_forward`, `kl_reverse` and `jsd`, the mean nats a token of each prompt. `margins`
    replaces some of MARGINS.
    """
    allowed = {**MARGINS, **checked_margins(margins or {})}
    matched = match(baseline, current, names=names, seed=seed)
    rows = [*text_rows(matched, allowed, seed), *number_rows(matched, allowed, seed),
            *outcome_rows(matched, allowed, seed), *divergence_rows(token_divergence or {}, allowed)]
    judged = judge(rows, alpha=alpha)
    verdict = min((row["verdict"] for row in judged), key=VERDICTS.index)
    return dict(plain_json({
        "baseline": names[0], "current": names[1], **matched.counts, "verdict": verdict, "alpha": alpha,
        "correction": "Holm", "seed": seed, "measures": judged, "notes": notes(matched)}))


def checked_margins(margins: Mapping[str, float]) -> Mapping[str, float]:
    """The margins, if each has a measure's name and a number above 0."""
    for name, value in margins.items():
        if name not in MARGINS and not name.startswith("outcome:"):
            raise ConfigError(f"--margin {name}: is no measure; there are {', '.join(MARGINS)}")
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"--margin {name}: must be a number above 0, found {value:g}")
    return margins


# -- the measures ----------------------------------------------------------------------------------------------------


def text_rows(matched: Matched, margins: Mapping[str, float], seed: int) -> list[Row]:
    """The string kernel and the energy distance of embeddings.

    Within prompts where at least half of them have two answers a side, else over prompts, which needs one.
    """
    replies, layout = matched.replies, matched.layout
    within = 2 * layout.repeated.sum() >= layout.prompts
    if within:
        layout, kept = layout.only(layout.repeated)
        replies = [replies[i] for i in kept]
    text = np.unique([reply.text for reply in replies], return_inverse=True)[1]
    kind, codes = _codes(replies)
    embedding, vectors = _vectors(replies)
    rows = []
    for name, says, kernel, method in (
            ("text", f"the first {PREFIX} {kind} of answers", hamming(codes), "Hamming kernel MMD"),
            ("embedding", f"answers as a whole, by {embedding}", energy(vectors), "energy distance")):
        key = name if within else f"{name}_over_prompts"
        rows.append(_kernel_row(key, says, kernel, method, layout, text, margins[key], seed))
    return rows


def _kernel_row(name: str, says: str, kernel: Kernel, method: str, layout: Layout, text: Array, margin: float,
                seed: int) -> Row:
    within = not name.endswith("_over_prompts")
    test, effect = (within_test if within else over_test)(layout, kernel, text, seed=seed)
    where = "answers to one prompt" if within else "what all prompts share"
    return Row(name=name, says=f"{says}: {where}", unit="squared distance", effect=effect, margin=margin,
               within=effect.high < margin, method=f"{method}, permutations", p=test.p, test=test,
               growth=2.0 if within else 1.0)


def _codes(replies: Sequence[Reply]) -> tuple[str, Array]:
    """Tokens where every reply has them, else characters; -1 behind the end."""
    tokens = [reply.tokens for reply in replies]
    kind = "tokens" if all(each is not None for each in tokens) else "characters"
    starts = [list(reply.tokens or ())[:PREFIX] if kind == "tokens" else [ord(c) for c in reply.text[:PREFIX]]
              for reply in replies]
    codes = np.full((len(replies), max(1, *map(len, starts))), -1, dtype=np.int32)
    for row, start in zip(codes, starts, strict=True):
        row[:len(start)] = start
    return kind, codes


def _vectors(replies: Sequence[Reply]) -> tuple[str, Any]:
    """Hidden states in units of their spread where every reply has one, else TF-IDF of words."""
    states = [reply.state for reply in replies]
    if all(state is not None for state in states):
        found = np.array(states, dtype=float)
        found /= max(float(np.linalg.norm(found - found.mean(0), axis=1).mean()), 1e-12)
        return "mean last hidden state of the base", found
    texts = [reply.text for reply in replies]
    return "TF-IDF of their words", Vocabulary.of(texts).tf_idf(texts)


def number_rows(matched: Matched, margins: Mapping[str, float], seed: int) -> list[Row]:
    """Words, the share that declines, and the reward where every reply has one."""
    layout, replies = matched.layout, matched.replies
    length = np.array([float(len(words(reply.text))) for reply in replies])
    before = float(-np.minimum(layout.weight, 0) @ length)
    rows = [_mean_row("length", "words an answer", "words", layout, length, margins["length"] * max(before, 1.0), seed,
                      {"baseline": before, "current": float(np.maximum(layout.weight, 0) @ length)})]
    test, effect = ks_test(layout, length, seed=seed)
    rows.append(Row(name="length_distribution", says="the distribution of words an answer", unit="KS distance",
                    effect=effect, margin=margins["length_distribution"],
                    within=effect.high < margins["length_distribution"], method="Kolmogorov-Smirnov, permutations",
                    p=test.p, test=test))
    declining = np.array([float(declines(reply.text)) for reply in replies])
    shares = {"baseline": float(-np.minimum(layout.weight, 0) @ declining),
              "current": float(np.maximum(layout.weight, 0) @ declining)}
    rows.append(_mean_row("declines", "answers that decline, by their words", "share", layout, declining,
                          margins["declines"], seed, shares, rate=True))
    rewards = [reply.reward for reply in replies]
    known = np.array([reward for reward in rewards if reward is not None])
    if len(known) == len(rewards):
        spread = float(known[~layout.current].std(ddof=1)) if (~layout.current).sum() > 1 else 0.0
        if spread > 0:
            rows.append(_mean_row("reward", "reward an answer", "baseline deviations", layout, known / spread,
                                  margins["reward"], seed, {"deviation": spread}))
    return rows


def _mean_row(name: str, says: str, unit: str, layout: Layout, value: Array, margin: float, seed: int,
              detail: Mapping[str, Any], *, rate: bool = False) -> Row:
    test = mean_test(layout, value, seed=seed)
    wide, tost = change(prompt_differences(layout, value), rate=rate)
    return Row(name=name, says=says, unit=unit, effect=wide, margin=margin,
               within=-margin < tost.low and tost.high < margin, method="mean change, permutations", p=test.p,
               test=test, rate=rate, detail={**detail, "tost_low": tost.low, "tost_high": tost.high})


def outcome_rows(matched: Matched, margins: Mapping[str, float], seed: int) -> list[Row]:
    """The stability index of the answers' shapes, and of every category that all replies bring with them."""
    replies = matched.replies
    named = [name for name in replies[0].outcomes if all(name in reply.outcomes for reply in replies)]
    kinds = {"outcome": [shape(reply.text) for reply in replies],
             **{f"outcome:{name}": [reply.outcomes[name] for reply in replies] for name in named}}
    rows = []
    for name, values in kinds.items():
        labels, number = np.unique(values, return_inverse=True)
        if len(labels) > 20:
            raise DataError(f"{name.partition(':')[2]}: has {len(labels)} different values; an outcome is one of at "
                            "most 20")
        test, effect = psi_test(matched.layout, number, seed=seed)
        margin = margins.get(name, margins["outcome"])
        shares = {str(label): {"baseline": float(-np.minimum(matched.layout.weight, 0) @ (number == i)),
                               "current": float(np.maximum(matched.layout.weight, 0) @ (number == i))}
                  for i, label in enumerate(labels)}
        says = "what answers are: " + ", ".join(shares) if name == "outcome" else f"the category {name[8:]!r}"
        rows.append(Row(name=name, says=says, unit="PSI", effect=effect, margin=margin, within=effect.high < margin,
                        method="stability index, permutations", p=test.p, test=test, growth=1.0,
                        detail={"shares": shares, "by_chance": float(np.quantile(test.null, 0.95)),
                                "band": next(words for limit, words in BANDS if effect.mean < limit)}))
    return rows


def divergence_rows(found: Mapping[str, Sequence[float]], margins: Mapping[str, float]) -> list[Row]:
    """Token divergences between two models whose log-probs are known.

    They are 0 only between equal models, so that nothing is tested against 0: p is that the mean is no more than the
    margin.
    """
    says = {"kl_forward": "KL from the baseline to the current model, on the baseline's answers",
            "kl_reverse": "KL from the current model to the baseline, on the current answers",
            "jsd": "Jensen-Shannon divergence, on the answers of both"}
    rows = []
    for name, values in found.items():
        each = np.asarray(values, dtype=float)
        effect = over_prompts(each)
        rows.append(Row(name=name, says=says[name], unit="nats a token", effect=effect, margin=margins[name],
                        within=effect.high < margins[name], method="t test against the margin",
                        p=above(each, margins[name])))
    return rows


# -- the verdicts ----------------------------------------------------------------------------------------------------


def judge(rows: Sequence[Row], *, alpha: float) -> list[dict[str, Any]]:
    """Each row with its p by Holm over all rows, and its verdict.

    Changed: adjusted p below alpha, and not within the margin. Equivalent: within the margin, whether or not a
    difference was found; this needs no correction, since it is claimed of each measure alone. Too few: a change as
    large as the margin would have been missed too often.
    """
    return [_judged(row, adjusted, alpha, alpha / len(rows))
            for row, adjusted in zip(rows, holm([row.p for row in rows]), strict=True)]


def _judged(row: Row, adjusted: float, alpha: float, level: float) -> dict[str, Any]:
    n = row.effect.n
    if row.test is None:
        detectable = row.margin + (row.effect.high - row.effect.mean) if math.isfinite(row.effect.high) else math.inf
        blind, needed = True, _needed(n, (detectable - row.margin) / max(abs(row.margin - row.effect.mean), 1e-9), 2.0)
    else:
        detectable = row.test.detectable(level)
        needed = _needed(n, detectable / row.margin, row.growth)
        if row.rate:  # as many as leave a rate of the margin unlikely where none of them changed
            needed = max(needed, math.ceil(math.log(ALPHA) / math.log(1 - min(row.margin, 0.99))))
            detectable = max(detectable, zero_bound(n))
        blind = detectable > row.margin
    found = adjusted < alpha
    verdict: Verdict = "no difference found"
    if row.within and n >= LEAST:
        verdict = "equivalent"
    elif found:
        verdict = "changed"
    elif blind or n < LEAST:
        verdict = "too few to say"
    return {"name": row.name, "says": row.says, "verdict": verdict, "effect": row.effect, "unit": row.unit,
            "margin": row.margin, "p": row.p, "p_adjusted": adjusted, "difference_found": found, "method": row.method,
            "permutations": len(row.test.null) if row.test else None, "exact": row.test.exact if row.test else None,
            "detectable": detectable, "needed": max(needed, LEAST, n + 1) if verdict == "too few to say" else None,
            "z": row.test.z if row.test else None, "signed": row.name in SIGNED, "detail": dict(row.detail)}


def _needed(n: int, times: float, growth: float) -> int:
    """Prompts at which what is detectable has shrunk by so many times."""
    return math.ceil(n * times**growth) if math.isfinite(times) else LEAST


def notes(matched: Matched) -> list[str]:
    """What somebody has to know to read the verdicts."""
    counts, said = matched.counts, []
    most = max(counts["baseline_prompts"], counts["current_prompts"])
    if counts["shared_prompts"] < most:
        said.append(f"{counts['shared_prompts']} prompts are in both (baseline {counts['baseline_prompts']}, current "
                    f"{counts['current_prompts']}); the others say nothing.")
    if counts["prompts"] < counts["shared_prompts"]:
        said.append(f"{counts['prompts']} of the {counts['shared_prompts']} shared prompts were drawn, so that at most "
                    f"{MOST} answers are compared.")
    if 2 * counts["repeated_prompts"] < counts["prompts"]:
        said.append("Most prompts have one answer a side. Text and embedding are therefore compared over prompts: a "
                    "change that many answers share is found, one that each answer makes in its own way is not. Two "
                    "answers a prompt and side would tell.")
    return said


# -- over releases ---------------------------------------------------------------------------------------------------


def release_charts(records: Sequence[Mapping[str, Any]], *, k: float = K, h: float = H) -> dict[str, Any]:
    """One-sided CUSUM charts of each measure over the records of several releases, in their order.

    A value is the standard normal score of a release's permutation test, so that all measures have one scale; of a
    signed measure there is a chart for each direction. DataError for fewer than two records, or without a measure that
    all of them have.
    """
    if len(records) < 2:
        raise DataError(f"--history: {len(records)} record is no history; at least two are needed")
    tables = [{row["name"]: row for row in record["measures"] if row["z"] is not None} for record in records]
    shared = [name for name in tables[0] if all(name in table for table in tables)]
    if not shared:
        raise DataError("--history: the records have no measure in common")
    charts = []
    for name in shared:
        z = [float(table[name]["z"]) for table in tables]
        for side, values in (("above", z), *((("below", [-each for each in z]),) if tables[0][name]["signed"] else ())):
            chart = cusum(values, k=k)
            crossed = next((i for i, level in enumerate(chart) if level > h), None)
            charts.append({"measure": name, "side": side, "z": values, "chart": chart, "crossed": crossed,
                           "alarm": crossed is not None})
    average, chance = cusum_false_alarms(k=k, h=h, steps=len(records))
    baselines = {record["baseline"] for record in records}
    return {"releases": [record["current"] for record in records], "k": k, "h": h, "charts": charts,
            "alarms": sum(chart["alarm"] for chart in charts), "average_run_length": average,
            "false_alarm_chance": chance, "any_false_alarm_chance": min(1.0, chance * len(charts)),
            "shared_baseline": len(baselines) == 1 and len(records) > 1}


def draw_halves(replies: Sequence[Reply], *, seed: int) -> tuple[list[Reply], list[Reply]]:
    """One version's prompts in two random halves, paired at random so that each pair counts as one prompt.

    Nothing changed between them, whatever the prompts are: what is found is a false alarm.
    """
    by_prompt: dict[str, list[Reply]] = {}
    for reply in replies:
        by_prompt.setdefault(reply.prompt, []).append(reply)
    order = np.random.default_rng(seed).permutation(len(by_prompt))
    groups = [list(by_prompt.values())[i] for i in order]
    half = len(groups) // 2
    halves = [[replace(reply, prompt=f"pair {i}") for i, group in enumerate(part) for reply in group]
              for part in (groups[:half], groups[half:2 * half])]
    return halves[0], halves[1]
