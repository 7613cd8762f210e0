"""A gate's record for continuous integration: JUnit XML and Markdown. Texts of models and files are escaped."""

from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

COLUMNS = ("suite", "metric", "verdict", "blocks", "candidate", "active", "change", "n", "unscored", "power",
           "detectable", "why")
MARKS = {"pass": "pass", "fail": "**fail**", "inconclusive": "**inconclusive**"}


def junit(record: Mapping[str, Any]) -> str:
    """One test case a row: a blocking row that does not pass is a failure, another that does not pass is skipped."""
    rows = record["rows"]
    blocked = [row for row in rows if row["blocks"]]
    warned = [row for row in rows if row["verdict"] != "pass" and not row["blocks"]]
    suite = ElementTree.Element("testsuite", name="rlhflab gate", tests=str(len(rows)), failures=str(len(blocked)),
                                errors="0", skipped=str(len(warned)))
    for row in rows:
        case = ElementTree.SubElement(suite, "testcase", classname=_clean(row["suite"]),
                                      name=_clean(f"{row['metric']} {row['test']}"))
        if row["blocks"]:
            ElementTree.SubElement(case, "failure", type=row["verdict"], message=_clean(row["reason"]))
        elif row["verdict"] != "pass":
            ElementTree.SubElement(case, "skipped", message=_clean(f"warning, {row['verdict']}: {row['reason']}"))
        ElementTree.SubElement(case, "system-out").text = _clean(row["reason"])
    whole = ElementTree.Element("testsuites")
    whole.append(suite)
    ElementTree.indent(whole)
    return ElementTree.tostring(whole, encoding="unicode", xml_declaration=True) + "\n"


def markdown(record: Mapping[str, Any]) -> str:
    """The record as a page: verdict first, then a table of the rows."""
    lines = [f"# Gate: {record['verdict']}", "",
             f"Candidate {_code(record['candidate'])} against {_code(record['active'])}, policy "
             f"{_code(record['policy'])}, base {_code(record['base'])}, {record['dtype']}; {power_words(record)}.", "",
             f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for row in record["rows"]:
        interval = "-" if row["change"] is None else \
            f"{_number(row['change'])} [{_number(row['low'])}, {_number(row['high'])}]"
        cells = (row["suite"], row["metric"], MARKS[row["verdict"]],
                 "yes" if row["blocking"] else "warns", _number(row["candidate"]), _number(row["active"]), interval,
                 str(row["n"]), str(row["unscored"]), _number(row["power"]), _number(row["detectable"]), row["reason"])
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return "\n".join([*lines, "", "Each bound of a change holds with a confidence of "
                      f"{record['confidence']:g}.", ""])


def power_words(record: Mapping[str, Any]) -> str:
    """How many rows could have kept the candidate out: a pass by rows without power says little."""
    return f"{sum(row['blocking'] for row in record['rows'])} of {len(record['rows'])} rows had the power to block"


def stopped_by(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """The rows that keep the candidate out, with their reasons."""
    return [{key: row[key] for key in ("suite", "metric", "verdict", "reason")} for row in record["rows"]
            if row["blocks"]]


def verdict_cells(record: Mapping[str, Any]) -> list[list[str]]:
    """Suite, metric, verdict, whether it blocks, and the reason of each row, for a table on a terminal."""
    return [[row["suite"], row["metric"], row["verdict"], "blocks" if row["blocks"] else "-", row["reason"]]
            for row in record["rows"]]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _cell(text: str) -> str:
    """Text that cannot end its cell, its row, or the table."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _code(text: str | None) -> str:
    return "`" + _cell(str(text)).replace("`", "'") + "`"


def _clean(text: str) -> str:
    """Without the control characters that XML cannot hold."""
    return "".join(c for c in text if c in "\t\n" or (ord(c) >= 32 and ord(c) not in (0xFFFE, 0xFFFF)))
