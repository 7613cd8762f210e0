"""Checks of length: what the budget drops or cuts, whether ends are learnt, and whether longer answers win."""

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from rlhflab.analysis.data_checks.base import (
    CannotSay,
    DataFinding,
    data_check,
    examples,
    share,
    told,
)
from rlhflab.core.calibration import length_correlation
from rlhflab.core.stats import mean_interval
from rlhflab.data.survey.columns import Survey, Tokens

QUANTILES = (0.5, 0.9, 0.95, 0.99, 1.0)
BUDGETS = (256, 512, 1024, 2048, 4096, 8192)
CORRELATED = 4000
"""Pairs, evenly taken, whose correlation of length and preference is measured: its bootstrap grows with them."""
BINS = 40


@data_check("length_budget", needs=("tokens",))
def length_budget(survey: Survey) -> DataFinding:
    """Rows whose prompt and longer answer do not fit into max_length tokens."""
    tokens = _tokens(survey)
    longest = tokens.longest
    over = np.flatnonzero(longest > tokens.max_length)
    rate = share(over.size, survey.rows)
    room = int((tokens.prompt >= tokens.max_length).sum())
    says = (f"{over.size:,} of {survey.rows:,} rows are longer than {tokens.max_length} tokens: {told(rate)}; "
            f"{room:,} have no room for an answer at all." if over.size else
            f"All {survey.rows:,} rows fit into {tokens.max_length} tokens; the longest has {int(longest.max())}.")
    fits = int(np.quantile(longest, 0.99, method="higher"))
    return DataFinding(
        verdict="look" if over.size else "clean", says=says, count=int(over.size), rate=rate, limited=rate.mean,
        examples=examples(survey, over), details={"quantiles": quantiles(tokens), "budgets": budgets(survey, tokens)},
        next=f"max_length: {fits} keeps 99 % of the rows; overlong: drop leaves the rest out, and error, the default, "
             "stops at the first." if over.size else "")


@data_check("end_tokens", needs=("tokens",))
def end_tokens(survey: Survey) -> DataFinding:
    """Answers whose end token would not be learnt, and what the tokenizer does to ends."""
    if survey.chat_problem:
        return DataFinding(verdict="fault", says=f"No conversation can be written: {survey.chat_problem}.", limited=1.0,
                           next="choose an instruct model, or put a chat template into the tokenizer's folder.")
    tokens = _tokens(survey)
    answers = tokens.answers > 0
    cut = answers & (tokens.prompt[:, None] + tokens.answers > tokens.max_length)
    n, lost = int(answers.sum()), int(cut.sum())
    if n == 0:
        raise CannotSay("there are no answers to look at")
    rate, facts = share(lost, n), tokens.chat
    notes = [f"the end token is {facts.turn_end}" + ("" if facts.written else ", which the template does not write")]
    if facts.pad == facts.turn_end:
        notes.append("it is also the padding token, so a trainer that masks padding by its id never learns to end "
                     "(this lab masks by length)")
    if facts.eos is not None and facts.eos != facts.turn_end:
        notes.append(f"generation elsewhere has to stop at it, not only at {facts.eos}")
    trained = share(n - lost, n)
    return DataFinding(
        verdict="look" if lost or not facts.written else "clean", count=lost, rate=rate, of="answers",
        limited=rate.mean,
        says=f"The end token of {n - lost:,} of {n:,} answers lies within {tokens.max_length} tokens: {told(trained)}; "
             f"{'; '.join(notes)}.", details={"end": facts.turn_end, "pad": facts.pad, "eos": facts.eos,
                                              "written_by_template": facts.written},
        next="do not cut answers: an answer without its end teaches to go on. overlong: drop leaves them out."
             if lost else "")


