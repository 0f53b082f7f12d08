"""A table as it was read, before it is known what its columns mean, and the checks of its cells."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from unipelt.errors import DataError, did_you_mean

LISTED = 10  # columns or examples that a message names
TRANSLATION = "translation"  # a column of wmt16 and other data sets of the hub
WHOLE_NUMBER = re.compile(r"[+-]?\d+\.0+")


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How a file is written, so that predictions can be written the same way."""

    suffix: str
    delimiter: str = ","
    encoding: str = "utf-8"
    bom: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """Columns of equal length, by name."""

    name: str
    """file or hub name, for messages"""
    columns: dict[str, list[Any]]
    lines: Sequence[int] | None = None
    """line on which each example starts, where the format has lines"""
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """names behind the integers of a column, where the file declares them"""
    dialect: Dialect = Dialect(suffix=".csv")
    notes: tuple[str, ...] = ()
    """what a user should know about the file, one sentence each"""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def with_languages_apart(self) -> "Table":
        """The same with `translation`, whose cells are objects with a text per language, as a column per language."""
        cells = self.columns.get(TRANSLATION, [])
        if not cells or not all(isinstance(cell, dict) for cell in cells):
            return self
        languages = dict.fromkeys(language for cell in cells for language in cell)
        texts = {f"{TRANSLATION}.{language}": [cell.get(language) for cell in cells] for language in languages}
        return replace(self, columns={name: rows for name, rows in self.columns.items() if name != TRANSLATION} | texts)

    def example(self, index: int) -> str:
        """`reviews.csv, example 3 (line 4)`: examples count from 1, the header is none."""
        return f"{self.name}, example {index + 1}" + (f" (line {self.lines[index]})" if self.lines else "")

    def complete(self, columns: Iterable[str | None], *, skip_empty: bool) -> list[int]:
        """Indices of the examples that have a value in each of these columns; without skip_empty, of all.

        Raises DataError where values are missing and skip_empty is False, or where no example is complete.
        """
        indices = range(len(self))
        for column in filter(None, columns):
            declared = bool(self.classes.get(column))
            values = self.columns[column]
            gaps = {i for i in indices if is_missing(values[i]) or (declared and values[i] == -1)}  # -1: label withheld
            if gaps and not skip_empty:
                first, *more = sorted(gaps)
                shown = ", ".join(str(index + 1) for index in more[:LISTED]) + ", …" * (len(more) > LISTED)
                others = f", nor in {len(more)} more (example {shown})" if more else ""
                remedy = "fill in or remove them" if more else "fill it in or remove the example"
                raise DataError(
                    f"{self.example(first)}: no value in column {column!r}{others}; {remedy}, or add --skip-empty"
                )
            indices = [i for i in indices if i not in gaps]  # type: ignore[assignment]
        if len(self) and not indices:
            raise DataError(f"{self.name}: no example has a value in every column that is needed; fill them in")
        return list(indices)

    def texts(self, column: str, indices: Iterable[int]) -> list[str]:
        """Cells as texts; a number is its digits, as it is in a CSV file. Raises DataError for any other cell."""
        values = self.columns[column]
        for index in (indices := list(indices)):
            if not isinstance(values[index], str) and as_number(values[index]) is None:
                raise self._other_cell(index, column, "text")
            self._refuse_incomplete_character(index, column)
        return [str(values[index]) for index in indices]

    def lists(self, column: str, indices: Iterable[int]) -> list[list[str]]:
        """Cells that are lists, as lists of names: words, or tags. Raises DataError for any other cell."""
        rows = []
        for index in indices:
            cell, declared = self.columns[column][index], self.classes.get(column, ())
            if not isinstance(cell, list):
                raise self._other_cell(index, column, "a list")
            rows.append([class_name(declared_name(item, declared, self.example(index), column)) for item in cell])
        return rows

    def names(self, column: str, indices: Iterable[int]) -> list[str]:
        """Cells as class names: declared names where the file has them. Raises DataError for cells that are neither name nor number."""
        values, declared = self.columns[column], self.classes.get(column, ())
        names = []
        for index in indices:
            value = values[index]
            if not isinstance(value, str | int | float | Decimal):
                raise self._other_cell(index, column, "a name or a number")
            self._refuse_incomplete_character(index, column)
            names.append(class_name(declared_name(value, declared, self.example(index), column)))
        return names

    def numbers(self, column: str, indices: Iterable[int], largest: float) -> list[float]:
        """Cells as finite numbers of at most `largest` in size. Raises DataError for any other cell."""
        numbers = []
        for index in indices:
            value = as_number(self.columns[column][index])
            if value is None or not abs(value) <= largest:
                finite = f"at most {largest:g} in size" if value and math.isfinite(value) else "a finite number"
                raise self._other_cell(index, column, "a number for a regression" if value is None else finite)
            numbers.append(value)
        return numbers

    def label_index(self, labels: Sequence[str], name: str, index: int, column: str) -> int:
        """The index of a class name that an example has. Raises DataError for a name that training did not have."""
        if name not in labels:
            raise DataError(
                f"{self.example(index)}: label {name[:40]!r} in column {column!r} did not occur in training; "
                f"{did_you_mean(name, labels)}"
            )
        return labels.index(name)

    def _other_cell(self, index: int, column: str, expected: str) -> DataError:
        cell = shown(self.columns[column][index])
        return DataError(f"{self.example(index)}: column {column!r} holds {cell}, expected {expected}")

    def _refuse_incomplete_character(self, index: int, column: str) -> None:
        try:
            str(self.columns[column][index]).encode()
        except UnicodeEncodeError:
            raise DataError(
                f"{self.example(index)}: column {column!r} holds an incomplete character (a lone surrogate); save the file as UTF-8 again"
            ) from None


