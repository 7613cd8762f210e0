"""Catalogues: options are checked by type and range, and described as JSON."""

from typing import Annotated

import pytest
from pydantic import Field

from rlhflab.catalog import Catalog
from rlhflab.errors import ConfigError
from rlhflab.listing import CATALOGUES, listing

shape: Catalog[object] = Catalog("shape")


@shape("scaled", needs=("a mean",), source="nowhere eq. 1")
def scaled(x: float, *, factor: Annotated[float, Field(gt=0, le=2)] = 1.0) -> float:
    """Times a factor.

    Not in the summary.
    """
    return factor * x


def test_options_out_of_range_name_the_option() -> None:
    with pytest.raises(ConfigError, match=r"reward.0.factor: .*less than or equal to 2.*options of scaled are: factor"):
        shape.bind("scaled", {"factor": 3}, where="reward.0")
    with pytest.raises(ConfigError, match=r"reward.0.faktor"):
        shape.bind("scaled", {"faktor": 1}, where="reward.0")
    with pytest.raises(ConfigError, match="no shape is called 'skaled'; there are scaled"):
        shape.bind("skaled", {}, where="reward.0")


def test_an_entry_describes_itself() -> None:
    entry = shape.entry("scaled", where="test")
    assert (entry.summary, entry.needs, entry.source) == ("Times a factor.", ("a mean",), "nowhere eq. 1")
    assert shape.bind("scaled", {"factor": 2}, where="test")(3.0) == 6.0  # type: ignore[operator]


def test_a_name_is_given_once() -> None:
    with pytest.raises(ValueError, match="registered twice"):
        shape("scaled")(scaled)


@pytest.mark.parametrize("name", CATALOGUES)
def test_every_catalogue_lists_itself_as_json_rows(name: str) -> None:
    for row in listing(name):
        own = ["gold"] if name == "detectors" else []
        assert list(row) == ["name", *own, "options", "needs", "admits", "source", "summary"]
        assert all(list(option) == ["type", "default", "range"] for option in row["options"].values())
        assert row["summary"]
