"""Class names: their order and their indices."""

import re
from collections.abc import Iterable, Sequence

from unipelt.data import Table
from unipelt.errors import DataError, did_you_mean


def in_order(names: Iterable[str], declared: Sequence[str] = ()) -> tuple[str, ...]:
    """The names that occur: in the file's declared order, whole numbers by size, other names by alphabet."""
    found = set(names)
    if found <= set(declared):
        return tuple(name for name in declared if name in found)
    whole = all(re.fullmatch(r"[+-]?\d{1,18}", name) for name in found)
    return tuple(sorted(found, key=lambda name: (int(name), name) if whole else (0, name)))


def index_of(labels: Sequence[str], name: str, table: Table, index: int, column: str) -> int:
    """The index of a class name. Raises DataError for a name that training did not have."""
    try:
        return labels.index(name)
    except ValueError:
        raise DataError(
            f"{table.example(index)}: label {name[:40]!r} in column {column!r} did not occur in training; "
            f"{did_you_mean(name, labels)}"
        ) from None