@data_check("length_bias", source="arXiv:2310.03716")
def length_bias(survey: Survey, *, look_from: Annotated[float, Field(ge=0.5, le=1)] = 0.55) -> DataFinding:
    """Share of pairs whose longer answer is chosen, and the correlation of length and preference."""
    decided = np.flatnonzero(survey.of("pair") & (survey.label != 0))
    if not decided.size:
        raise CannotSay("no pair prefers an answer")
    sides = np.where(survey.label[decided] == 1, 0, 1)
    chosen = survey.chars[decided, sides]
    rejected = survey.chars[decided, 1 - sides]
    differ = np.flatnonzero(chosen != rejected)
    if not differ.size:
        raise CannotSay("all answers of a pair are equally long")
    rate = mean_interval((chosen > rejected)[differ].astype(float).tolist(), survey.prompt[decided][differ].tolist())
    taken = np.linspace(0, decided.size - 1, min(CORRELATED, decided.size)).astype(int)
    correlation = length_correlation(
        np.repeat([1.0, 0.0], taken.size), np.concatenate([chosen[taken], rejected[taken]]).astype(float),
        [*survey.prompt[decided][taken].tolist()] * 2, within=True, draws=500)
    correlated = "" if correlation is None else (
        f" Within a prompt, length and preference correlate by {correlation.mean:.2f} [{correlation.low:.2f}, "
        f"{correlation.high:.2f}].")
    biased = rate.low > look_from or rate.high < 1 - look_from
    return DataFinding(
        verdict="look" if biased else "clean", count=int((chosen > rejected)[differ].sum()), rate=rate, of="pairs",
        limited=max(rate.mean, 1 - rate.mean),
        says=f"The longer answer is chosen in {told(rate)} of {rate.n:,} pairs whose answers differ in length."
             f"{correlated}", details={
                 "correlation": None if correlation is None else correlation._asdict(),
                 "medians": [float(np.median(chosen)), float(np.median(rejected))],
                 "histogram": histogram(chosen, rejected),
                 "by_difference": by_difference(survey, decided, chosen, rejected)},
        next="a reward model learns length from this before it learns quality: measure it (rlhflab report reward), or "
             "correct for it (length_head: true, --ld_alpha, length: mean)." if biased else "")


def quantiles(tokens: Tokens) -> list[dict[str, Any]]:
    """Tokens of prompts, answers and whole rows at some quantiles; rows without the part are left out."""
    parts: Mapping[str, NDArray[np.int32]] = {
        "prompt": tokens.prompt, "answer": tokens.answers.ravel(), "prompt and longer answer": tokens.longest}
    return [{"part": name, "n": int(values.size),
             **{f"{100 * each:.0f} %": int(np.quantile(values, each, method="higher")) for each in QUANTILES}}
            for name, part in parts.items() if (values := part[part > 0]).size]


def budgets(survey: Survey, tokens: Tokens) -> list[dict[str, Any]]:
    """What is dropped, or cut, at each length."""
    longest, pairs = tokens.longest, survey.of("pair")
    shorter = tokens.prompt + np.where(pairs, tokens.answers.min(axis=1), tokens.answers.max(axis=1))
    return [{"max_length": budget, "rows dropped": int((longest > budget).sum()),
             "share": float((longest > budget).mean()),
             "no answer whole": int((shorter > budget).sum()),
             "prompt alone too long": int((tokens.prompt >= budget).sum())}
            for budget in sorted({*BUDGETS, tokens.max_length})]


def histogram(chosen: NDArray[np.int32], rejected: NDArray[np.int32]) -> dict[str, list[float]]:
    """Shares of chosen and of rejected answers by length, in bins that are equally wide up to the 99th percentile."""
    top = max(float(np.quantile(np.concatenate([chosen, rejected]), 0.99)), 1.0)
    edges = np.linspace(0, top, BINS + 1)
    both = [np.histogram(np.minimum(lengths, top), bins=edges)[0] / lengths.size for lengths in (chosen, rejected)]
    return {"edges": edges.tolist(), "chosen": both[0].tolist(), "rejected": both[1].tolist()}


def by_difference(survey: Survey, decided: NDArray[np.int64], chosen: NDArray[np.int32],
                  rejected: NDArray[np.int32]) -> list[dict[str, Any]]:
    """Share of pairs whose longer answer is chosen, for five equal shares of them by how much longer it is."""
    longer, shorter = np.maximum(chosen, rejected), np.minimum(chosen, rejected)
    differ = np.flatnonzero(longer > shorter)
    ratio = longer[differ] / np.maximum(shorter[differ], 1)
    order = differ[np.argsort(ratio, kind="stable")]
    parts = [part for part in np.array_split(order, 5) if part.size]
    prompts = survey.prompt[decided]
    found = []
    for part in parts:
        times = longer[part] / np.maximum(shorter[part], 1)
        rate = mean_interval((chosen > rejected)[part].astype(float).tolist(), prompts[part].tolist())
        found.append({"low": float(times.min()), "high": float(times.max()), "longer_chosen": rate._asdict()})
    return found


def _tokens(survey: Survey) -> Tokens:
    if survey.tokens is None:
        raise CannotSay("tokens were not counted; leave --no-tokens out")
    if not survey.rows:
        raise CannotSay("there are no rows to look at")
    return survey.tokens
