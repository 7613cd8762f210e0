"""Checks of a row by itself: broken, empty, identical, control tokens, transcripts, secrets."""

from collections import Counter
from dataclasses import replace

import numpy as np

from rlhflab.analysis.data_checks.base import (
    CannotSay,
    DataFinding,
    Example,
    data_check,
    examples,
    fault,
)
from rlhflab.data.survey.columns import BadRow, Marked, Survey
from rlhflab.data.survey.texts import content_hash

NOTHING = (0, content_hash(""))
"""Content hashes of an answer without text."""


@data_check("broken")
def broken(survey: Survey) -> DataFinding:
    """Rows that cannot be read: no JSON, a missing or wrong field."""
    bad = [row for row in survey.bad if row.fault == "broken"]
    return fault(range(len(bad)), survey.rows + len(survey.bad), what="cannot be read",
                 examples=[_example(row) for row in bad],
                 next_step="mend them at their source; --fix leaves them out.")


@data_check("empty")
def empty(survey: Survey) -> DataFinding:
    """Rows with an empty prompt or answer."""
    has = np.isin(survey.answers, NOTHING)
    missing = np.flatnonzero((has[:, 0] & ~survey.of("prompt")) | (has[:, 1] & survey.of("pair")))
    bad = [row for row in survey.bad if row.fault == "empty"]
    return fault(range(missing.size + len(bad)), survey.rows + len(survey.bad), what="have an empty prompt or answer",
                 examples=[*map(_example, bad), *examples(survey, missing)],
                 next_step="leave them out (--fix does): an empty answer teaches to say nothing.",
                 drop={int(row): "empty" for row in missing})


@data_check("identical")
def identical(survey: Survey) -> DataFinding:
    """Pairs whose two answers are equal but for spaces."""
    pairs = survey.of("pair")
    same = np.flatnonzero(pairs & (survey.answers[:, 0] == survey.answers[:, 1]) & (survey.answers[:, 0] != 0))
    bad = [row for row in survey.bad if row.fault == "identical"]
    return fault(range(same.size + len(bad)), int(pairs.sum()) + len(bad), of="pairs", what="have two equal answers",
                 examples=[*map(_example, bad), *examples(survey, same)],
                 next_step="leave them out (--fix does): no preference can be learnt from them.",
                 drop={int(row): "identical answers" for row in same})


@data_check("identical_when_cut", needs=("tokens",))
def identical_when_cut(survey: Survey) -> DataFinding:
    """Pairs whose answers are equal as far as the length budget lets them be read."""
    tokens, pairs = survey.tokens, int(survey.of("pair").sum())
    if tokens is None:
        raise CannotSay("tokens were not counted; leave --no-tokens out")
    same = np.flatnonzero(tokens.same_when_cut)
    return fault(same, pairs, of="pairs", what=f"have equal answers once cut to {tokens.max_length} tokens",
                 examples=examples(survey, same),
                 next_step="raise --max-length, or leave them out (--fix does). This lab never cuts, it refuses or "
                           "drops rows that are too long; trainers that cut would learn a coin's choice.",
                 drop={int(row): f"identical answers within {tokens.max_length} tokens" for row in same})


@data_check("control_tokens")
def control_tokens(survey: Survey) -> DataFinding:
    """Rows whose text spells out a control token of a chat template."""
    return _marked(survey, [mark for mark in survey.markers if mark.kind == "control token"],
                   what="spell out a control token of a chat template",
                   next_step="take the tokens out of the text at its source: where the tokenizer knows them, an answer "
                             "ends, or another speaker begins, in the middle of it.")


@data_check("transcripts")
def transcripts(survey: Survey) -> DataFinding:
    """Rows in which turns of a conversation stand as lines of one text."""
    return _marked(survey, [mark for mark in survey.markers if mark.kind == "transcript"],
                   what="hold turns such as “Human:” and “Assistant:” as plain lines",
                   next_step="give the turns as messages with roles, so that the model's own template is used.")


@data_check("secrets")
def secrets(survey: Survey) -> DataFinding:
    """Rows with keys, tokens, e-mail addresses or phone numbers."""
    found = _marked(survey, survey.secrets, what="hold a key, an address or a phone number",
                    next_step="take them out before anybody trains on them (--fix writes [removed: KIND]); a key that "
                              "was published is to be revoked. Patterns miss some and take some number for a phone.")
    rows = tuple(sorted({mark.row for mark in survey.secrets}))
    return replace(found, redact=rows, details={"kinds": dict(Counter(m.kind for m in survey.secrets).most_common())})


def _marked(survey: Survey, marks: list[Marked] | tuple[Marked, ...], *, what: str, next_step: str) -> DataFinding:
    rows = sorted({mark.row for mark in marks})
    shown: dict[int, str] = {}
    for mark in marks:
        shown.setdefault(mark.row, f"{mark.where}: {mark.shown}")
    return fault(rows, survey.rows, what=what, next_step=next_step,
                 examples=[Example(survey.place(row), text) for row, text in sorted(shown.items())])


def _example(row: BadRow) -> Example:
    return Example(row.path.name if row.line is None else f"{row.path.name}:{row.line}", row.sentence)
