"""The errors a user can cause. Each is one sentence that names the thing, what was found and what is accepted.

The command line prints the sentence and exits with 2; no traceback.
"""

from typing import Literal


class LabError(Exception):
    """Something the user can put right. `str(error)` is the whole message."""


class ConfigError(LabError):
    """A run file or a flag: unknown key, bad value, impossible combination."""


class DataError(LabError):
    """A data file: unreadable, empty, or a row that cannot be used. Names file, line and key."""

    line: int | None = None
    """Of the row, where it is one."""
    fault: Literal["broken", "empty", "identical"] = "broken"
    """What is wrong with the row: an empty text, two equal answers, or anything else."""


class ModelError(LabError):
    """A model or adapter: missing, unknown, unsafe or unsupported."""


class RunError(LabError):
    """A run folder that exists already, or a run that must stop (bad start, too many unscored rollouts)."""


class RegistryError(LabError):
    """A registry of adapters: an unknown name, a damaged file, or a change that is refused and leaves all as it was."""
