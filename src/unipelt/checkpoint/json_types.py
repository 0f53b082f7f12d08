"""Checks values that were read from JSON or TOML against annotated types, so that a damaged file is one clear line."""

import json
from collections.abc import Mapping
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints, is_typeddict

Found = TypeVar("Found")


def typed(kind: type[Found], values: object) -> Found:
    """A dataclass from a JSON object. Raises ValueError for a field that is missing, unknown or of another type."""
    if not isinstance(values, dict):
        raise ValueError(f"holds a {type(values).__name__}, expected an object")
    check_fields(values, get_type_hints(kind))
    try:
        return kind(**values)
    except TypeError as error:  # a field is missing
        raise ValueError(str(error).removeprefix(f"{kind.__name__}.__init__() ")) from None


def check_fields(values: Mapping[str, object], kinds: Mapping[str, Any], inside: str = "") -> None:
    """Raises ValueError for the first field that is unknown, or whose value is of another type.

    A field that is a TypedDict has the keys that it must have, and may have others that are not known. inside: begins names.
    """
    for name, value in values.items():
        if name not in kinds and not inside:
            raise ValueError(f"has a field {str(name)[:80]!r}, which is not known")
        kind = kinds.get(name, object)
        if is_typeddict(kind) and isinstance(value, dict):
            for key in sorted(kind.__required_keys__ - value.keys()):
                raise ValueError(f"{inside}{name} has no {key!r}")
            check_fields(value, get_type_hints(kind), f"{inside}{name}.")
        elif not fits(value, kind):
            text = json.dumps(value, default=str)[:80]
            raise ValueError(f"{inside}{name} is {text}, expected {in_words(kind)}")


def fits(value: object, kind: Any) -> bool:
    """Whether a value is of an annotated type: a whole number is also a number, true is neither."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any or kind is object:
        return True
    if kind is None or kind is type(None):
        return value is None
    if origin is Literal:
        return value in inner
    if origin is UnionType:
        return any(fits(value, member) for member in inner)
    if origin is dict:
        return isinstance(value, dict) and all(fits(item, inner[1]) for item in value.values())
    if inner:  # a list or a sequence
        return isinstance(value, list) and all(fits(item, inner[0]) for item in value)
    return type(value) is kind or (kind is float and type(value) is int)


def without_none(kind: Any) -> Any:
    """The type of a field that may also be None: float of `float | None`."""
    kinds = [member for member in get_args(kind) if member is not type(None)]
    return kinds[0] if get_origin(kind) is UnionType and len(kinds) == 1 else kind


def in_words(kind: Any) -> str:
    """An annotated type as a user would say it."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return " or ".join(in_words(member) for member in inner if member is not type(None))
    if origin is Literal:
        return " or ".join(map(str, inner))
    if origin is dict or is_typeddict(kind):
        return "a table"
    if inner:
        return f"a list, each {in_words(inner[0])}"
    return {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}.get(kind, "a value")
