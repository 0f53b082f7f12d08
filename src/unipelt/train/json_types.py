"""Checks values that were read from JSON or TOML against annotated types, so that a damaged file is one clear line."""

import json
from collections.abc import Mapping
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Found = TypeVar("Found")


def typed(kind: type[Found], found: Any) -> Found:
    """A dataclass from a JSON object. Raises ValueError for a field that is missing, unknown or of another type."""
    if not isinstance(found, dict):
        raise ValueError(f"holds a {type(found).__name__}, expected an object")
    check_fields(found, get_type_hints(kind))
    try:
        return kind(**found)
    except TypeError as error:  # a field is missing
        raise ValueError(str(error).removeprefix(f"{kind.__name__}.__init__() ")) from None


def check_fields(found: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    """Raises ValueError for the first field that is unknown, or whose value is of another type."""
    for name, value in found.items():
        if name not in kinds:
            raise ValueError(f"has a field {str(name)[:80]!r}, which is not known")
        if not fits(value, kinds[name]):
            raise ValueError(f"{name} is {json.dumps(value)[:80]}, expected {in_words(kinds[name])}")


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotated type: a whole number is also a number, true is neither."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if kind is None or kind is type(None):
        return value is None
    if origin is UnionType:
        return any(fits(value, one) for one in inner)
    if origin is dict:
        return isinstance(value, dict) and (inner[1] is Any or all(fits(one, inner[1]) for one in value.values()))
    if inner:  # a list or a sequence
        return isinstance(value, list) and (inner[0] is Any or all(fits(one, inner[0]) for one in value))
    return type(value) is kind or (kind is float and type(value) is int)


def in_words(kind: Any) -> str:
    """An annotated type as a user would say it."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return " or ".join(in_words(one) for one in inner if one is not type(None))
    if origin is dict:
        return "a table"
    if inner:
        return f"a list, each {in_words(inner[0])}"
    return {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}.get(kind, "a value")
