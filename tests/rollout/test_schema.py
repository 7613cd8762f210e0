"""The part of JSON Schema that answers are checked by."""

from typing import Any

import pytest

from rlhflab.data.types import Message, Prompt
from rlhflab.errors import ConfigError
from rlhflab.rollout.verifiers import verifier

PERSON = {"type": "object", "required": ["name"], "additionalProperties": False, "properties": {
    "name": {"type": "string", "minLength": 1}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
    "tags": {"type": "array", "items": {"enum": ["a", 1]}, "maxItems": 2}}}


def passes(answer: str, schema: dict[str, Any]) -> float | None:
    prompt = Prompt(id="p", messages=(Message(role="user", content="?"),))
    return verifier.bind("json_schema", {"shape": schema}, where="check")(prompt, answer).value


@pytest.mark.parametrize(("answer", "fits"), [
    ('{"name": "Ann", "age": 3.0, "tags": ["a", 1]}', 1), ('{"name": "Ann"}', 1), ('{"age": 3}', 0),
    ('{"name": ""}', 0), ('{"name": "Ann", "age": 3.5}', 0), ('{"name": "Ann", "age": -1}', 0),
    ('{"name": "Ann", "age": true}', 0), ('{"name": "Ann", "more": 1}', 0), ('{"name": "Ann", "tags": ["a", 1, 1]}', 0),
    ('{"name": "Ann", "tags": [true]}', 0),  # true is not 1
    ('["Ann"]', 0), ("Ann", 0), ('{"name": "Ann", "age": NaN}', 0),
])
def test_an_object_fits_or_not(answer: str, fits: float) -> None:
    assert passes(answer, PERSON) == fits


@pytest.mark.parametrize(("schema", "sentence"), [
    ({"pattern": "a"}, "keyword 'pattern' is not known; known are additionalProperties"),
    ({"type": "text"}, "type 'text' is not known; known are object"),
    ({"properties": {"a": {"oneOf": []}}}, "keyword a.'oneOf' is not known"),
])
def test_what_would_be_ignored_is_refused(schema: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=f"check.shape: .*{sentence}"):
        passes("1", schema)
