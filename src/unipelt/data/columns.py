"""From named columns to texts and labels: which column is what, and whether every row can be used."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from unipelt.data.task import Columns, Examples, Kind, Task
from unipelt.errors import DataError, did_you_mean

TEXTS = ("text", "sentence", "review", "content", "comment", "message", "document", "body", "tweet", "utterance")
PAIRS = (
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("text1", "text2"),
)
LABELS = ("label", "labels", "stars", "rating", "category", "target", "class", "score", "sentiment", "topic", "intent")
INDICES = ("", "id", "idx", "index", "unnamed: 0")  # row numbers, as GLUE and pandas write them

NAMED = 10  # rows, of those that lack a value, that a message names

WHOLE = re.compile(r"[+-]?\d+\.0+")
LARGEST = 1e30  # beyond, what a head is put back into after training leaves float32


@dataclass(frozen=True, kw_only=True)
class Table:
    """Columns as they were read, before it is known what they mean."""

    place: str
    """file or hub name, for messages"""
    columns: dict[str, list[Any]]
    lines: list[int] | None = None
    """line on which each row starts, where the format has lines"""
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """names behind the integers of a column, where the file declares them"""

    def row(self, index: int) -> str:
        """`reviews.csv, row 3 (line 4)`: rows count from 1, the header apart."""
        return f"{self.place}, row {index + 1}" + (f" (line {self.lines[index]})" if self.lines else "")


def choose_columns(
    table: Table,
    *,
    text: str | None,
    pair: str | None,
    label: str | None,
    for_prediction: bool,
    trained: Columns | None = None,
) -> Columns:
    """The columns given, then those that a run was trained on, and for the others the only column that can be meant."""
    for flag, column in {"--text": text, "--pair": pair, "--label": label}.items():
        if column is not None and column not in table.columns:
            raise DataError(f"{table.place} has no column {column!r} ({flag}); {did_you_mean(column, table.columns)}")
    if trained is not None:
        text, pair = text or trained.text, pair or trained.pair
        for flag, column in {"--text": text, "--pair": pair}.items():
            if column is not None and column not in table.columns:
                raise DataError(
                    f"{table.place} has no column {column!r}, which the run was trained on, but "
                    f"{_listed(name[:40] for name in table.columns)}; give it that header, or name its column with {flag}"
                )
    named = [column for column in (text, pair, label) if column is not None]
    if len(set(named)) < len(named):
        raise DataError(f"{table.place}: one column is named twice among {_listed(named)}; give a column to each flag")
    if pair is not None and text is None:
        raise DataError(f"{table.place}: --pair {pair!r} is the second text; name the first one with --text")

    free = [column for column in table.columns if column not in named and column.casefold() not in INDICES]
    if label is None:
        found = [column for column in free if column.casefold() in LABELS]
        if len(found) > 1 and not for_prediction:
            raise DataError(f"{table.place}: columns {_listed(found)} could each be the label; choose with --label")
        free = [column for column in free if column not in found] if text is None else free
        label = found[0] if found and not for_prediction else None
    if text is None:
        text, pair = _text_columns(table, free)
        for column in (text, pair):
            if column is not None and all(number(value) is not None for value in table.columns[column]):
                raise DataError(
                    f"{table.place}: column {column!r} holds numbers, expected text; choose with --text which one is meant"
                )
    if label is None and not for_prediction:
        label = _only_other(table, [column for column in free if column not in (text, pair)], text)
    return Columns(text=text, pair=pair, label=label)


def task_and_rows(
    table: Table, columns: Columns, *, name: str, labels: Sequence[str] | None = None, kind: Kind | None = None
) -> tuple[Task, Examples]:
    """The task that the label column describes, and every row of it; `labels`: the only class names allowed."""
    first = texts(table, columns.text)
    second = None if columns.pair is None else texts(table, columns.pair)
    names = tuple(labels or ())
    numbers: list[int] | list[float] | None = None
    kind = kind or ("classification" if labels else None)
    if columns.label is not None:
        values = label_values(table, columns.label)
        kind = kind or kind_of(table, columns.label, values)
        if kind == "regression":
            numbers = label_numbers(table, columns.label, values)
        else:
            names, numbers = label_indices(table, columns.label, values, labels)
    kind = kind or "classification"
    metric = "spearman" if kind == "regression" else "accuracy"
    task = Task(name=name, kind=kind, labels=names, metric=metric, pair=second is not None, columns=columns)
    return task, Examples(first=first, second=second, labels=numbers)


def texts(table: Table, column: str) -> list[str]:
    """The texts as they stand, none of them missing; a number is its digits, as it is in a CSV file."""
    _refuse_gaps(table, column, "text", map(missing, table.columns[column]))
    for index, value in enumerate(table.columns[column]):
        if not isinstance(value, str) and number(value) is None:
            raise DataError(f"{table.row(index)}: column {column!r} holds {_shown(value)}, expected a text")
        _refuse_half_a_character(table, index, column, value)
    return [str(value) for value in table.columns[column]]


def label_values(table: Table, column: str) -> list[Any]:
    """The labels as they stand, none of them missing; class indices become the names that the file declares."""
    values = table.columns[column]
    classes = table.classes.get(column, ())
    # -1: how the hub marks rows whose label is withheld
    _refuse_gaps(table, column, "label", (missing(value) or (bool(classes) and value == -1) for value in values))
    named: list[Any] = []
    for index, value in enumerate(values):
        if not isinstance(value, str | int | float):
            raise DataError(
                f"{table.row(index)}: label {_shown(value)} in column {column!r}, expected a name or number"
            )
        _refuse_half_a_character(table, index, column, value)
        if classes and isinstance(value, int):
            if not 0 <= value < len(classes):
                raise DataError(
                    f"{table.row(index)}: label {value} in column {column!r}, expected 0 to {len(classes) - 1}"
                )
            value = classes[value]
        named.append(value)
    return named


def kind_of(table: Table, column: str, values: list[Any]) -> Kind:
    """Numbers with a fraction are regression, all else is classes; too many classes ask for a word from the user."""
    numbers = [number(value) for value in values]
    if all(value is not None for value in numbers):
        for index, value in enumerate(numbers):
            _refuse_not_finite(table, index, column, value)
        if any(value != int(value) for value in numbers if value is not None):
            return "regression"
    different = len({label_name(value) for value in values})
    if different > 20 and 2 * different > len(values):  # more than half of the labels occur once: no classes
        raise DataError(
            f"{table.place}: column {column!r} has {different} different labels in {len(values)} rows; "
            "choose another with --label, or say --kind classification or --kind regression"
        )
    return "classification"


def label_numbers(table: Table, column: str, values: list[Any]) -> list[float]:
    numbers = []
    for index, value in enumerate(values):
        found = number(value)
        if found is None:
            raise DataError(f"{table.row(index)}: label {value!r} in column {column!r}, expected a number (regression)")
        _refuse_not_finite(table, index, column, found)
        if abs(found) > LARGEST:
            raise DataError(
                f"{table.row(index)}: label {found:g} in column {column!r}, expected at most {LARGEST:g} in size; "
                "give the labels in a larger unit"
            )
        numbers.append(found)
    return numbers


def label_indices(
    table: Table, column: str, values: list[Any], labels: Sequence[str] | None
) -> tuple[tuple[str, ...], list[int]]:
    """Class names, whole numbers in numeric order and other names in alphabetic order, and each row's index."""
    names = [label_name(value) for value in values]
    if labels is None:
        found = set(names)
        whole = all(re.fullmatch(r"[+-]?\d{1,18}", name) for name in found)
        labels = sorted(found, key=lambda name: (int(name), name) if whole else (0, name))
        if len(labels) < 2:
            raise DataError(
                f"{table.place}: every label in column {column!r} is {labels[0]!r}; training needs at least two classes"
            )
    index_of = {name: index for index, name in enumerate(labels)}
    for index, name in enumerate(names):
        if name not in index_of:
            raise DataError(
                f"{table.row(index)}: label {name!r} in column {column!r} did not occur in training; "
                f"{did_you_mean(name, index_of)}"
            )
    return tuple(labels), [index_of[name] for name in names]


