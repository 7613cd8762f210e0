"""Scenarios by name: tasks with a known right answer."""

from rlhflab.errors import ConfigError
from rlhflab.scenarios.base import Scenario
from rlhflab.scenarios.devtools import DEVTOOLS
from rlhflab.scenarios.helpdesk import HELPDESK
from rlhflab.scenarios.release_notes import RELEASE_NOTES

_SCENARIOS: dict[str, Scenario] = {each.name: each for each in (HELPDESK, RELEASE_NOTES, DEVTOOLS)}


def names() -> list[str]:
    """Every scenario's name."""
    return sorted(_SCENARIOS)


def scenario(name: str) -> Scenario:
    """The scenario of this name."""
    if name not in _SCENARIOS:
        raise ConfigError(f"no scenario is called {name!r}; there are {', '.join(names())}")
    return _SCENARIOS[name]
