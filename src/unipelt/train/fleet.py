"""The training loop: many runs over one frozen base, a step of all of them in one forward and backward. One run is a fleet of one.

Each run has its own rows, data order, learning rate, schedule, clipping, early stopping and best parameters; the rows of a
step lie in equal blocks, one block a run. A run that ends gives its row of the parameters to the next in the queue.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from unipelt.data import Task
from unipelt.errors import CheckpointError
from unipelt.inject.heads import to_units
from unipelt.inject.state import NAME, AttachedState
from unipelt.tasks.metrics import score
from unipelt.train.batches import Encoded, collate, epoch_order
from unipelt.train.capture import Captured, CudaGraphs
from unipelt.train.evaluation import decisions, logits_of, predict
from unipelt.train.optimizer import AdamW, Flat
from unipelt.train.recipes import Recipe
from unipelt.train.state import load_state, save_state

INPUT = "input "  # before the names of what the model itself reads
SAVE_EVERY = 30.0  # seconds between states, evaluations apart
SAVE_SHARE = 0.05  # of the time, at most, that keeping states may take


@dataclass(frozen=True)
class Plan:
    """What one run trains on, and how."""

    task: Task
    train: Encoded
    validation: Encoded
    recipe: Recipe
    seed: int
    unit: tuple[float, float] = (0.0, 1.0)
    """(mean, standard deviation) of a regression's targets: training counts in them, and the best head is put back"""
    mixture: int = 0
    """which of the mixtures that are attached side by side it trains"""

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.train) // self.recipe.batch_size)

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.recipe.epochs

    def is_due(self, step: int) -> bool:
        """Whether the validation rows are looked at after so many steps."""
        return step == self.steps or step % (self.steps_per_epoch * self.recipe.evaluate_every) == 0

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, linear decay to 0."""
        warm = max(1, math.ceil(self.recipe.warmup * self.steps))
        return self.recipe.lr * min((step + 1) / warm, max(0.0, (self.steps - step) / max(1, self.steps - warm)))


@dataclass
class Progress:
    """How one run stands."""

    step: int = 0
    best: float = -math.inf
    best_epoch: int = -1
    waited: int = 0
    ended: str = ""
    """why it ended: finished, stopped early, or what went wrong; empty while it runs, or waits"""
    losses: float = 0.0
    """sum of the losses since the last evaluation, of `steps` steps"""
    steps: int = 0
    seconds: float = 0.0
    """its share of the time"""
    curve: list[dict[str, float]] = field(default_factory=list)
    """one row an evaluation: epoch, step, loss, metrics"""


class Fleet:
    """Trains plans in the runs of an attached model, or one plan in a whole model.

    The first plans of each mixture have its runs, as attach drew them; the others wait. ended(fleet, plans) is called when
    some of one mixture have ended, while the model holds their best parameters, one run each in that order; after a kill it
    may be called again for the same. watch(fleet, event) is called after each step, evaluation and batch of predictions.
    folder: where the state is kept, and found again.
    """

    def __init__(
        self, model: PreTrainedModel, plans: list[Plan], tokenizer: Any, *,
        folder: Path | None = None, watch: Callable[["Fleet", str], None] = lambda fleet, event: None,
        ended: Callable[["Fleet", list[int]], None] = lambda fleet, plans: None,
    ):  # fmt: skip
        self.model, self.plans, self.tokenizer, self.folder = model, plans, tokenizer, folder
        self.watch, self.ended = watch, ended
        self.progress = [Progress() for _ in plans]
        self.seconds, self.saving = 0.0, 0.0
        self.device = next(model.parameters()).device
        self.tuned: AttachedState | None = getattr(model, NAME, None)
        parts = [[p for p in model.parameters() if p.requires_grad]]
        shares, queues = [1], [list(range(len(plans)))]
        if self.tuned is not None:
            parts = [list(part.parameters()) for part in self.tuned.parts]
            shares = [part.runs for part in self.tuned.parts]
            queues = [[i for i, plan in enumerate(plans) if plan.mixture == mixture] for mixture in range(len(parts))]
        self.runs = [plan for queue, share in zip(queues, shares) for plan in queue[:share]]
        """the plan that each run of the model trains"""
        self.width = len(self.runs)
        """runs at once, as the training began; after too little memory a state may have fewer than are attached"""
        self.waiting = sorted(set(range(len(plans))) - set(self.runs))
        """plans that have no run yet"""
        self.flat = Flat(parts, shares, run_axis=self.tuned is not None)
        self.best = self.flat.values.clone()
        self.optimiser = AdamW(self.flat)
        self.orders: dict[tuple[int, int], list[list[int]]] = {}
        on_gpu = self.device.type == "cuda"
        self.advance = Captured(self._advance, self._changed, CudaGraphs(self.device)) if on_gpu else self._advance

    def train(self) -> None:
        """Train every plan to its end, from the last state where there is one."""
        self._restore()
        last = saved = time.monotonic()
        self._turn_over()
        while self.runs:
            self.step()
            due = [run for run, plan in enumerate(self.runs) if self._is_due(plan)]
            if due:
                self._evaluate(due)
            now = time.monotonic()
            self._count(now - last)
            last = now
            over = all(self.progress[plan].ended for plan in self.runs)
            wanted = (due or now - saved > SAVE_EVERY) and (now - saved) * SAVE_SHARE >= self.saving
            if self.folder is not None and (wanted or over):
                self._save()
                saved = time.monotonic()
                self.saving = saved - now
            self.watch(self, "evaluated" if due else "stepped")
            self._turn_over()

    def predict(self, data: list[Encoded], **how: Any) -> list[Tensor]:
        """Logits `[rows, classes]` of every run for its own rows, in their order."""
        return predict(self.model, self.tokenizer, data, lambda rows: self.watch(self, "predicted"), **how)

    def _is_due(self, plan: int) -> bool:
        progress = self.progress[plan]
        return not progress.ended and self.plans[plan].is_due(progress.step)

    def _count(self, seconds: float) -> None:
        self.seconds += seconds
        for plan in self.runs:
            self.progress[plan].seconds += seconds / len(self.runs)

    def step(self) -> None:
        """One step of every run."""
        losses, finite = self.advance(self._batch()).tolist()
        for index, value, fine in zip(self.runs, losses, finite):
            progress = self.progress[index]
            progress.step += 1
            if not fine:
                what = f"loss is not finite ({value})" if not math.isfinite(value) else "gradient is not finite"
                progress.ended = (
                    f"the {what} at step {progress.step}: expected a number; lower --lr {self.plans[index].recipe.lr:g}"
                )
                continue
            progress.losses += value
            progress.steps += 1

    def _batch(self) -> dict[str, Tensor]:
        """All that the next step depends on, beside the parameters: the model's inputs, and what is each run's own."""
        plans, steps = [self.plans[i] for i in self.runs], [self.progress[i].step for i in self.runs]
        parts = [(plan.train, self._rows(i)) for i, plan in zip(self.runs, plans)]
        inputs, weights = collate(parts, self.tokenizer, self.device)
        each: dict[str, list[Any]] = {
            "step": [step + 1.0 for step in steps], "rate": [plan.rate(step) for plan, step in zip(plans, steps)],
            "clip": [plan.recipe.clip for plan in plans], "decay": [plan.recipe.weight_decay for plan in plans],
            "targets": [_targets(plan, rows, weights.shape[1]) for plan, (_, rows) in zip(plans, parts)],
            "regression": [plan.task.kind == "regression" for plan in plans],
            "classes": [len(plan.task.labels) or 1 for plan in plans],
        }  # fmt: skip
        if not any(each["decay"]):
            del each["decay"]
        return {
            **{INPUT + name: value for name, value in inputs.items()}, "weights": weights,
            **{name: self._vector(values) for name, values in each.items()},
        }  # fmt: skip

    def _advance(self, batch: dict[str, Tensor]) -> Tensor:
        """Forward, backward and update, without a look at any number: `[2, run]`, the losses and whether all was finite."""
        self.model.train()
        inputs = {name.removeprefix(INPUT): value for name, value in batch.items() if name.startswith(INPUT)}
        logits = logits_of(self.model, inputs).unflatten(0, (len(batch["step"]), -1))
        losses = loss(logits, batch["targets"], batch["weights"], batch["classes"], batch["regression"])
        losses.sum().backward()  # one that is not finite reaches its own run's gradients alone
        losses, gradients = losses.detach(), self.flat.gather()
        finite = losses.isfinite() & gradients.isfinite().all(dim=1)
        gradients.masked_fill_(~finite[:, None], 0.0)
        self.optimiser.step(batch["step"], batch["rate"] * finite, batch["clip"], batch.get("decay"))
        return torch.stack([losses, finite.to(losses.dtype)])

    def _changed(self) -> list[Tensor]:
        """What a step writes."""
        return [self.flat.values, self.flat.written, self.optimiser.first, self.optimiser.second]

    def _rows(self, index: int) -> list[int]:
        """The training rows of a plan at its step."""
        plan = self.plans[index]
        epoch, place = divmod(self.progress[index].step, plan.steps_per_epoch)
        if (index, epoch) not in self.orders:
            self.orders.pop((index, epoch - 1), None)
            self.orders[index, epoch] = epoch_order(plan.train.lengths(), plan.recipe.batch_size, plan.seed, epoch)
        return self.orders[index, epoch][place]

    def _evaluate(self, due: list[int]) -> None:
        numbers = [self.runs[run] for run in due]
        plans = [self.plans[number] for number in numbers]
        with self.showing(_rows_of(self.flat.values, due), numbers):
            every = self.predict([plan.validation for plan in plans])
        for run, plan, logits in zip(due, plans, every):
            progress = self.progress[self.runs[run]]
            metrics = score(plan.task, decisions(plan.task, logits, plan.unit), plan.validation.labels or [])
            value, epoch = metrics[plan.task.metric], progress.step // plan.steps_per_epoch
            progress.curve.append(
                {"epoch": epoch, "step": progress.step, "loss": progress.losses / max(1, progress.steps), **metrics}
            )
            progress.losses, progress.steps = 0.0, 0
            if value > progress.best:
                progress.best, progress.best_epoch, progress.waited = value, epoch, 0
                self.best[run].copy_(self.flat.values[run])
            else:
                progress.waited += 1
            if progress.step >= plan.steps:
                progress.ended = "finished"
            elif plan.recipe.patience and progress.waited >= plan.recipe.patience:
                progress.ended = "stopped early"

    @torch.no_grad()
    def _turn_over(self) -> None:
        """Hand the best parameters of the runs that have ended to whoever wants them; their rows go to the queue's next."""
        ended = [run for run, plan in enumerate(self.runs) if self.progress[plan].ended]
        if not ended:
            return
        before, started = [self.runs[run] for run in ended], time.monotonic()
        for _, mixture in groupby(ended, key=self._mixture):
            mine = list(mixture)
            plans, best = [self.runs[run] for run in mine], _rows_of(self.best, mine)
            with self.showing(best, plans):
                to_units(self.model, [self.plans[plan].unit for plan in plans])
                self.ended(self, plans)
        for run in ended:
            following = next((i for i in self.waiting if self.plans[i].mixture == self._mixture(run)), None)
            if following is None:
                continue
            assert self.tuned is not None
            self.tuned.begin(run, self.plans[following].seed)
            self.best[run].copy_(self.flat.values[run])
            self.optimiser.begin(run)
            self.runs[run] = following
            self.waiting.remove(following)
        keep = [run for run, plan in enumerate(self.runs) if not self.progress[plan].ended]
        if not keep:
            self.runs = []
            self._show(best, plans)
        elif len(keep) < len(self.runs):
            self.best = self.best[keep]
            self.optimiser.keep(keep)
            self._train(self.flat.values[keep], [self.runs[run] for run in keep])
        seconds = time.monotonic() - started
        self.seconds += seconds
        for plan in before:
            self.progress[plan].seconds += seconds / len(before)

    @contextmanager
    def showing(self, values: Tensor, plans: list[int]) -> Iterator[None]:
        """Inside the block the model has the runs of these plans alone: the rows of this matrix."""
        self._show(values, plans)
        try:
            yield
        finally:
            self._show(self.flat.values, self.runs)

    def _show(self, values: Tensor, plans: list[int]) -> None:
        shares = self._shares(plans)
        self.flat.show(values, shares)
        if self.tuned is not None:
            self.tuned.show(shares)

    def _train(self, values: Tensor, plans: list[int]) -> None:
        """From now on the model has the runs of these plans: the rows of this matrix."""
        self.runs = plans
        self.flat.train(values, self._shares(plans))
        self._show(values, plans)

    def _mixture(self, run: int) -> int:
        return self.plans[self.runs[run]].mixture

    def _shares(self, plans: list[int]) -> list[int]:
        """How many of these plans train each mixture: its runs lie behind those of the mixture before."""
        every = [self.plans[plan].mixture for plan in plans]
        return [every.count(mixture) for mixture in range(len(self.flat.parts))]

    def _save(self) -> None:
        facts = {
            "runs": self.runs, "width": self.width, "waiting": self.waiting, "seconds": self.seconds, "progress": [vars(one) for one in self.progress],
        }  # fmt: skip
        save_state(self.folder, self._tensors(), facts)  # type: ignore[arg-type]

    def _tensors(self) -> dict[str, Tensor]:
        optimiser = self.optimiser
        return {"values": self.flat.values, "best": self.best, "first": optimiser.first, "second": optimiser.second}

    def _restore(self) -> None:
        found = load_state(self.folder) if self.folder is not None else None
        if found is None:
            return
        tensors, facts = found
        expected = (len(facts["runs"]), self.flat.values.shape[1])
        if any(name not in tensors or tensors[name].shape != expected for name in self._tensors()):
            raise CheckpointError(
                f"{self.folder}: its training's state is of another base or method; remove it to start anew"
            )
        values, self.best, self.optimiser.first, self.optimiser.second = (
            tensors[name].to(self.flat.values, copy=True) for name in self._tensors()
        )  # a copy is aligned as torch aligns: sums over a file's own memory end in other last bits
        self._train(values, facts["runs"])
        self.width = facts.get("width", self.width)
        self.waiting, self.seconds = facts["waiting"], facts["seconds"]
        self.progress = [Progress(**progress) for progress in facts["progress"]]

    def _vector(self, values: list[Any]) -> Tensor:
        return torch.tensor(values, dtype=self.flat.values.dtype, device=self.device)


