"""Checks of rows beside others: contradictions, copies, near copies, prompts that cross a split, and evaluations."""

from collections.abc import Iterable, Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rlhflab.analysis.data_checks.base import (
    SHOWN,
    CannotSay,
    DataFinding,
    Example,
    Rows,
    combined,
    comparison_keys,
    data_check,
    examples,
    fault,
    grouped,
)
from rlhflab.data.survey.columns import Survey
from rlhflab.data.survey.texts import Places, Signatures, similar_rows
from rlhflab.data.survey.texts import similarity as similar

Similarity = Annotated[float, Field(gt=0, le=1)]
BANDS_OF_ROWS = 20
"""Of 3 values from the prompts and 3 from the answers: both at a similarity of .8 are met with probability .998."""
BANDS_OF_PROMPTS = 12
"""Of 5 values: a similarity of .8 is met with probability .992."""


@data_check("contradictory")
def contradictory(survey: Survey) -> DataFinding:
    """Rows that prefer A over B beside rows that prefer B over A; one answer with a thumb up and a thumb down."""
    keys, label = comparison_keys(survey)
    judged = np.flatnonzero(label != 0)
    groups = [judged[group] for group in grouped(keys[judged])]
    split = [group for group in groups if np.unique(label[group]).size > 1]
    drop: dict[int, str] = {}
    for group in split:
        lead = int(label[group].sum())
        kept = np.sign(lead)
        others = ", ".join(survey.place(int(row)) for row in group[:SHOWN])
        drop |= {int(row): f"contradicts another of {others}" for row in group if lead == 0 or label[row] != kept}
    return fault(np.concatenate(split) if split else [], int(judged.size), of="judged rows",
                 what="contradict another row", examples=_groups(survey, split), drop=drop,
                 next_step="judge them again, or leave them out: --fix keeps the side that more rows take, and neither "
                           "where they are even. What single judgments are worth, the label noise says.")


@data_check("duplicates")
def duplicates(survey: Survey) -> DataFinding:
    """Rows that say the same as an earlier row of their split: prompt, answers in either order, and label."""
    keys, label = comparison_keys(survey)
    said = combined(keys, label.astype(np.int64).view(np.uint64))
    groups = grouped(combined(said, survey.split.astype(np.uint64)))
    extra = [int(row) for group in groups for row in np.sort(group)[1:]]
    first = {int(row): survey.place(int(group.min())) for group in groups for row in group}
    return fault(extra, survey.rows, what="are a copy of an earlier row", examples=_groups(survey, groups),
                 drop={row: f"a copy of {first[row]}" for row in extra},
                 next_step="leave the copies out (--fix does), unless each is a judgment of its own: training would "
                           "weigh them several times.")


@data_check("near_duplicates", needs=("near",), source="Broder 1997; arXiv:2107.06499")
def near_duplicates(survey: Survey, *, similarity: Similarity = 0.8) -> DataFinding:
    """Rows whose prompt and whose answers are both nearly those of another row, by MinHash over runs of three words."""
    if survey.signatures is None:
        raise CannotSay("signatures were not made")
    keys = combined(comparison_keys(survey)[0], survey.split.astype(np.uint64))
    _, firsts = np.unique(keys, return_index=True)
    prompts, first_answers, second_answers = (found[firsts] for found in survey.signatures)
    kinds, splits = survey.kind[firsts], survey.split[firsts]

    def alike(pairs: Places) -> NDArray[np.bool_]:
        a, b = pairs[:, 0], pairs[:, 1]

        def close(left: Signatures, right: Signatures) -> NDArray[np.bool_]:
            return similar(left[a], right[b]) >= similarity

        straight = close(first_answers, first_answers) & close(second_answers, second_answers)
        crossed = close(first_answers, second_answers) & close(second_answers, first_answers)
        same = (kinds[a] == kinds[b]) & (splits[a] == splits[b])  # across splits it is a leak
        return np.asarray(same & close(prompts, prompts) & (straight | crossed))

    # The signature of a union is the smaller value of each two, so it does not matter which answer is first.
    pairs = firsts[similar_rows(prompts, np.minimum(first_answers, second_answers), bands=BANDS_OF_ROWS, alike=alike)]
    groups = _connected(pairs, survey.rows)
    extra = [int(row) for group in groups for row in group[1:]]
    first = {int(row): survey.place(int(group[0])) for group in groups for row in group}
    return fault(extra, int(firsts.size), of="different rows", what="are nearly a copy of an earlier row",
                 examples=_groups(survey, groups), drop={row: f"nearly a copy of {first[row]}" for row in extra},
                 next_step="look at some; --fix keeps the first of each group.",
                 details={"similarity": similarity, "groups": len(groups)})


@data_check("leaks", needs=("near", "splits"))
def leaks(survey: Survey, *, similarity: Similarity = 0.8) -> DataFinding:
    """Rows of the smaller splits whose prompt, or nearly the same prompt, stands in another split."""
    if len(survey.splits) < 2:
        raise CannotSay("there is one split; give several files, or rows with a field split")
    sizes = np.bincount(survey.split, minlength=len(survey.splits))
    largest = int(sizes.argmax())
    shared = _in_several(survey.prompt, survey.split)
    near = np.zeros(survey.rows, dtype=bool)
    if survey.signatures is not None:
        for a, b in _near_prompts(survey, similarity):
            near[[a, b]] |= survey.split[a] != survey.split[b]
    held_out = survey.split != largest
    rows = np.flatnonzero((shared | near) & held_out)
    exact = int((shared & held_out).sum())
    named = ", ".join(f"{name} ({size:,})" for name, size in zip(survey.splits, sizes, strict=True))
    return fault(rows, int(held_out.sum()), of="held-out rows", what="have a prompt that another split has, too",
                 examples=_across(survey, rows), details={"exact": exact, "near": len(rows) - exact, "splits": named},
                 drop={int(row): "its prompt is also in another split"
                       for row in np.flatnonzero((shared | near) & ~held_out)},
                 next_step=f"--fix leaves such prompts out of the largest split, {survey.splits[largest]}; "
                           "rlhflab data split makes splits that share no prompt.")


