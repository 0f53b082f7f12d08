"""Any number of classes per example."""

from ast import literal_eval
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unipelt.data import Columns, Examples, Table
from unipelt.data.tables import class_name, declared_name, in_order, is_missing
from unipelt.errors import DataError
from unipelt.tasks.base import Task
from unipelt.tasks.batches import Batch, Encoded, Part, unused_outputs, weighted_mean
from unipelt.tasks.calibration import fit_temperature
from unipelt.tasks.linear import Features, Linear, logistic


@dataclass(frozen=True, kw_only=True)
class MultiLabel(Task):
    """Any number of classes per example; targets are lists of 0 and 1, one per class."""

    kind: ClassVar[str] = "multi-label"
    training_fields: ClassVar[tuple[str, ...]] = ("class_weights",)
    problem_type: ClassVar[str | None] = "multi_label_classification"
    class_weights: tuple[tuple[float, float], ...] = ()
    """what examples without and with each class count in the training loss; empty: 1"""
    separator: str = "|"
    """between the class names in a cell; a cell that is a list, as in JSON, needs none"""
    temperature: float = 1.0
    """what logits are divided by for probabilities, fitted on the validation examples"""

    @classmethod
    def matches(cls, table: Table, columns: Columns, separator: str | None) -> bool:
        label = table.columns.get(columns.label or "", [])
        return separator is not None or any(isinstance(value, list) for value in label)

    @classmethod
    def required_columns(cls, columns: Columns) -> tuple[str | None, ...]:
        return columns.text, columns.text_pair

    @classmethod
    def metrics(cls, labels: Sequence[str]) -> tuple[str, ...]:
        return "micro_f1", "macro_f1", "accuracy"

    @classmethod
    def kind_fields(cls, name: str, separator: str | None) -> dict[str, Any]:
        return {"separator": separator or "|"}

    @classmethod
    def label_names(cls, table: Table, column: str, indices: Sequence[int], separator: str | None) -> tuple[str, ...]:
        names = [name for index in indices for name in _split(table, column, index, separator or "|")]
        labels = in_order(names, table.classes.get(column, ()))
        if len(labels) < 2:
            raise DataError(f"{table.name}: column {column!r} names {len(labels)} classes; training needs two or more")
        return labels

    def targets(self, table: Table, column: str, indices: Sequence[int]) -> list[list[int]]:
        rows = []
        for index in indices:
            row = [0] * len(self.labels)
            for name in _split(table, column, index, self.separator):
                row[table.label_index(self.labels, name, index, column)] = 1
            rows.append(row)
        return rows

    def notes(self, train: Examples) -> list[str]:
        none = sum(not any(row) for row in train.targets or ())
        return [f"{none} examples name no class: they are read as belonging to none."] * bool(none)

    @classmethod
    def pad_targets(cls, targets: list[list[Any]], width: int) -> np.ndarray:
        most = max(len(rows[0]) for rows in targets)
        return np.array([[row + [0] * (most - len(row)) for row in rows] for rows in targets], dtype=np.float32)

    def with_class_weights(self, targets: Sequence[list[int]]) -> "MultiLabel":
        """Examples with and without a class count as much: n / 2p with it, n / 2(n − p) without."""
        total, having = len(targets), [sum(column) for column in zip(*targets)]
        return replace(
            self, class_weights=tuple((total / (2 * (total - p) or 1), total / (2 * p or 1)) for p in having)
        )

    def loss_targets(self, part: Part) -> list[list[float]]:
        """0 and 1; with class weights −w and w, so that the sign says what is right and the size how much it counts."""
        rows = super().loss_targets(part)
        if not self.class_weights:
            return rows
        return [[w[1] if value else -w[0] for w, value in zip(self.class_weights, row)] for row in rows]

    @staticmethod
    def loss(logits: Float[Tensor, "run block output"], batch: Batch) -> Float[Tensor, " run"]:
        """Mean binary cross-entropy over the run's classes, each weighted by the size of its target (see `loss_targets`)."""
        beyond = unused_outputs(batch.outputs, logits.shape[-1])[:, None]
        targets = F.pad(batch.targets, (0, logits.shape[-1] - batch.targets.shape[-1])).to(logits.dtype)
        weights = torch.where(targets == 0, 1.0, targets.abs())
        right = (targets > 0).to(logits.dtype)
        each = F.binary_cross_entropy_with_logits(logits, right, weights, reduction="none").masked_fill(beyond, 0.0)
        return weighted_mean(each.sum(dim=-1) / batch.outputs[:, None], batch.weights)

    def decide(self, logits: Float[Tensor, "example output"], encoded: Encoded) -> list[list[int]]:
        """Every class with a probability over one half."""
        return (logits[:, : self.outputs] > 0).int().tolist()

    def shown(self, prediction: list[int]) -> str:
        return self.separator.join(name for name, predicted in zip(self.labels, prediction) if predicted)

    def probabilities(self, logits: Float[Tensor, "example output"]) -> Float[Tensor, "example label"]:
        return (logits[:, : self.outputs] / self.temperature).sigmoid()

    def average(self, run_logits: Sequence[Float[Tensor, "example output"]]) -> Float[Tensor, "example label"]:
        return torch.stack([logits[:, : self.outputs].double().sigmoid() for logits in run_logits]).mean(dim=0).logit()

    def fit_temperature(self, logits: Float[Tensor, "example output"], targets: Sequence[Any]) -> float | None:
        return fit_temperature(logits[:, : self.outputs].double().numpy(), np.array(targets))

    def fit_linear(
        self, features: Features, targets: Sequence[list[int]], folds: Sequence[int], *, balanced: bool = False
    ) -> Linear:
        """One logistic regression per class, for or against it."""
        each = [logistic(features, column, 2, folds, balanced=balanced) for column in zip(*targets)]
        weight, bias = (
            np.stack([pair[1] - pair[0] for pair in parts])
            for parts in zip(*((model.weight, model.bias) for model in each))
        )
        held_out = [model.held_out[:, 1] - model.held_out[:, 0] for model in each if model.held_out is not None]
        return Linear(weight, bias, np.stack(held_out, axis=1) if len(held_out) == len(each) else None)

    def constant_prediction(self, train: Sequence[list[int]]) -> list[int]:
        """The classes that more than half of the examples have."""
        return [int(2 * sum(column) > len(train)) for column in zip(*train)]


def _written_list(cell: Any) -> Any:
    """The list that a text such as `['a', 'b']` writes, as pandas saves it to CSV; anything else as it is."""
    if not isinstance(cell, str) or not (cell.startswith("[") and cell.endswith("]")):
        return cell
    with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
        values = literal_eval(cell)
        if isinstance(values, list) and all(isinstance(value, str | int) for value in values):
            return values
    return cell


def _split(table: Table, column: str, index: int, separator: str) -> list[str]:
    """The class names in a cell; an empty cell names none."""
    cell, declared = table.columns[column][index], table.classes.get(column, ())
    if is_missing(cell):
        return []
    cell = _written_list(cell)
    parts = cell if isinstance(cell, list) else [cell] if declared else str(class_name(cell)).split(separator)
    names = [class_name(declared_name(part, declared, table.example(index), column)) for part in parts]
    return [name for name in names if name]
