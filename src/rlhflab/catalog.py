"""Catalogues: one way to choose a variant by name.

A decorated function joins a catalogue; its keyword-only parameters are the options of a run file, their
defaults and types are the schema, and the first line of its docstring is the description.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from rlhflab.errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])


class Catalog(Generic[F]):
    """Functions of one kind by name. Third parties join by naming a module in the entry-point group `rlhflab`."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, F] = {}

    def __call__(self, name: str) -> Callable[[F], F]:
        """Decorator: `@preference_loss("dpo")`. A name is given once."""

        def join(function: F) -> F:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = function
            return function

        return join

    def names(self) -> list[str]:
        """Every name, third parties' included, in alphabetical order."""
        for entry in entry_points(group="rlhflab"):
            entry.load()
        return sorted(self._entries)

    def describe(self) -> list[tuple[str, str, str]]:
        """(name, options with defaults, first line of the docstring) of each entry, for `rlhflab list`."""
        rows = []
        for name in self.names():
            function = self._entries[name]
            options = ", ".join(f"{p.name}={p.default!r}" for p in _options(function))
            rows.append((name, options, (inspect.getdoc(function) or "").partition("\n")[0]))
        return rows

    def bind(self, name: str, options: Mapping[str, Any], *, where: str) -> F:
        """The function with its options checked and filled in. ConfigError names `where` and the option."""
        if name not in self._entries and name not in self.names():
            raise ConfigError(f"{where}: no {self.kind} is called {name!r}; there are {', '.join(self.names())}")
        function = self._entries[name]
        try:
            checked = _schema(function)(**options)
        except ValidationError as error:
            problem = error.errors()[0]
            known = ", ".join(p.name for p in _options(function)) or "none"
            raise ConfigError(f"{where}.{'.'.join(map(str, problem['loc']))}: {problem['msg']}; "
                              f"the options of {name} are: {known}") from error
        return partial(function, **dict(checked))  # type: ignore[return-value]


def _options(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The keyword-only parameters with a default: those a run file may set."""
    return [p for p in inspect.signature(function).parameters.values()
            if p.kind is p.KEYWORD_ONLY and p.default is not p.empty]


def _schema(function: Callable[..., Any]) -> type[BaseModel]:
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {p.name: (hints[p.name], p.default) for p in _options(function)}
    return create_model("Options", __config__=ConfigDict(extra="forbid"), **fields)
