"""A gate policy: which metrics of which suites are tested, with what margin, and which of them block. No test here."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from rlhflab.config import Settings, checked, read_yaml
from rlhflab.errors import ConfigError
from rlhflab.suites.suite import SHIPPED


class PolicyRow(Settings):
    """One test of a candidate against the active model."""

    suite: str
    """A name of `rlhflab list suites`, or a suite's folder, relative to the policy."""
    metric: str
    test: Literal["non_inferior", "no_new_failures", "exact"] = "non_inferior"
    """non_inferior: the change is not worse than the margin. no_new_failures: of the share of prompts that pass with
    the active model and fail with the candidate, the upper bound is below the margin. exact: every value is 1."""
    margin: float | None = Field(None, gt=0)
    """The largest loss that is accepted, in units of the metric. Declared before anything is trained."""
    relative: bool = False
    """The margin is a share of the active model's mean."""
    blocking: bool = True
    discordance: float | None = Field(None, ge=0)
    """Mean square of the paired change between two seeds of one model (for rates the share of items that differ), or
    for no_new_failures their share of new failures; relative where the margin is. benchmarks/gate_aa.py measures it."""

    @model_validator(mode="after")
    def _with_a_margin(self) -> Self:
        if self.test == "exact" and (self.margin is not None or self.relative or self.discordance is not None):
            raise ValueError("test exact takes no margin, relative or discordance: every value must be 1")
        if self.test != "exact" and self.margin is None:
            raise ValueError(f"test {self.test} needs a margin")
        if self.test != "exact" and self.blocking and self.discordance is None:
            raise ValueError("a blocking row needs its discordance, without which its power is not known")
        if self.relative and self.test != "non_inferior":
            raise ValueError("relative goes only with test non_inferior")
        return self


class GatePolicy(Settings):
    """What a policy file says."""

    about: str = ""
    prompts: Mapping[str, int] = Field(default_factory=dict)
    """Prompts of a suite that are asked, at most, by its name; all where absent."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Of each one-sided bound."""
    power: float = Field(0.99, gt=0, lt=1)
    """A row blocks only if an equally good candidate passes it with this chance."""
    rows: tuple[PolicyRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPolicy:
    """A policy and the file it stands in."""

    name: str
    digest: str
    """sha256 of the file."""
    folder: Path
    policy: GatePolicy

    def first(self, n: int | None) -> "ReadPolicy":
        """The policy on at most `n` prompts a suite, whose name says so; as it is where None."""
        if n is None:
            return self
        prompts = {row.suite: min(n, self.policy.prompts.get(row.suite, n)) for row in self.policy.rows}
        return replace(self, name=f"{self.name} on {n} prompts a suite",
                       policy=self.policy.model_copy(update={"prompts": prompts}))


def read_policy(name: str) -> ReadPolicy:
    """A shipped policy by its name (`gate.yaml`, `demo.yaml`), or a file. ConfigError names file, row and key."""
    path = Path(name)
    if not path.is_file() and (SHIPPED / name).is_file() and path.name == name:
        path = SHIPPED / name
    if not path.is_file():
        raise ConfigError(f"{path}: no such gate policy; give a file, or one of those that come along: "
                          f"{', '.join(sorted(each.name for each in SHIPPED.glob('*.yaml')))}")
    content = read_yaml(path, what="gate policy")
    rows = content.get("rows")
    if not isinstance(rows, list) or not rows:
        raise ConfigError(f"{path}: rows: is missing or empty; a policy needs at least one row with suite, metric and "
                          "margin")
    read = []
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ConfigError(f"{path}: rows.{i}: a row holds keys and values, found {type(row).__name__}")
        read.append(checked(PolicyRow, row, where=f"{path}: rows.{i}", what="policy row"))
    places = [(row.suite, row.metric, row.test) for row in read]
    twice = next((place for i, place in enumerate(places) if place in places[:i]), None)
    if twice:
        raise ConfigError(f"{path}: rows: {' '.join(twice)} is there twice")
    policy = checked(GatePolicy, {**content, "rows": read}, where=str(path), what="gate policy")
    unused = [suite for suite in policy.prompts if suite not in {row.suite for row in read}]
    if unused:
        raise ConfigError(f"{path}: prompts.{unused[0]}: no row is of this suite")
    if any(count < 1 for count in policy.prompts.values()):
        raise ConfigError(f"{path}: prompts: a suite needs at least one prompt")
    return ReadPolicy(name=path.name, digest=hashlib.sha256(path.read_bytes()).hexdigest(), folder=path.parent,
                      policy=policy)
