"""A number per example."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, pstdev
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from unipelt.data import Columns, Table
from unipelt.data.tables import as_number, is_missing
from unipelt.errors import DataError
from unipelt.tasks.base import Task
from unipelt.tasks.batches import Batch, Encoded, Part, weighted_mean
from unipelt.tasks.linear import Features, Linear, ridge

LARGEST = 1e30  # beyond it, a head that is rescaled to the targets' unit leaves float32
ORDINARY = 10.0  # largest size of a target, and inverse of the smallest deviation, that is trained as it stands


@dataclass(frozen=True, kw_only=True)
class Regression(Task):
    """A number per example; targets are floats."""

    kind: ClassVar[str] = "regression"
    training_fields: ClassVar[tuple[str, ...]] = (
        "mean",
        "deviation",
    )  # a trained head is rescaled to the targets' own unit
    problem_type: ClassVar[str | None] = "regression"
    mean: float = 0.0
    deviation: float = 1.0
    """while a run trains, its head's output is (target - mean) / deviation"""

    @classmethod
    def matches(cls, table: Table, columns: Columns, separator: str | None) -> bool:
        """Numbers with a fraction. Raises DataError for labels that could be classes or numbers."""
        if separator is not None or columns.label is None or columns.label in table.classes:
            return False
        values = [value for value in table.columns[columns.label] if not is_missing(value)]
        numbers = [number for value in values if (number := as_number(value)) is not None]
        if len(numbers) == len(values) and any(number % 1 for number in numbers):
            return True
        different = len({str(value) for value in values})
        if different > 20 and 2 * different > len(values):  # more than half of the labels occur once: no classes
            raise DataError(
                f"{table.name}: column {columns.label!r} has {different} different labels in {len(values)} examples; "
                "choose another with --label-column, or add --kind classification or --kind regression"
            )
        return False

    @classmethod
    def metrics(cls, labels: Sequence[str]) -> tuple[str, ...]:
        return "spearman", "pearson", "rmse", "mae"

    def targets(self, table: Table, column: str, indices: Sequence[int]) -> list[float]:
        return table.numbers(column, indices, LARGEST)

    @property
    def target_scale(self) -> tuple[float, float]:
        return self.mean, self.deviation

    def fit(self, targets: Sequence[float], *, bias: bool | None) -> "Regression":
        """The task in standard units of these targets; targets of ordinary size, such as STS-B's 0 to 5, stay as the papers train."""
        ordinary = max(map(abs, targets)) <= ORDINARY and pstdev(targets) >= 1 / ORDINARY
        if bias is None or ordinary:
            return self
        mean = fmean(targets) if bias else 0.0
        return replace(self, mean=mean, deviation=math.sqrt(fmean((target - mean) ** 2 for target in targets)) or 1.0)

    def in_target_units(self) -> "Regression":
        return replace(self, mean=0.0, deviation=1.0)

    def loss_targets(self, part: Part) -> list[float]:
        return [(target - self.mean) / self.deviation for target in super().loss_targets(part)]

    @staticmethod
    def loss(logits: Float[Tensor, "run block output"], batch: Batch) -> Float[Tensor, " run"]:
        """Mean squared error, in the unit that each run trains in."""
        return weighted_mean((logits[..., 0] - batch.targets.to(logits.dtype)).square(), batch.weights)

    def decide(self, logits: Float[Tensor, "example output"], encoded: Encoded) -> list[float]:
        return (logits[:, 0].double() * self.deviation + self.mean).tolist()

    def shown(self, prediction: float) -> float:
        return round(prediction, 6)

    def fit_linear(
        self, features: Features, targets: Sequence[float], folds: Sequence[int], *, balanced: bool = False
    ) -> Linear:
        return ridge(features, targets, folds)

    def constant_prediction(self, train: Sequence[float]) -> float:
        """The mean."""
        return fmean(train)
