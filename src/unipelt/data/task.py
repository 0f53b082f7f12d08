"""What a task is, and the rows that carry it: plain lists, no framework."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from unipelt.errors import DataError

Kind = Literal["classification", "regression"]


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which column is what."""

    text: str
    pair: str | None
    """column of the second text"""
    label: str | None


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is asked of a text, and how an answer is judged."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    """class names in the order of their indices; empty for regression"""
    metric: str
    """a name in METRICS: the number that chooses checkpoints and is reported"""
    pair: bool
    """whether a row is two texts"""
    columns: Columns | None = None
    """the columns that its rows were read from, and new rows are"""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Texts, or pairs of texts, with the index of each row's class or its number."""

    first: list[str]
    second: list[str] | None
    labels: list[int] | list[float] | None
    groups: list[str] | None = None
    """what rows have in common that no split may part, such as their author"""

    def __post_init__(self) -> None:
        columns = (self.first, self.second, self.labels, self.groups)
        lengths = {len(column) for column in columns if column is not None}
        if len(lengths) > 1:
            raise DataError(
                f"rows of unequal length {sorted(lengths)}: every row needs each of its texts and its label"
            )

    def __len__(self) -> int:
        return len(self.first)

    def take(self, indices: Iterable[int]) -> "Examples":
        indices = list(indices)
        return Examples(
            first=[self.first[index] for index in indices],
            second=None if self.second is None else [self.second[index] for index in indices],
            labels=None if self.labels is None else [self.labels[index] for index in indices],  # type: ignore[arg-type]
            groups=None if self.groups is None else [self.groups[index] for index in indices],
        )

    @property
    def texts(self) -> list[tuple[str, str]]:
        """What a row says, for finding it again."""
        return list(zip(self.first, self.second or self.first))

    def fingerprint(self) -> str:
        """sha256 of the contents in order: equal exactly when texts, labels and order are equal."""
        contents = json.dumps([self.first, self.second, self.labels], separators=(",", ":"))
        return hashlib.sha256(contents.encode("ascii")).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A task and the rows it comes with; `protocol.split` makes the rest."""

    task: Task
    train: Examples
    test: Examples | None
    """None: a share of train is held out"""
    validation: Examples | None
    """None: taken from train"""
    complete: bool
    """False where train is a subset of the published set, so that k = all is not the paper's"""
    source: str
    """where the rows came from, in words"""

    @cached_property
    def identity(self) -> str:
        """`2490 training and 277 test rows, sha256 …`, given validation rows behind the first: equal exactly when rows, their
        order, groups and class names are."""
        parts = [self.train, self.validation, self.test]
        said = [self.task.labels, self.train.groups, *(part and part.fingerprint() for part in parts)]
        digest = hashlib.sha256(json.dumps(said).encode("ascii")).hexdigest()[:16]
        chosen = f", {len(self.validation)} validation" if self.validation is not None else ""
        tested = f"{len(self.test)} test" if self.test is not None else "no test"
        return f"{len(self.train)} training{chosen} and {tested} rows, sha256 {digest}"


def class_counts(task: Task, rows: Examples) -> dict[str, int]:
    """Rows of each class, classes without rows included."""
    counts = Counter(rows.labels or ())
    return {name: counts[index] for index, name in enumerate(task.labels)}
