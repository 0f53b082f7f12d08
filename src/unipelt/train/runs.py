"""What one run trains on, when it is evaluated and when it ends, and the finished run."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from unipelt.tasks.base import Task
from unipelt.tasks.batches import Encoded
from unipelt.tasks.metrics import METRICS
from unipelt.train.recipes import Recipe
from unipelt.train.records import FINISHED, STOPPED, RunKey, RunRecord

CHUNK = 8  # batches that are sorted by length together: padding is short, and examples still come together at random


@dataclass(frozen=True)
class Plan:
    """What one run trains on, and how."""

    initial_record: RunRecord
    """what is known of the run before it is trained; the fleet keeps the record that changes"""
    task: Task
    """as this run trains it"""
    train: Encoded
    validation: Encoded
    recipe: Recipe
    test: Encoded | None = None
    folds: Sequence[int] = ()
    """of each training example: by them the regularisation of the head's start is chosen; empty: the head starts at random"""

    @cached_property
    def key(self) -> RunKey:
        return self.initial_record.key

    def epoch(self, epoch: int) -> list[list[list[int]]]:
        """The steps of an epoch: `[step][forward][example]`; a step adds up the gradients of its forwards."""
        recipe, accumulated = self.recipe, self.recipe.gradient_accumulation
        batches = epoch_batches(self.train.lengths(), recipe.batch_size, self.key.seed, epoch, recipe.batch_tokens)
        return [batches[start : start + accumulated] for start in range(0, len(batches), accumulated)]

    @cached_property
    def ends(self) -> list[int]:
        """How many steps have been taken at the end of each epoch; with --batch-tokens, epochs differ by a few."""
        recipe = self.recipe
        if recipe.batch_tokens:
            return list(accumulate(len(self.epoch(epoch)) for epoch in range(recipe.epochs)))
        batches = math.ceil(len(self.train) / recipe.batch_size)
        steps_per_epoch = math.ceil(batches / recipe.gradient_accumulation)
        return [steps_per_epoch * (epoch + 1) for epoch in range(recipe.epochs)]

    @property
    def steps(self) -> int:
        return self.ends[-1]

    def epochs_at(self, step: int) -> int:
        """How many epochs are complete after this many steps."""
        return bisect_right(self.ends, step)

    def is_due(self, step: int) -> bool:
        """Whether the run is evaluated after this many steps."""
        complete = self.epochs_at(step)
        ends_epoch = complete > 0 and self.ends[complete - 1] == step
        return step == self.steps or (ends_epoch and complete % self.recipe.evaluate_every == 0)

    def rates(self, step: int, kinds: list[str]) -> float | list[float]:
        """Learning rates of a step by kind of parameter; one rate where no kinds are given."""
        factor, rates = self.schedule(step), self.kind_rates
        return [rates.get(kind, self.recipe.lr) * factor for kind in kinds] if kinds else self.recipe.lr * factor

    @cached_property
    def kind_rates(self) -> dict[str, float]:
        """The recipe's learning rates that are not `lr`, by kind of parameter."""
        return self.recipe.rates

    def schedule(self, step: int) -> float:
        """Share of the peak learning rate at a step: linear warm-up, linear decay to 0."""
        warm = max(1, math.ceil(self.recipe.warmup * self.steps))
        return min((step + 1) / warm, max(0.0, (self.steps - step) / max(1, self.steps - warm)))

    def evaluate(self, record: RunRecord, logits: Float[Tensor, "example ..."], texts: list[str] | None) -> bool:
        """Record this evaluation of the validation examples and, if the run ends, its status. Return whether it is the best so far."""
        metrics, epoch = metrics_of(self.task, logits, self.validation, texts), self.epochs_at(record.steps)
        new_steps = record.steps - (record.curve[-1]["step"] if record.curve else 0)
        record.curve.append({"epoch": epoch, "step": record.steps, "train_loss": record.losses / new_steps, **metrics})
        record.losses = 0.0
        best = best_of(record.curve, self.task.metric)
        if is_best := best == len(record.curve) - 1:
            record.temperature = self.task.fit_temperature(logits, self.validation.targets or [])
        if is_best or best < 0:
            record.validation, record.validation_metrics = metrics[self.task.metric], {"epoch": epoch, **metrics}
        if record.steps >= self.steps:
            record.status = FINISHED
        elif self.recipe.patience and len(record.curve) - 1 - best >= self.recipe.patience:
            record.status = STOPPED
        return is_best

    def result(
        self, record: RunRecord, logits: Float[Tensor, "example ..."] | None, texts: list[str] | None,
        gates: dict[str, Float[Tensor, " example"]],
    ) -> RunRecord:  # fmt: skip
        """The record of the run when it has ended, from the logits, texts and gate values of its test examples."""
        if not record.done:
            return replace(record, validation=None, validation_metrics=None, temperature=None)
        task = self.task.in_target_units().with_temperature(record.temperature)
        means = {
            path: {"mean": float(gate.mean()), "sd": float(gate.std(correction=0))} for path, gate in gates.items()
        }
        record = replace(record, description=task.describe(), gates=means)
        if logits is not None and self.test is not None and self.test.targets is not None:
            record_test(record, task, logits, self.test, texts)
        return record


