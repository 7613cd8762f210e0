"""A part of JSON Schema (2020-12): the keywords that a check of an answer's form needs. Others are refused."""

from collections.abc import Mapping
from typing import Any

TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "number": (int, float), "integer": (int,),
    "boolean": (bool,), "null": (type(None),)}
KEYWORDS = {"type", "enum", "const", "required", "properties", "additionalProperties", "items", "minItems", "maxItems",
            "minLength", "maxLength", "minimum", "maximum"}


def checked_schema(schema: dict[str, Any], where: str = "") -> dict[str, Any]:
    """The schema, if every keyword and type in it is known; else ValueError names the first that is not."""
    unknown = sorted(set(schema) - KEYWORDS)
    if unknown:
        raise ValueError(f"keyword {where}{unknown[0]!r} is not known; known are {', '.join(sorted(KEYWORDS))}")
    if schema.get("type", "object") not in TYPES:
        raise ValueError(f"type {where}{schema['type']!r} is not known; known are {', '.join(TYPES)}")
    below = {**schema.get("properties", {}), **({"items": schema["items"]} if "items" in schema else {})}
    for name, inner in below.items():
        checked_schema(inner, f"{where}{name}.")
    return schema


def fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a JSON value fits the schema. A number with a zero fraction is an integer; true is not a number."""
    if "type" in schema and not _is(value, schema["type"]):
        return False
    if "enum" in schema and not any(_same(value, each) for each in schema["enum"]):
        return False
    if "const" in schema and not _same(value, schema["const"]):
        return False
    if isinstance(value, dict) and not _object_fits(value, schema):
        return False
    if isinstance(value, list) and "items" in schema and not all(fits(each, schema["items"]) for each in value):
        return False
    return _within(value, schema)


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    whole = name == "integer" and isinstance(value, float) and value.is_integer()
    return isinstance(value, TYPES[name]) or whole


def _same(value: Any, other: Any) -> bool:
    """Equal, and both or neither true or false, which Python takes for 1 and 0."""
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)


def _object_fits(value: Mapping[str, Any], schema: Mapping[str, Any]) -> bool:
    properties, more = schema.get("properties", {}), schema.get("additionalProperties", True)
    if not set(schema.get("required", ())) <= set(value):
        return False
    if more is False and not set(value) <= set(properties):
        return False
    return all(fits(inner, properties[name]) for name, inner in value.items() if name in properties)


def _within(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether length or size is within the bounds that apply to the value's type."""
    if isinstance(value, str):
        size, low, high = float(len(value)), "minLength", "maxLength"
    elif isinstance(value, list):
        size, low, high = float(len(value)), "minItems", "maxItems"
    elif isinstance(value, int | float) and not isinstance(value, bool):
        size, low, high = float(value), "minimum", "maximum"
    else:
        return True
    return bool(schema.get(low, float("-inf")) <= size <= schema.get(high, float("inf")))
