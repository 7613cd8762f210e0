"""Check of languages: which there are, and answers in another language than their prompt. Needs py3langid."""

from collections import Counter
from typing import Annotated

from pydantic import Field

from rlhflab.analysis.data_checks.base import CannotSay, DataFinding, Example, data_check, share, told
from rlhflab.data.survey.columns import Survey

MAIN = 0.98
"""Share of the main language below which the finding says to look."""


@data_check("languages", needs=("py3langid",), source="py3langid, after Lui & Baldwin 2012")
def languages(survey: Survey, *, least_characters: Annotated[int, Field(ge=1)] = 60,
              least_confidence: Annotated[float, Field(ge=0, le=1)] = 0.9) -> DataFinding:
    """Languages of an even sample of rows, and answers in another language than their prompt."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise CannotSay("py3langid is not installed; pip install 'mini-rlhf-lab[data]'") from error
    identify = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

    def told_from(text: str) -> str | None:
        if len(text) < least_characters:
            return None
        language, confidence = identify.classify(text)
        return str(language) if confidence >= least_confidence else None

    both = [(opened.row, told_from(opened.prompt), told_from(opened.answer)) for opened in survey.sample]
    known = [(row, answer or prompt) for row, prompt, answer in both if answer or prompt]
    if not known:
        raise CannotSay(f"no text of {least_characters} characters has a language that can be told")
    counts = Counter(language for _, language in known)
    main, most = counts.most_common(1)[0]
    rate = share(len(known) - most, len(known))
    crossed = [(row, prompt, answer) for row, prompt, answer in both if prompt and answer and prompt != answer]
    comparable = sum(bool(prompt and answer) for _, prompt, answer in both)
    mixed = "" if not comparable else (f" {len(crossed):,} of {comparable:,} answers are in another language than "
                                       f"their prompt: {told(share(len(crossed), comparable))}.")
    look = most / len(known) < MAIN or len(crossed) > (1 - MAIN) * max(comparable, 1)
    return DataFinding(
        verdict="look" if look else "clean", count=rate.n - most, rate=rate, of="sampled rows", limited=rate.mean,
        says=f"{most:,} of {len(known):,} sampled rows are in {main}, {told(rate)} in another language.{mixed}",
        examples=[Example(survey.place(row), f"prompt {prompt}, answer {answer}: {survey.excerpt[row]}")
                  for row, prompt, answer in crossed[:5]],
        details={"languages": dict(counts.most_common(12)), "sampled": len(survey.sample), "told": len(known)},
        next="decide whether the other languages are meant to be learnt; judges and suites often read one." if look
        else "")