def best_of(curve: Sequence[dict[str, float]], metric: str) -> int:
    """The index of the first evaluation with the best value of the metric; -1 if every value is NaN."""
    best = -1
    for index, entry in enumerate(curve):
        if not math.isnan(entry[metric]) and (best < 0 or METRICS[metric].better(entry[metric], curve[best][metric])):
            best = index
    return best


def metrics_of(
    task: Task, logits: Float[Tensor, "example ..."] | None, encoded: Encoded, texts: list[str] | None
) -> dict[str, float]:
    """The metrics of the predictions for examples, of the generated texts, or of both."""
    targets = encoded.targets or []
    predicted = {} if logits is None else task.score(task.decide(logits, encoded), targets)
    return predicted | (task.score(texts, targets) if texts else {})


def record_test(
    record: RunRecord, task: Task, logits: Float[Tensor, "example ..."] | None, encoded: Encoded, texts: list[str] | None = None,
) -> None:  # fmt: skip
    """Put the predictions and generated texts for the test examples into a record, and their metrics."""
    record.test_metrics, record.texts = metrics_of(task, logits, encoded, texts), texts
    record.test, targets = record.test_metrics.get(task.metric), list(encoded.targets or [])
    if logits is not None:
        record.logits = task.logits_to_record(logits)
        record.predictions, record.targets = task.to_record(task.decide(logits, encoded), targets)
    if task.selects_by_text and texts is not None:
        record.predictions, record.targets = texts, targets


def epoch_batches(
    lengths: Sequence[int], batch_size: int, seed: int, epoch: int, batch_tokens: int = 0
) -> list[list[int]]:
    """The batches of one epoch, in an order that the seed draws; within a few batches, examples of similar length are together.

    batch_tokens: largest number of tokens of a batch, padding included (a longer example is a batch of its own); 0: batches
    have batch_size examples. The positions of short and long batches depend on the epoch alone, so that the runs of a fleet
    have their short batches in the same steps.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    if batch_tokens:
        batch_size = max(1, batch_tokens * len(order) // sum(lengths))
    chunk_size, batches = CHUNK * batch_size, []
    for start in range(0, len(order), chunk_size):
        chunk = sorted(order[start : start + chunk_size], key=lambda index: lengths[index])
        if batch_tokens:
            batches += _by_tokens(chunk, lengths, batch_tokens)
        else:
            batches += [chunk[first : first + batch_size] for first in range(0, len(chunk), batch_size)]
    *full_batches, last_batch = batches  # the last may be smaller
    order_of_batches = torch.randperm(len(batches), generator=torch.Generator().manual_seed(epoch)).tolist()
    by_length = [*sorted(full_batches, key=lambda examples: sum(lengths[index] for index in examples)), last_batch]
    return [by_length[index] for index in order_of_batches]


def _by_tokens(examples: list[int], lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Batches of examples that are sorted by length, each as large as `batch_tokens` allow."""
    batches: list[list[int]] = [[]]
    for index in examples:
        if batches[-1] and (len(batches[-1]) + 1) * lengths[index] > batch_tokens:
            batches.append([])
        batches[-1].append(index)
    return batches


@dataclass(frozen=True)
class FinishedRun:
    """A run that has ended."""

    record: RunRecord
    """metrics, predictions and gate values of the best parameters; or why the run failed"""
    state: dict[str, Tensor] = field(default_factory=dict)
    """the best parameters by name, without a run axis; of a model that is tuned whole, its state dict"""
    plan_index: int = 0
    """index of its plan in the fleet"""
    model: PreTrainedModel | None = None
    """the model that `state` belongs to; its own parameters are those of other runs"""
    files: dict[str, bytes] | None = None
    """of a baseline: the files of its folder"""

    @property
    def key(self) -> RunKey:
        return self.record.key
