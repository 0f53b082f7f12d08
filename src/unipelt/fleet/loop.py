"""The training loop: many runs over one frozen base, a step of all of them in one forward and backward. One run is a fleet of one.

Each run has its own rows, data order, learning rate, schedule, clipping, early stopping and best parameters; the rows of a
step lie in equal blocks, one block a run.
"""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from unipelt.data import Task, score
from unipelt.errors import CheckpointError
from unipelt.fleet.encode import Encoded, collate, epoch_order, sorted_batches
from unipelt.fleet.flat import AdamW, Flat
from unipelt.fleet.recipe import Recipe
from unipelt.fleet.state import load_state, save_state
from unipelt.inject.tuned import NAME

EVALUATION_ROWS = 128  # rows a forward, without gradients
SAVE_EVERY = 30.0  # seconds between states, evaluations apart


@dataclass(frozen=True)
class Plan:
    """What one run trains on, and how."""

    task: Task
    train: Encoded
    dev: Encoded
    recipe: Recipe
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.train) // self.recipe.batch_size)

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.recipe.epochs

    def is_due(self, step: int) -> bool:
        """Whether the development rows are looked at after so many steps."""
        return step == self.steps or step % (self.steps_per_epoch * self.recipe.evaluate_every) == 0

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, linear decay to 0."""
        warm = max(1, math.ceil(self.recipe.warmup * self.steps))
        return self.recipe.lr * min((step + 1) / warm, max(0.0, (self.steps - step) / max(1, self.steps - warm)))


@dataclass
class Progress:
    """How one run stands."""

    best: float = -math.inf
    best_epoch: int = -1
    waited: int = 0
    ended: str = ""
    """why it ended: finished, stopped early, or what went wrong; empty while it runs"""
    losses: float = 0.0
    """sum of the losses since the last evaluation, of `steps` steps"""
    steps: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)
    """one row an evaluation: epoch, step, loss, metrics"""


class Fleet:
    """Trains the runs of an attached model, or one run of a whole model.

    watch(fleet, event) is called after each step and evaluation. folder: where the state is kept, and found again.
    """

    def __init__(
        self, model: PreTrainedModel, plans: list[Plan], tokenizer: Any, *,
        folder: Path | None = None, watch: Callable[["Fleet", str], None] = lambda fleet, event: None,
    ):  # fmt: skip
        self.model, self.plans, self.tokenizer, self.folder, self.watch = model, plans, tokenizer, folder, watch
        self.progress = [Progress() for _ in plans]
        self.step, self.seconds = 0, 0.0
        self.device = next(model.parameters()).device
        tuned = getattr(model, NAME, None)
        parameters = [p for p in (tuned or model).parameters() if p.requires_grad]
        self.flat = Flat(parameters, len(plans), run_axis=tuned is not None)
        self.best = self.flat.values.clone()
        self.optimiser = AdamW(self.flat, self._vector([plan.recipe.weight_decay for plan in plans]))
        self.orders: dict[tuple[int, int], list[list[int]]] = {}

    @property
    def running(self) -> list[int]:
        return [run for run, progress in enumerate(self.progress) if not progress.ended]

    def train(self) -> None:
        """Train every run to its end, from the last state where there is one. The best parameters are in the model then."""
        self._restore()
        last = started = time.monotonic()
        while self.running:
            self._step()
            due = [run for run in self.running if self.plans[run].is_due(self.step)]
            if due:
                self._evaluate(due)
            now = time.monotonic()
            if self.folder is not None and (due or now - last > SAVE_EVERY):
                self._save(self.seconds + now - started)
                last = now
            self.watch(self, "evaluated" if due else "stepped")
        self.seconds += time.monotonic() - started
        with torch.no_grad():
            self.flat.values.copy_(self.best)

    def predict(self, data: list[Encoded], watch: Callable[[int], None] = lambda rows: None) -> list[Tensor]:
        """Logits `[rows, classes]` of every run for its own rows, in their order."""
        return predict(self.model, self.tokenizer, data, watch)

    def _step(self) -> None:
        self.model.train()
        parts = [(plan.train, self._rows(run)) for run, plan in enumerate(self.plans)]
        inputs, weights = collate(parts, self.tokenizer, self.device)
        with precision(self.device):
            logits = self.model(**inputs).logits
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).unflatten(0, (len(self.plans), -1))
        losses = torch.stack([
            loss(plan.task, logits[run], [plan.train.labels[row] for row in parts[run][1]], weights[run])  # type: ignore[index]
            for run, plan in enumerate(self.plans)
        ])  # fmt: skip
        active = self._vector([0.0 if progress.ended else 1.0 for progress in self.progress])
        (losses * active).sum().backward()  # one that is not finite reaches its own run's gradients alone
        rates = self._vector([plan.rate(self.step) for plan in self.plans]) * active
        gradients = self.flat.gather()
        finite = losses.isfinite() & gradients.isfinite().all(dim=1)
        gradients.masked_fill_(~finite[:, None], 0.0)
        self.optimiser.step(rates * finite, self._vector([plan.recipe.clip for plan in self.plans]))
        self.step += 1
        for run, (value, fine) in enumerate(zip(losses.tolist(), finite.tolist())):
            progress = self.progress[run]
            if progress.ended:
                continue
            if not fine:
                what = f"loss is not finite ({value})" if not math.isfinite(value) else "gradient is not finite"
                progress.ended = (
                    f"the {what} at step {self.step}: expected a number; lower --lr {self.plans[run].recipe.lr:g}"
                )
                continue
            progress.losses += value
            progress.steps += 1

    def _rows(self, run: int) -> list[int]:
        """The training rows of a run at this step; a run that has ended repeats its last, which count for nothing."""
        plan = self.plans[run]
        epoch, index = divmod(min(self.step, plan.steps - 1), plan.steps_per_epoch)
        if (run, epoch) not in self.orders:
            self.orders = {key: order for key, order in self.orders.items() if key[0] != run}
            self.orders[run, epoch] = epoch_order(plan.train.lengths(), plan.recipe.batch_size, plan.seed, epoch)
        return self.orders[run, epoch][index]

    def _evaluate(self, due: list[int]) -> None:
        logits = self.predict([plan.dev for plan in self.plans])
        for run in due:
            plan, progress = self.plans[run], self.progress[run]
            metrics = score(plan.task, decisions(plan.task, logits[run]), plan.dev.labels or [])
            value, epoch = metrics[plan.task.metric], self.step // plan.steps_per_epoch
            progress.curve.append(
                {"epoch": epoch, "step": self.step, "loss": progress.losses / max(1, progress.steps), **metrics}
            )
            progress.losses, progress.steps = 0.0, 0
            if value > progress.best:
                progress.best, progress.best_epoch, progress.waited = value, epoch, 0
                self.best[run].copy_(self.flat.values[run])
            else:
                progress.waited += 1
            if self.step >= plan.steps:
                progress.ended = "finished"
            elif plan.recipe.patience and progress.waited >= plan.recipe.patience:
                progress.ended = "stopped early"

    def _save(self, seconds: float) -> None:
        facts = {"step": self.step, "seconds": seconds, "progress": [vars(progress) for progress in self.progress]}
        save_state(self.folder, self._tensors(), facts)  # type: ignore[arg-type]

    def _tensors(self) -> dict[str, Tensor]:
        optimiser = self.optimiser
        return {"values": self.flat.values, "best": self.best, "first": optimiser.first, "second": optimiser.second}

    def _restore(self) -> None:
        found = load_state(self.folder) if self.folder is not None else None
        if found is None:
            return
        tensors, facts = found
        with torch.no_grad():
            for name, own in self._tensors().items():
                if name not in tensors or tensors[name].shape != own.shape:
                    raise CheckpointError(
                        f"{self.folder}: its training's state is of another base or method; remove it to start anew"
                    )
                own.copy_(tensors[name])
        self.step = self.optimiser.steps = facts["step"]
        self.seconds = facts["seconds"]
        self.progress = [Progress(**progress) for progress in facts["progress"]]

    def _vector(self, values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=self.flat.values.dtype, device=self.device)


def loss(task: Task, logits: Tensor, labels: list[Any], weights: Tensor) -> Tensor:
    """Mean over the rows that count: cross-entropy over the task's own classes, or the squared error of a regression."""
    labels = labels + labels[:1] * (len(weights) - len(labels))
    if task.kind == "regression":
        target = torch.tensor(labels, dtype=logits.dtype, device=logits.device)
        each = (logits[:, 0] - target).square()
    else:
        target = torch.tensor(labels, device=logits.device)
        each = F.cross_entropy(logits[:, : len(task.labels)], target, reduction="none")
    return (each * weights).sum() / weights.sum()


