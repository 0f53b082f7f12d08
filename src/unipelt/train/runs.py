"""What the training loop knows of one run: its plan, its loss, and the run when it has ended."""

import math
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from unipelt.data import Task
from unipelt.tasks.metrics import score
from unipelt.train.batches import Encoded
from unipelt.train.evaluation import decisions
from unipelt.train.progress import Progress
from unipelt.train.recipes import Recipe
from unipelt.train.records import DONE, RunKey, RunRecord


@dataclass(frozen=True)
class Plan:
    """What one run trains on, and how."""

    key: RunKey
    task: Task
    train: Encoded
    validation: Encoded
    recipe: Recipe
    test: Encoded | None = None
    unit: tuple[float, float] = (0.0, 1.0)
    """(mean, standard deviation) of a regression's targets: training is in these units, results in the targets' own"""
    record: RunRecord = field(default_factory=RunRecord)
    """what is known of the run before it is trained"""

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.train) // self.recipe.batch_size)

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.recipe.epochs

    def is_due(self, step: int) -> bool:
        """Whether the run is evaluated after this many steps."""
        return step == self.steps or step % (self.steps_per_epoch * self.recipe.evaluate_every) == 0

    def rates(self, step: int, kinds: list[str]) -> float | list[float]:
        """Learning rates of a step by kind of parameter; one rate where no kinds are given."""
        factor, own = self.schedule(step), self.recipe.rates
        return [own.get(kind, self.recipe.lr) * factor for kind in kinds] if kinds else self.recipe.lr * factor

    def schedule(self, step: int) -> float:
        """Share of the peak learning rate at a step: linear warm-up, linear decay to 0."""
        warm = max(1, math.ceil(self.recipe.warmup * self.steps))
        return min((step + 1) / warm, max(0.0, (self.steps - step) / max(1, self.steps - warm)))

    def targets(self, rows: list[int], block: int) -> list[float]:
        """What some training examples are trained towards, filled up to a block by the first."""
        mean, deviation = self.unit
        mine = [(self.train.labels[row] - mean) / deviation for row in rows]  # type: ignore[index]
        return mine + mine[:1] * (block - len(mine))

    def result(self, progress: Progress, logits: Tensor | None, gates: dict[str, Tensor]) -> RunRecord:
        """The record of the run when it has ended, from its test logits and the gate values of its test examples."""
        record = replace(self.record, status=progress.ended, metric=self.task.metric, curve=progress.curve)
        record.steps = progress.step
        if progress.ended not in DONE:
            return record
        best = max(progress.curve, key=lambda entry: entry[self.task.metric])
        record.validation = best[self.task.metric]
        record.validation_metrics = {name: value for name, value in best.items() if name not in ("step", "loss")}
        if logits is not None and self.test is not None and self.test.labels is not None:
            predicted = decisions(self.task, logits)
            record.test_metrics = score(self.task, predicted, self.test.labels)
            record.test = record.test_metrics[self.task.metric]
            record.targets = list(self.test.labels)
            record.predictions = predicted if self.task.kind == "classification" else [round(v, 6) for v in predicted]
        record.gates = {
            path: {"mean": float(values.mean()), "sd": float(values.std(correction=0))}
            for path, values in gates.items()
        }
        return record


@dataclass(frozen=True)
class FinishedRun:
    """A run that has ended."""

    key: RunKey
    record: RunRecord
    """metrics, predictions and gate values of the best parameters; or why the run failed"""
    state: dict[str, Tensor]
    """the best parameters by name, without a run axis; of a model that is tuned whole, its state dict"""
    plan: int
    """place of its plan in the fleet"""
    model: PreTrainedModel | None
    """the model that `state` belongs to; its own parameters are those of other runs"""


def loss(
    logits: Float[Tensor, "run block class"],
    targets: Float[Tensor, "run block"],
    weights: Float[Tensor, "run block"],
    classes: Float[Tensor, " run"],
    regression: Float[Tensor, " run"],
) -> Float[Tensor, " run"]:
    """Mean over a run's examples of cross-entropy over its own classes, or of the squared error.

    A task with fewer classes than the fleet's head has the first of them. weights: 0 for filling. classes: number of
    classes of the run's task. regression: 1 where the task is a regression.
    """
    numbers, targets = regression[:, None] > 0, targets.to(logits.dtype)
    beyond = torch.arange(logits.shape[-1], device=logits.device) >= classes[:, None, None]
    named = targets.masked_fill(numbers, 0.0).long()
    entropy = F.cross_entropy(logits.masked_fill(beyond, -torch.inf).mT, named, reduction="none")
    each = torch.where(numbers, (logits[..., 0] - targets).square(), entropy)
    return (each * weights).sum(dim=1) / weights.sum(dim=1)
