"""The command drift."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from rlhflab.commands.shared import (
    ALARM,
    DEFAULT_MODEL,
    SEVERAL,
    Count,
    Folder,
    Json,
    Seed,
    print_table,
    print_value,
    quietly,
    registry_folder,
)
from rlhflab.errors import ConfigError

Level = Annotated[float, Parameter(validator=Number(gt=0, lt=1))]
Temperature = Annotated[float, Parameter(validator=Number(gte=0))]


def drift_command(baseline: str | None = None, current: str | None = None, /, *, history: Annotated[
                  list[Path] | None, SEVERAL] = None, prompts: str | None = None,
                  baseline_rows: str | None = None, current_rows: str | None = None, outcome: list[str] | None = None,
                  margin: list[str] | None = None, model: str | None = None, served_as: list[str] | None = None,
                  token_env: str | None = None, n: Count | None = None, samples: Count = 4,
                  max_new_tokens: Count = 64, temperature: Temperature = 1.0, alpha: Level = 0.05, seed: Seed = 0,
                  out: Path | None = None, registry: Folder = None, fail_on_drift: bool = False,
                  as_json: Json = False) -> int:
    """Say whether answers to the same prompts have changed, by how much, or that nobody can tell yet.

    Compared are texts, length, refusals, outcomes, and where they are known rewards and log-probs. A side is a file
    of answers, an adapter (a folder of any trainer, a name in the registry, or DEPLOYMENT@active), base, or the
    address of a server that speaks OpenAI's chat completions. Every measure is tested by permutations within a
    prompt, p is Holm's over all measures, and "no difference found" is told from "equivalent". One side alone is
    asked, and its answers are kept for later. Exit code 3 means that something changed, with --fail-on-drift only.

    Args:
        baseline: The side that is known.
        current: The side that is new.
        history: Files drift.json of earlier comparisons instead: charts over releases.
        prompts: A JSONL file, or a scenario, for sides that answer now; where absent, the prompts of the other side's
            file, else helpdesk.
        baseline_rows: COLUMN=VALUE, the rows of a file that are the baseline.
        current_rows: COLUMN=VALUE, the rows that are current; with both, one file is enough.
        outcome: A column of files that is a category, such as passed; again for another one.
        margin: MEASURE=NUMBER, what still counts as the same; again for another one.
        model: The base of adapters, the one they name where absent; with files, what embeds answers.
        served_as: The model's name at an address; twice where the two sides have two names.
        token_env: The environment variable with the token that a server asks for.
        n: Prompts that sides are asked, at most.
        samples: Answers a prompt of a side that answers now; two or more tell most.
        max_new_tokens: Longest answer of a side that answers now, tokens.
        temperature: Of a side that answers now.
        alpha: Chance of any false alarm among all measures.
        seed: Of permutations and of sampling.
        out: The new folder; under runs/ where absent.
        registry: Where names of adapters are looked up; $RLHFLAB_REGISTRY, or registry here, where absent.
        fail_on_drift: Exit with 3 where a measure changed, or a chart is in alarm.
        as_json: Print the record as JSON.
    """
    from rlhflab.progress import Progress
    from rlhflab.runs.drift import Asked, chart_history, find_drift, keep_answers, sides_of

    if (baseline is None) == (history is None):
        raise ConfigError("drift: give a baseline and a current side, or --history with records of earlier comparisons")
    if history is not None:
        charts = quietly(lambda: chart_history(history, out=out))
        from rlhflab.analysis.drift_page import chart_table, history_says

        if as_json:
            print_value(charts, True)
        else:
            print_table(chart_table(charts), False)
            print(f"\n{history_says(charts)}\nWrote {charts['folder']}. Next: open {charts['page']} in a browser")
        return ALARM if fail_on_drift and charts["alarms"] else 0
    assert baseline is not None
    first, second = sides_of(baseline, current, rows=(baseline_rows, current_rows), served_as=served_as or (),
                             registry=registry_folder(registry))
    asked = Asked(model=model, default_model=DEFAULT_MODEL, prompts=prompts, n=n, samples=samples,
                  max_new_tokens=max_new_tokens, temperature=temperature, token_env=token_env,
                  outcomes=tuple(outcome or ()), margins=dict(_margin(text) for text in margin or ()), alpha=alpha,
                  seed=seed)
    if second is None:
        path = quietly(lambda: keep_answers(first, asked, out=out, progress=Progress()))
        print_value({"answers": str(path)}, True) if as_json else print(
            f"Wrote {path}. Next, when there is something new: rlhflab drift {path} {baseline}")
        return 0
    record = quietly(lambda: find_drift(first, second, asked, out=out, progress=Progress()))
    from rlhflab.analysis.drift_page import main_table, says

    if as_json:
        print_value(record, True)
    else:
        print_table(main_table(record), False)
        print("\n".join(["", *record["notes"], says(record),
                         f"Wrote {record['folder']}. Next: open {record['page']} in a browser"]))
    return ALARM if fail_on_drift and record["verdict"] == "changed" else 0


def _margin(text: str) -> tuple[str, float]:
    name, sign, value = text.rpartition("=")
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not sign or number != number:
        raise ConfigError(f"--margin: must be MEASURE=NUMBER, found {text!r}")
    return name, number