def decisions(task: Task, logits: Tensor) -> list[Any]:
    """Predicted class indices, or values of a regression."""
    if task.kind == "regression":
        return logits[:, 0].tolist()
    return logits[:, : len(task.labels)].argmax(dim=-1).tolist()


@torch.no_grad()
def predict(
    model: PreTrainedModel, tokenizer: Any, data: list[Encoded], watch: Callable[[int], None] = lambda rows: None
) -> list[Tensor]:
    """Logits `[rows, classes]` of every run for its own rows, in their order; batches of like length, largest first."""
    model.eval()
    device = next(model.parameters()).device
    rows_each = max(1, EVALUATION_ROWS // len(data))
    queues = [list(sorted_batches(encoded.lengths(), rows_each)) for encoded in data]
    results: list[Tensor | None] = [None] * len(data)
    for index in range(max(len(queue) for queue in queues)):
        parts = [(encoded, queue[min(index, len(queue) - 1)]) for encoded, queue in zip(data, queues)]
        inputs, _ = collate(parts, tokenizer, device)
        with precision(device):
            logits = model(**inputs).logits
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).cpu().unflatten(0, (len(data), -1))
        for run, (encoded, rows) in enumerate(parts):
            if results[run] is None:
                results[run] = logits.new_empty(len(encoded), logits.shape[-1])
            results[run][torch.tensor(rows)] = logits[run, : len(rows)]  # type: ignore[index]
        watch(sum(len(rows) for _, rows in parts))
    return results  # type: ignore[return-value]


def precision(device: torch.device) -> Any:
    """bf16 where the device has it; the tuned parameters stay float32."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return nullcontext()
