"""IFEval's 25 types of instruction, checked by lm-eval's own checkers (extra `ifeval`). No copy of them here.

Two types split text by a model of NLTK's that has to be downloaded; where it is not there they are unscored.
"""

import importlib.util
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rlhflab.data.types import Prompt, Score
from rlhflab.errors import ConfigError

INSTALL = "pip install 'mini-rlhf-lab[ifeval]'"
NEED_DOWNLOAD = ("length_constraints:number_sentences", "change_case:capital_word_frequency")
"""Types that read NLTK's punkt_tab."""


def follows(prompt: Prompt, answer: str, *, loose: bool, share: bool,
            registry: Mapping[str, Any] | None = None) -> Score:
    """1 where all instructions of a prompt are followed, or the share of them; None where one cannot be checked.

    `registry`: type of instruction to checker, lm-eval's where absent. ConfigError where the extra is missing or a row
    names no known instruction.
    """
    ids, options = prompt.facts.get("instruction_id_list"), prompt.facts.get("kwargs")
    if not isinstance(ids, list) or not ids or not isinstance(options, list) or len(options) != len(ids):
        raise ConfigError(f"row {prompt.id}: facts need instruction_id_list and kwargs, two lists of one length")
    checkers = registry_of_lm_eval() if registry is None else registry
    unread = [each for each in ids if each in NEED_DOWNLOAD and registry is None and not has_punkt()]
    if unread:
        return Score(value=None, by="ifeval", reason=f"{unread[0]} needs NLTK's punkt_tab, which is not downloaded")
    asked = prompt.messages[-1].content
    tries = variants(answer) if loose else [answer]
    kept = [_kept(checkers, each, given or {}, asked, tries, prompt.id)
            for each, given in zip(ids, options, strict=True)]
    return Score(value=sum(kept) / len(kept) if share else float(all(kept)), by="ifeval")


def registry_of_lm_eval() -> Mapping[str, Any]:
    """lm-eval's checkers by type of instruction. ConfigError with the command where the extra is missing."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(f"ifeval: needs lm-eval's checkers, which are not installed; run: {INSTALL}")
    try:
        found: Mapping[str, Any] = importlib.import_module(
            "lm_eval.tasks.ifeval.instructions_registry").INSTRUCTION_DICT
        # Which language a text is in is found by chance too.
        importlib.import_module("langdetect").DetectorFactory.seed = 0
    except ImportError as error:
        raise ConfigError(f"ifeval: lm-eval's checkers cannot be imported ({error}); run: {INSTALL}") from error
    return found


def has_punkt() -> bool:
    """Whether NLTK's punkt_tab is on this machine."""
    try:
        importlib.import_module("nltk").data.find("tokenizers/punkt_tab")
    except (ImportError, LookupError):
        return False
    return True


def variants(answer: str) -> list[str]:
    """The eight forms of the loose measure: without first line, last line or both, and each without asterisks."""
    lines = answer.split("\n")
    shorter = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    return [form for text in (answer, *shorter) for form in (text, text.replace("*", ""))]


def _kept(checkers: Mapping[str, Any], name: str, options: Mapping[str, Any], asked: str, tries: Sequence[str],
          row: str) -> bool:
    """Whether one instruction is followed by one of the forms of an answer. An empty answer follows none."""
    if name not in checkers:
        raise ConfigError(f"row {row}: no instruction is called {name!r}; there are {', '.join(sorted(checkers))}")
    with _repeatable(f"{row} {name}"):
        checker = checkers[name](name)
        checker.build_description(**{key: value for key, value in options.items() if value})
        if "prompt" in (checker.get_instruction_args() or {}):
            checker.build_description(prompt=asked)
        return any(bool(text.strip() and checker.check_following(text)) for text in tries)


@contextmanager
def _repeatable(seed: str) -> Iterator[None]:
    """The same draws for the same row: some checkers take by chance what a row does not give, or gives as no letter."""
    before = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)
