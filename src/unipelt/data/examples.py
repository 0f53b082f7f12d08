"""Examples of a data set: inputs, targets and groups as plain lists, of no framework."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of a table that a task reads."""

    text: str
    """column of the text, of the first text of a pair, or of the tokens"""
    text_pair: str | None = None
    """column of the second text"""
    label: str | None = None
    """column of the targets"""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Inputs by name, such as `text` and `text_pair`; each list has one value per example, in the same order."""

    inputs: dict[str, list]
    targets: list | None = None
    """class indices, numbers, tag sequences: whatever the task reads; None for examples without labels"""
    groups: list[str] | None = None
    """what examples share that must not be split, such as their author"""
    names: list[str] | None = field(default=None, compare=False)
    """file, number and line of each, such as `chat.jsonl, example 3 (line 4)`, for messages"""

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def take(self, indices: Iterable[int]) -> "Examples":
        """The examples at these indices, in their order."""
        indices = list(indices)
        lists = {name: values for name, values in self._lists().items() if values is not None}
        inputs = {name: [values[index] for index in indices] for name, values in self.inputs.items()}
        return Examples(inputs=inputs, **{name: [values[i] for i in indices] for name, values in lists.items()})

    def joined(self, other: "Examples") -> "Examples":
        """These examples, and others with the same inputs behind them."""
        lists, more = self._lists(), other._lists()
        both = {
            name: [*(lists[name] or ()), *(more[name] or ())] for name in lists if None not in (lists[name], more[name])
        }
        return Examples(inputs={name: [*values, *other.inputs[name]] for name, values in self.inputs.items()}, **both)

    def _lists(self) -> dict[str, list | None]:
        """What each example has beside its inputs, by field."""
        return {"targets": self.targets, "groups": self.groups, "names": self.names}

    def name_of(self, index: int) -> str:
        """Name of an example for messages: file, number and line."""
        return f"example {index + 1}" if self.names is None else self.names[index]

    @cached_property
    def keys(self) -> list[str]:
        """One string per example, equal exactly where all inputs are equal."""
        return [json.dumps(values) for values in zip(*self.inputs.values())]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of inputs and targets, in order."""
        contents = json.dumps([*self.inputs.values(), self.targets], separators=(",", ":"))
        return hashlib.sha256(contents.encode("ascii")).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data set as it came; `split` makes train, validation and test examples of it."""

    name: str
    train: Examples
    validation: Examples | None = None
    """None: taken from train"""
    test: Examples | None = None
    """None: a fifth of train is held out"""
    classes: tuple[str, ...] | None = None
    """class names where each target is the index of one class, else None"""
    complete: bool = True
    """False where train is a subset of the published set, so that "all" is not the paper's"""
    source: str = ""
    """where the examples came from, in words"""
    notes: tuple[str, ...] = ()
    """what a user should know about the files, one sentence each"""

    @cached_property
    def identity(self) -> str:
        """`2490 training and 277 test examples, sha256 …`: equal exactly when examples, order, groups and class names are."""
        parts = [self.train, self.validation, self.test]
        contents = [self.classes or (), self.train.groups, *(part and part.fingerprint for part in parts)]
        digest = hashlib.sha256(json.dumps(contents).encode("ascii")).hexdigest()[:16]
        chosen = f", {len(self.validation)} validation" if self.validation is not None else ""
        tested = f"{len(self.test)} test" if self.test is not None else "no test"
        return f"{len(self.train)} training{chosen} and {tested} examples, sha256 {digest}"
