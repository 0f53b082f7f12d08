"""One class per example."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unipelt.data import Columns, Examples, Table
from unipelt.data.tables import in_order
from unipelt.errors import DataError
from unipelt.tasks.base import Task
from unipelt.tasks.batches import Batch, Encoded, Part, unused_outputs, weighted_mean
from unipelt.tasks.calibration import fit_temperature, mean_softmax
from unipelt.tasks.linear import Features, Linear, logistic


@dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """One class per example; targets are class indices."""

    kind: ClassVar[str] = "classification"
    training_fields: ClassVar[tuple[str, ...]] = ("class_weights",)
    problem_type: ClassVar[str | None] = "single_label_classification"
    temperature: float = 1.0
    """what logits are divided by for probabilities, fitted on the validation examples"""
    class_weights: tuple[float, ...] = ()
    """what an example of each class counts in the training loss; empty: 1"""

    @classmethod
    def matches(cls, table: Table, columns: Columns, separator: str | None) -> bool:
        return separator is None

    @classmethod
    def metrics(cls, labels: Sequence[str]) -> tuple[str, ...]:
        return ("accuracy", "f1", "macro_f1", "matthews") if len(labels) == 2 else ("accuracy", "macro_f1", "matthews")

    @classmethod
    def label_names(cls, table: Table, column: str, indices: Sequence[int], separator: str | None) -> tuple[str, ...]:
        labels = in_order(table.names(column, indices), table.classes.get(column, ()))
        if len(labels) < 2:
            raise DataError(
                f"{table.name}: every label in column {column!r} is {labels[0]!r}; training needs two classes or more"
            )
        return labels

    @property
    def classes(self) -> tuple[str, ...]:
        return self.labels

    def targets(self, table: Table, column: str, indices: Sequence[int]) -> list[int]:
        names = table.names(column, indices)
        return [table.label_index(self.labels, name, index, column) for index, name in zip(indices, names)]

    def notes(self, train: Examples) -> list[str]:
        counts = Counter(train.targets)
        notes = []
        if single := [repr(self.labels[label]) for label, count in sorted(counts.items()) if count == 1]:
            names = ", ".join(single[:5]) + ", …" * (len(single) > 5)
            has = f"Class {names} has" if len(single) == 1 else f"{len(single)} classes ({names}) have"
            notes.append(f"{has} a single example: it trains, so that none is left for validation and test.")
        for mark in "|;,":
            parts = Counter(part.strip("[]() '\"") for label in self.labels for part in label.split(mark))
            mixed = [label for label in self.labels if mark in label]
            if mixed and max(parts.values()) > 1:  # a part of one is a label too, or a part of another
                how = "--kind multi-label" if mixed[0].startswith("[") else f"--label-separator '{mark}'"
                notes.append(f"Labels such as {mixed[0]!r} are read as one class; if they are several, add {how}.")
        return notes

    def with_class_weights(self, targets: Sequence[int]) -> "Classification":
        """Examples of class c count n / (classes × n_c), as class_weight='balanced' of scikit-learn."""
        counts = Counter(targets)
        return replace(
            self, class_weights=tuple(len(targets) / (len(counts) * max(1, counts[c])) for c in range(self.outputs))
        )

    def example_weights(self, part: Part) -> list[float]:
        return [self.class_weights[target] for target in self.loss_targets(part)] if self.class_weights else []

    @staticmethod
    def loss(logits: Float[Tensor, "run block output"], batch: Batch) -> Float[Tensor, " run"]:
        """Mean cross-entropy over the run's own classes."""
        masked_logits = logits.masked_fill(unused_outputs(batch.outputs, logits.shape[-1])[:, None], -torch.inf)
        return weighted_mean(F.cross_entropy(masked_logits.mT, batch.targets, reduction="none"), batch.weights)

    def decide(self, logits: Float[Tensor, "example output"], encoded: Encoded) -> list[int]:
        return logits[:, : self.outputs].argmax(dim=-1).tolist()

    def shown(self, prediction: int) -> str:
        return self.labels[prediction]

    def probabilities(self, logits: Float[Tensor, "example output"]) -> Float[Tensor, "example label"]:
        return (logits[:, : self.outputs] / self.temperature).softmax(dim=-1)

    def average(self, run_logits: Sequence[Float[Tensor, "example output"]]) -> Float[Tensor, "example label"]:
        return mean_softmax([logits[:, : self.outputs] for logits in run_logits])

    def fit_temperature(self, logits: Float[Tensor, "example output"], targets: Sequence[Any]) -> float | None:
        return fit_temperature(logits[:, : self.outputs].double().numpy(), np.array(targets))

    def fit_linear(
        self, features: Features, targets: Sequence[int], folds: Sequence[int], *, balanced: bool = False
    ) -> Linear:
        return logistic(features, targets, self.outputs, folds, balanced=balanced)

    def constant_prediction(self, train: Sequence[int]) -> int:
        """The most frequent class."""
        return Counter(train).most_common(1)[0][0]
