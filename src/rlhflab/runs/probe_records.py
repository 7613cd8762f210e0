"""The probes of a run's reward roles, from the reports that `rlhflab report reward` stored. No model and no torch here.

A report counts for a role only if it is of the role's very weights; nothing is measured where there is none.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlhflab.analysis.reward_report import Record, evidence_probes
from rlhflab.config import SampledRun, read_yaml
from rlhflab.errors import DataError
from rlhflab.registry.records import WEIGHTS
from rlhflab.registry.sources import folder_digest

REPORT = "reward_report.json"


class Probed(NamedTuple):
    """What is known of how a run's reward roles take perturbed answers."""

    probes: Mapping[str, Sequence[float]]
    """`Evidence.probes`; empty unless all roles have a report."""
    how: str = ""
    """How to come by what is missing; empty where nothing is."""


def roles_of(reward: Any) -> list[Path]:
    """Folders of the reward roles that the key `reward` of a run's settings names."""
    sources = reward if isinstance(reward, list) else []
    return [Path(source["path"]) for source in sources
            if isinstance(source, Mapping) and source.get("name") == "role" and isinstance(source.get("path"), str)]


def probed_run(run: SampledRun) -> Probed:
    """The stored probes of the roles that a run is rewarded by."""
    return stored_probes(roles_of([source.model_dump() for source in run.reward]))


def probed_folder(folder: Path, given: Path | None = None) -> Probed:
    """The same of a run's folder, or the probes of the report in the file `given`.

    DataError where that is a report on none of these roles. A relative path starts where the command runs.
    """
    config = folder / "config.yaml"
    roles = roles_of(read_yaml(config, what="run file").get("reward")) if config.is_file() else []
    return stored_probes(roles) if given is None else Probed(evidence_probes(given_report(given, roles)))


def stored_probes(roles: Sequence[Path]) -> Probed:
    """The probes of all these roles, by perturbation, or what to do for the first one that has no report."""
    found: dict[str, Sequence[float]] = {}
    distinct = list(dict.fromkeys(roles))
    for role in distinct:
        if not (role / WEIGHTS).is_file():
            return Probed({}, f"give the report on {role} as --probes, since the role is not there (a relative path "
                              "starts where the command runs)")
        command = f"`rlhflab report reward {shlex.quote(str(role))}`"
        reports = [read_report(path) for path in (role / REPORT, role.resolve().parent.parent / REPORT)
                   if path.is_file()]
        report = next((each for each in reports if each.get("role_digest") == folder_digest(role)), None)
        if report is None:
            again = ", since the report beside it is not of these weights" if reports else ""
            return Probed({}, f"report on the reward model{again}: {command}")
        found |= {name if len(distinct) == 1 else f"{name} ({role})": changes
                  for name, changes in evidence_probes(report).items()}
    return Probed(found, "" if found else "reward by a reward role and report on it (`rlhflab report reward ROLE`), or "
                                          "give such a report as --probes")


def given_report(path: Path, roles: Sequence[Path]) -> Record:
    """The report in a file. DataError where it is of other weights than each of the roles, if there are any here."""
    report = read_report(path)
    here = {folder_digest(role): role for role in roles if (role / WEIGHTS).is_file()}
    if here and report.get("role_digest") not in here:
        names = " or ".join(f"{role} ({digest[:12]})" for digest, role in here.items())
        raise DataError(f"--probes {path}: is a report on {report.get('role', 'a role without a name')} "
                        f"({str(report.get('role_digest', 'no digest'))[:12]}), while the run is rewarded by {names}")
    return report


def read_report(path: Path) -> Record:
    """What `rlhflab report reward` wrote. DataError where a file is something else."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except ValueError as error:
        raise DataError(f"{path}: is not JSON ({error})") from error
    probes = report.get("probes") if isinstance(report, dict) else None
    if not isinstance(probes, list) or not all(_is_probe(each) for each in probes):
        raise DataError(f"{path}: is no report of `rlhflab report reward`: it needs a list 'probes' of objects with a "
                        "'name' and a list of numbers 'changes'")
    return dict(report)


def _is_probe(value: Any) -> bool:
    return (isinstance(value, dict) and isinstance(value.get("name"), str) and isinstance(value.get("changes"), list)
            and all(isinstance(x, int | float) and not isinstance(x, bool) for x in value["changes"]))
