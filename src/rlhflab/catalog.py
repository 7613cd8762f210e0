"""Catalogues: one way to choose a variant by name.

A decorated function joins a catalogue; its keyword-only parameters are the options of a run file, their
defaults and types are the schema, and the first line of its docstring is the description. A range stands in the type:
`beta: Annotated[float, Field(gt=0)] = 0.1`.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic.fields import FieldInfo

from rlhflab.errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry(Generic[F]):
    """One variant of a catalogue."""

    name: str
    function: F
    needs: tuple[str, ...]
    """What has to be there for it: `reference`, `pairs`, `labels`, a package ..."""
    source: str
    """Paper and equation, or code, it follows."""
    admits: tuple[str, ...] = ()
    """Keys of a run beside its own options that go with it."""

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @property
    def fields(self) -> Mapping[str, FieldInfo]:
        """Type, range and default of each option."""
        return _schema(self.function).model_fields


class Catalog(Generic[F]):
    """Functions of one kind by name. Third parties join by naming a module in the entry-point group `rlhflab`."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry[F]] = {}

    def __call__(self, name: str, *, needs: tuple[str, ...] = (), source: str = "",
                 admits: tuple[str, ...] = ()) -> Callable[[F], F]:
        """Decorator: `@preference_loss("dpo", needs=("pairs", "reference"), source="arXiv:2305.18290 eq. 7")`."""

        def join(function: F) -> F:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = Entry(name=name, function=function, needs=needs, source=source,
                                        admits=admits)
            return function

        return join

    def names(self) -> list[str]:
        """Every name, third parties' included, in alphabetical order."""
        for entry in entry_points(group="rlhflab"):
            entry.load()
        return sorted(self._entries)

    def entries(self) -> list[Entry[F]]:
        """Every entry, by name."""
        return [self._entries[name] for name in self.names()]

    def entry(self, name: str, *, where: str) -> Entry[F]:
        """The entry called `name`. ConfigError names `where` and what there is."""
        if name not in self._entries and name not in self.names():
            raise ConfigError(f"{where}: no {self.kind} is called {name!r}; there are {', '.join(self.names())}")
        return self._entries[name]

    def bind(self, name: str, options: Mapping[str, Any], *, where: str) -> F:
        """The function with its options checked and filled in. ConfigError names `where` and the option."""
        function = self.entry(name, where=where).function
        schema = _schema(function)
        try:
            checked = schema(**options)
        except ValidationError as error:
            problem = error.errors()[0]
            known = ", ".join(schema.model_fields) or "none"
            raise ConfigError(f"{where}.{'.'.join(map(str, problem['loc']))}: {problem['msg']}; "
                              f"the options of {name} are: {known}") from error
        options = {key: getattr(checked, key) for key in schema.model_fields}  # an option may be called `keys`
        return partial(function, **options)  # type: ignore[return-value]


def _schema(function: Callable[..., Any]) -> type[BaseModel]:
    """A model of the keyword-only parameters with a default: those a run file may set."""
    hints = get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters.values()
    fields: dict[str, Any] = {p.name: (hints[p.name], p.default) for p in parameters
                              if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}
    return create_model("Options", __config__=ConfigDict(extra="forbid"), **fields)