def declared_name(value: Any, declared: Sequence[str], source: str, column: str) -> Any:
    """The name that a file declares for an integer; any other value as it is."""
    if not declared or not isinstance(value, int) or isinstance(value, bool):
        return value
    if not 0 <= value < len(declared):
        raise DataError(f"{source}: label {value} in column {column!r}, expected 0 to {len(declared) - 1}")
    return declared[value]


def in_order(names: Iterable[str], declared: Sequence[str] = ()) -> tuple[str, ...]:
    """The names that occur: in the file's declared order, whole numbers by size, other names by alphabet."""
    unique = set(names)
    if unique <= set(declared):
        return tuple(name for name in declared if name in unique)
    numeric = all(re.fullmatch(r"[+-]?\d{1,18}", name) for name in unique)
    return tuple(sorted(unique, key=lambda name: (int(name), name) if numeric else (0, name)))


def class_name(value: Any) -> str:
    """1, 1.0 and '1.0' are one class: tables with gaps store whole numbers as floats."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    name = str(value).strip()
    return name.split(".")[0] if WHOLE_NUMBER.fullmatch(name) else name


def as_number(value: Any) -> float | None:
    """The number in a cell, or None."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def is_missing(value: Any) -> bool:
    """Whether a cell is empty: None, NaN, a blank text or an empty list."""
    if isinstance(value, str | list | tuple | dict):
        return not (value.strip() if isinstance(value, str) else value)
    return value is None or bool(value != value)


def as_cell(value: Any) -> Any:
    """A value for a text table: objects and lists as JSON."""
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, bool | dict | list) else value


def listed(names: Iterable[str]) -> str:
    """Names in quotes, the first ten of them."""
    names = list(names)
    more = f", … ({len(names):,} in all)" if len(names) > LISTED else ""
    return ", ".join(repr(name[:40]) for name in names[:LISTED]) + more


def shown(value: Any) -> str:
    """A cell for a message: its type and its first characters."""
    if value is None:
        return "nothing"
    return repr(value[:40]) if isinstance(value, str) else f"{type(value).__name__} {str(value)[:40]!r}"