def _rows_of(matrix: Tensor, rows: list[int]) -> Tensor:
    """The matrix itself where that is all of it."""
    return matrix if len(rows) == len(matrix) else matrix[rows]


def loss(logits: Tensor, targets: Tensor, weights: Tensor, classes: Tensor, regression: Tensor) -> Tensor:
    """`[run]`: mean over the rows that count, of cross-entropy over the task's own classes, or of the squared error.

    logits `[run, block, classes]`, of which a task with fewer classes has the first; targets and weights `[run, block]`;
    classes and regression `[run]`: how many the run's task has, and 1 where it has none but a number to say.
    """
    numbers, targets = regression[:, None] > 0, targets.to(logits.dtype)
    beyond = torch.arange(logits.shape[-1], device=logits.device) >= classes[:, None, None]
    named = targets.masked_fill(numbers, 0.0).long()
    entropy = F.cross_entropy(logits.masked_fill(beyond, -torch.inf).mT, named, reduction="none")
    each = torch.where(numbers, (logits[..., 0] - targets).square(), entropy)
    return (each * weights).sum(dim=1) / weights.sum(dim=1)


def _targets(plan: Plan, rows: list[int], block: int) -> list[float]:
    mean, deviation = plan.unit
    mine = [(plan.train.labels[row] - mean) / deviation for row in rows]  # type: ignore[index]
    return mine + mine[:1] * (block - len(mine))