@data_check("contamination", needs=("suites",), source="arXiv:2204.02311 section 8")
def contamination(survey: Survey, *, share: Similarity = 0.7, similarity: Similarity = 0.8) -> DataFinding:
    """Rows that hold an evaluation's prompt: the same one, nearly the same one, or most of its runs of eight words."""
    if not survey.suites:
        raise CannotSay("no evaluation was named; give --against with a scenario, a suite or a file")
    met: dict[int, tuple[int, int, str]] = {}
    for place, suite in enumerate(survey.suites):
        for row in map(int, np.flatnonzero(np.isin(survey.asked, suite.exact))):
            met[row] = place, int(np.flatnonzero(suite.exact == survey.asked[row])[0]), "the same prompt"
        if survey.signatures is not None:
            for near, prompt in _near_suite(survey, place, similarity):
                met.setdefault(near, (place, prompt, "nearly the same prompt"))
    for found in survey.met:
        if found.share >= share:
            met.setdefault(found.row, (found.suite, found.prompt, f"{found.share:.0%} of its runs of words"))
    rows = sorted(met)
    suites = {suite.name: {"prompts": suite.prompts, "met": len({p for s, p, _ in met.values() if s == place}),
                           "rows": sum(s == place for s, _, _ in met.values())}
              for place, suite in enumerate(survey.suites)}
    shown = [Example(survey.place(row), f"{survey.suites[met[row][0]].name} prompt {met[row][1] + 1}: {met[row][2]}. "
                                        f"{survey.excerpt[row]}") for row in rows[:SHOWN]]
    return fault(rows, survey.rows, what="hold a prompt of an evaluation", examples=shown, details={"suites": suites},
                 drop={row: f"holds a prompt of {survey.suites[met[row][0]].name}" for row in rows},
                 next_step="leave them out (--fix does), or the evaluation measures memory.")


def _near_prompts(survey: Survey, similarity: float) -> Places:
    """Pairs of rows, one for each prompt and split, whose prompts are nearly the same."""
    assert survey.signatures is not None
    _, firsts = np.unique(combined(survey.asked, survey.split.astype(np.uint64)), return_index=True)
    return firsts[_similar(survey.signatures[0][firsts], similarity)]


def _near_suite(survey: Survey, place: int, similarity: float) -> Iterable[tuple[int, int]]:
    """(row, prompt of the suite) that are nearly the same."""
    assert survey.signatures is not None
    known = survey.suites[place].signatures
    both = np.concatenate([known, survey.signatures[0]])
    # Equal signatures once each: a prompt with many answers would else stand for many comparisons.
    _, firsts, member = np.unique(both, axis=0, return_index=True, return_inverse=True)
    rows_of = grouped_by(member)
    for a, b in [*_similar(both[firsts], similarity), *((i, i) for i in rows_of)]:
        members = np.concatenate([rows_of[a], rows_of[b]]) if a != b else rows_of[a]
        prompts = members[members < len(known)]
        if prompts.size:
            yield from ((int(row) - len(known), int(prompts[0])) for row in members[members >= len(known)])


def _similar(found: Signatures, least: float) -> Places:
    """Pairs of prompts that are at least so similar."""
    return similar_rows(found, bands=BANDS_OF_PROMPTS,
                        alike=lambda pairs: similar(found[pairs[:, 0]], found[pairs[:, 1]]) >= least)


def grouped_by(member: NDArray[np.int64]) -> dict[int, Rows]:
    """The places of each number."""
    order = np.argsort(member, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(member[order])) + 1)
    return {int(member[part[0]]): part for part in parts if part.size}


def _in_several(keys: NDArray[np.uint64], split: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which rows share their key with a row of another split."""
    _, member = np.unique(keys, return_inverse=True)
    low = np.full(int(member.max(initial=-1)) + 1, np.iinfo(np.int32).max, dtype=np.int32)
    high = np.full(low.size, -1, dtype=np.int32)
    np.minimum.at(low, member, split)
    np.maximum.at(high, member, split)
    return np.asarray((low != high)[member])


def _connected(pairs: Places, n: int) -> list[Rows]:
    """Rows that are joined by pairs, each group in order."""
    graph = coo_array((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    member = connected_components(graph, directed=False)[1]
    met = np.unique(pairs)
    return [met[group] for group in grouped(member[met])]


def _groups(survey: Survey, groups: Sequence[Rows]) -> list[Example]:
    """The first few groups, each as one example."""
    return [Example(", ".join(survey.place(int(row)) for row in np.sort(group)[:3])
                    + (f" and {group.size - 3} more" if group.size > 3 else ""), survey.excerpt[int(group.min())])
            for group in groups[:SHOWN]]


def _across(survey: Survey, rows: Rows) -> list[Example]:
    """Rows with the split that they are in."""
    return [Example(f"{each.where} ({survey.splits[survey.split[row]]})", each.text)
            for each, row in zip(examples(survey, rows), rows, strict=False)]
