"""Commands about labels: data agreement, data judge, data select."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from rlhflab.commands.shared import Count, Form, Json, Seed, print_table, print_value, quietly

Share = Annotated[float, Parameter(validator=Number(gte=0, lte=1))]


def agreement_command(file: Path, /, *, judge: list[str] | None = None, form: Form = None, skip_bad: bool = False,
                      out: Path | None = None, as_json: Json = False) -> None:
    """Say how far annotators agree, who of them is reliable, and how noisy their labels are.

    Kappa of Cohen and Fleiss, Krippendorff's alpha, reliability by Dawid and Skene, position, length and time, and the
    share of flipped labels, which is what a robust loss and the noise ceiling of a reward model ask for.

    Args:
        file: Judged comparisons in any format of `rlhflab list formats`, or the .sqlite file of an annotation store.
        judge: An annotator, or a key of `meta`, who is not one of the people but measured against their majority;
            give it again for another one.
        form: The format; found out by the first rows where absent.
        skip_bad: Leave out broken rows and count them, instead of stopping at the first.
        out: The new folder of the record and its page; under runs/ where absent.
        as_json: Print the record as JSON.
    """
    from rlhflab.progress import Progress
    from rlhflab.runs.agreement import measure_agreement

    record = quietly(lambda: measure_agreement(file, form=form, judges=judge or [], skip_bad=skip_bad, out=out,
                                               progress=Progress()))
    if as_json:
        print_value(record, True)
        return
    from rlhflab.analysis.agreement_page import main_table

    print_table(main_table(record), False)
    print(f"Wrote {record['page']}.", *record["advice"], sep="\n")


def judge_command(file: Path, /, *, judge: str, served_as: str | None = None, adapter: Path | None = None,
                  rubric: str | None = None, labelled: Path | None = None, min_agreement: Share = 0.6,
                  max_new_tokens: Count = 8, token_env: str | None = None, form: Form = None, skip_bad: bool = False,
                  out: Path | None = None, as_json: Json = False) -> None:
    """Let a model judge comparisons, if people's own labels vouch for it.

    Each comparison is asked in both orders; a verdict that changes with the order, or cannot be read, is none. The
    judge begins with what people judged, and writes nothing where it is with them too seldom. Replies are kept, so
    that the same question to the same judge is asked once.

    Args:
        file: Comparisons, judged by people or not, in any format of `rlhflab list formats`.
        judge: A name of `rlhflab models`, a hub id, a local folder, or the address of a server that speaks OpenAI's
            chat completions, such as http://localhost:8000.
        served_as: The model's name at that address.
        adapter: The adapter folder of a judge that is loaded here.
        rubric: What the judge is to judge by, or a file that says it.
        labelled: Comparisons that people judged, on which the judge is measured; those of the file itself where absent.
        min_agreement: Least share of them on which the judge is with the majority of people; 0 for not asking.
        max_new_tokens: Longest reply, tokens.
        token_env: The environment variable with the token that the server asks for.
        form: The format of the file; found out by its first rows where absent.
        skip_bad: Leave out broken rows and count them, instead of stopping at the first.
        out: The JSONL file of the labels; FILE.judged.jsonl where absent.
        as_json: Print what was done as JSON.
    """
    from rlhflab.progress import Progress
    from rlhflab.rollout.judges import CRITERIA
    from rlhflab.runs.judging import judge_file, open_judge

    text = rubric and (Path(rubric).read_text(encoding="utf-8").strip() if Path(rubric).is_file() else rubric)
    target = out or _beside(file, "judged")
    found = quietly(lambda: judge_file(
        file, open_judge(judge, served_as=served_as, adapter=adapter, max_new_tokens=max_new_tokens,
                         token_env=token_env),
        out=target, rubric=text or CRITERIA, labelled=labelled, min_agreement=min_agreement, form=form,
        skip_bad=skip_bad, progress=Progress()))
    print_value(found, as_json)
    if not as_json:
        print(f"Wrote {target}. Next: rlhflab data agreement {target} --judge {found['judge']}")


def select_command(file: Path, /, *, n: Count = 100,
                   by: Literal["disagreement", "near_tie", "coverage", "random"] = "random", form: Form = None,
                   skip_bad: bool = False, seed: Seed = 0, out: Path | None = None, as_json: Json = False) -> None:
    """Choose which comparisons to have judged next.

    docs/results/active-selection.md says how little a clever choice has been worth beside a random one so far.

    Args:
        file: Comparisons, some of them judged, in any format of `rlhflab list formats`.
        n: How many, at most.
        by: disagreement of an ensemble, or near_tie of its mean score, both learnt from what is judged already;
            coverage of words by what is furthest from all judged; or random.
        form: The format of the file; found out by its first rows where absent.
        skip_bad: Leave out broken rows and count them, instead of stopping at the first.
        seed: Of the ensemble and of equal ranks.
        out: The JSONL file of comparisons; FILE.selected.jsonl where absent.
        as_json: Print what was done as JSON.
    """
    from rlhflab.progress import Progress
    from rlhflab.runs.selecting import select_comparisons

    target = out or _beside(file, "selected")
    found = quietly(lambda: select_comparisons(file, n=n, by=by, out=target, form=form, skip_bad=skip_bad, seed=seed,
                                               progress=Progress()))
    print_value(found, as_json)
    if not as_json:
        print(f"Wrote {target}. Next: have these judged, then rlhflab data agreement on the judgments.")


def _beside(file: Path, what: str) -> Path:
    """`pairs.jsonl.gz` -> `pairs.judged.jsonl`."""
    return file.with_name(f"{file.name.partition('.')[0]}.{what}.jsonl")