def label_name(value: Any) -> str:
    """1, 1.0 and '1.0' are one class: tables with gaps store whole numbers as floats."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    name = str(value).strip()
    return name.split(".")[0] if WHOLE.fullmatch(name) else name


def number(value: Any) -> float | None:
    """The number that a cell holds, or None."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _text_columns(table: Table, free: list[str]) -> tuple[str, str | None]:
    by_name = {column.casefold(): column for column in free}
    pairs = [(by_name[a], by_name[b]) for a, b in PAIRS if a in by_name and b in by_name]
    paired = {column for pair in pairs for column in pair}
    singles = [column for column in free if column.casefold() in TEXTS and column not in paired]
    if not pairs and not singles:
        singles = [column for column in free if _holds_text(table.columns[column])]
    if len(pairs) + len(singles) == 1:
        return pairs[0] if pairs else (singles[0], None)
    if not pairs and not singles:
        raise DataError(f"{table.place}: no column of text among {_listed(table.columns)}; name it with --text")
    found = [*(column for pair in pairs for column in pair), *singles]
    raise DataError(
        f"{table.place}: columns {_listed(found)} could each be the text; choose with --text (and --pair for two texts)"
    )


def _only_other(table: Table, rest: list[str], text: str) -> str:
    if len(rest) == 1:
        return rest[0]
    if rest:
        raise DataError(f"{table.place}: columns {_listed(rest)} could each be the label; choose with --label")
    raise DataError(f"{table.place}: no label beside the text {text!r}; add a column, or name it with --label")


def _holds_text(values: list[Any]) -> bool:
    present = [value for value in values if not missing(value)]
    return any(isinstance(value, str) and number(value) is None for value in present)


def missing(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())  # value != value: NaN


def _refuse_gaps(table: Table, column: str, what: str, gaps: Iterable[bool]) -> None:
    """Raise DataError that names every row where a value is missing, many by their number."""
    rows = [index for index, gap in enumerate(gaps) if gap]
    if not rows:
        return
    first, *more = rows
    said, remedy = f"{table.row(first)}: no {what} in column {column!r}", "fill it in or remove the row"
    if more:
        shown = ", ".join(str(index + 1) for index in more[:NAMED]) + ", …" * (len(more) > NAMED)
        said, remedy = f"{said}, nor in {len(more)} more (row {shown})", "fill them in or remove these rows"
    raise DataError(f"{said}; {remedy}")


def _refuse_half_a_character(table: Table, index: int, column: str, value: Any) -> None:
    try:
        str(value).encode()
    except UnicodeEncodeError:
        raise DataError(f"{table.row(index)}: column {column!r} holds no valid Unicode; save it as UTF-8") from None


def _refuse_not_finite(table: Table, index: int, column: str, value: float | None) -> None:
    if value is not None and not math.isfinite(value):
        raise DataError(
            f"{table.row(index)}: label {value} in column {column!r} is not finite; fill it in or remove it"
        )


def _listed(names: Any) -> str:
    return ", ".join(repr(name) for name in names)


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:40]!r}"
