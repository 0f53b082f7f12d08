"""The training loop: many runs over one frozen base, one forward and backward for a step of all of them.

Each run has its own examples, order, learning rate, schedule, clipping, early stopping and best parameters. The examples
of a step lie in equal blocks, one block per run. A run that ends gives its place to the next in the queue. One run is a
fleet of one.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from unipelt.inject.heads import to_units
from unipelt.inject.state import NAME, MixtureState
from unipelt.tasks.batches import Encoded, Part
from unipelt.train.capture import Captured, CudaGraphs
from unipelt.train.evaluation import predict
from unipelt.train.forward import STATES, logits_of
from unipelt.train.frozen import FrozenStates
from unipelt.train.optimizer import AdamW, ParameterMatrix
from unipelt.train.progress import Loop, Progress
from unipelt.train.recipes import kind_of
from unipelt.train.records import RunRecord
from unipelt.train.runs import FinishedRun, Plan
from unipelt.train.state import find_state, identity_of, save_state
from unipelt.train.step import forwards, step_inputs

SAVE_EVERY = 30.0  # seconds between states, evaluations apart
SAVE_SHARE = 0.05  # largest share of the time that saving states may take

Observer = Callable[["Fleet", str], None]
"""Called with the fleet after each step, each evaluation and each batch of predictions: `step`, `evaluation`, `prediction`"""


class OutOfTime(Exception):
    """The deadline has passed."""


class Fleet:
    """Trains plans in the runs of an attached model, or one plan in a model that is tuned whole.

    The first plans get the model's runs with their initial values; the others wait for a run that ends. folder: where the
    state is saved, and found again. deadline: moment of time.monotonic() after which OutOfTime is raised.
    """

    def __init__(
        self, model: PreTrainedModel, plans: list[Plan], tokenizer: Any, *,
        folder: Path | None = None, on_step: Observer | None = None, deadline: float | None = None,
        frozen: FrozenStates | None = None,
    ):  # fmt: skip
        self.model, self.plans, self.tokenizer, self.folder = model, plans, tokenizer, folder
        self.on_step, self.deadline, self.frozen = on_step, deadline, frozen
        self.progress = [Progress() for _ in plans]
        self.seconds, self.saving = 0.0, 0.0
        self.device = next(model.parameters()).device
        self.loss, self.task = plans[0].task.loss, type(plans[0].task)
        self.tuned: MixtureState | None = getattr(model, NAME, None)
        self.width = 1 if self.tuned is None else self.tuned.runs
        """runs at once when the training began"""
        self.runs = list(range(len(plans)))[: self.width]
        """the plan that each run of the model trains"""
        self.waiting = list(range(len(plans)))[self.width :]
        """plans that have no run yet"""
        if self.tuned is None:
            parameters = [p for p in model.parameters() if p.requires_grad]
        else:
            parameters = list(self.tuned.parameters())
        kinds = (
            [] if self.tuned is None else [kind_of(self.tuned.mixture, at) for at, _ in self.tuned.named_locations()]
        )
        self.kinds = list(dict.fromkeys(kinds)) if any(plan.recipe.rates for plan in plans) else []
        """the kinds of parameters that have learning rates of their own; empty where no run asks for one"""
        columns = [self.kinds.index(kind) for kind in kinds] if self.kinds else None
        self.matrix = ParameterMatrix(parameters, self.width, run_axis=self.tuned is not None, kinds=columns)
        self.best = self.matrix.values.clone()
        self.optimizer = AdamW(self.matrix)
        self.orders: dict[tuple[int, int], list[list[list[int]]]] = {}
        on_gpu = self.device.type == "cuda"
        self.advance = Captured(self._advance, self._written, CudaGraphs(self.device)) if on_gpu else self._advance

    def train(self) -> Iterator[FinishedRun]:
        """Train every plan to its end, from the last state where there is one, and yield each run as it ends.

        After a kill, runs that had ended when the last state was saved are yielded again.

        Raises OutOfTime after the deadline, CheckpointError where a state cannot be read or written.
        """
        self._restore()
        yield from self._finished()
        last = saved = time.monotonic()
        while self.runs:
            self.step()
            due = [run for run, plan in enumerate(self.runs) if self._is_due(plan)]
            if due:
                self._evaluate(due)
            now = time.monotonic()
            self._count(now - last)
            over = all(self.progress[plan].ended for plan in self.runs)
            wanted = (due or now - saved > SAVE_EVERY) and (now - saved) * SAVE_SHARE >= self.saving
            if self.folder is not None and (wanted or over):
                self._save()
                saved = time.monotonic()
                self.saving = saved - now
            self._notify("evaluation" if due else "step")
            before = time.monotonic()
            yield from self._finished()
            last = now + time.monotonic() - before  # what is done with a finished run is not training time

    def predict(self, data: list[Encoded], **how: Any) -> list[Float[Tensor, "example class"]]:
        """Logits of every run for its own examples, in their order."""
        return predict(
            self.model, self.tokenizer, data, lambda rows: self._notify("prediction"), task=self.task,
            precision=self.plans[0].recipe.precision, frozen=self.frozen, **how,
        )  # fmt: skip

    def step(self) -> None:
        """Take one step of every run."""
        losses, finite = self.advance(self._batch()).tolist()
        for plan, loss_, fine in zip(self.runs, losses, finite):
            progress = self.progress[plan]
            progress.step += 1
            if fine:
                progress.losses += loss_
                progress.steps += 1
                continue
            what = f"loss is not finite ({loss_})" if not math.isfinite(loss_) else "gradient is not finite"
            progress.ended = (
                f"failed: the {what} at step {progress.step}; try a lower --lr than {self.plans[plan].recipe.lr:g}"
            )

    def _notify(self, event: str) -> None:
        if self.on_step is not None:
            self.on_step(self, event)
        if self.deadline is not None and time.monotonic() > self.deadline:
            if self.folder is not None and event != "prediction":  # amid predictions a step is half done
                self._save()
            raise OutOfTime

    def _is_due(self, plan: int) -> bool:
        progress = self.progress[plan]
        return not progress.ended and self.plans[plan].is_due(progress.step)

    def _count(self, seconds: float) -> None:
        self.seconds += seconds
        for plan in self.runs:
            self.progress[plan].seconds += seconds / len(self.runs)

    def _batch(self) -> dict[str, Tensor]:
        """What the next step depends on besides the parameters: what its forwards read, and the values of each run."""
        plans, steps = [self.plans[plan] for plan in self.runs], [self.progress[plan].step for plan in self.runs]
        parts = [
            [Part(plan.task, plan.train, examples) for examples in self._examples(number)]
            for number, plan in zip(self.runs, plans)
        ]
        given = step_inputs(self.task, parts, self.tokenizer, self.device, self._states)
        each: dict[str, list[Any]] = {
            "step": [step + 1.0 for step in steps], "rate": [plan.rates(step, self.kinds) for plan, step in zip(plans, steps)],
            "clip": [plan.recipe.clip for plan in plans], "decay": [plan.recipe.weight_decay for plan in plans],
        }  # fmt: skip
        if not any(each["decay"]):
            del each["decay"]
        return given | {name: self._vector(values) for name, values in each.items()}

    def _states(self, parts: Sequence[Part], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the frozen layers give for a batch, where it is kept."""
        if self.frozen is None:
            return {}
        return {STATES: self.frozen.states(parts, inputs, lambda rows: self._notify("prediction"))}

    def _advance(self, batch: dict[str, Tensor]) -> Float[Tensor, "2 run"]:
        """Forwards, backwards and update, without waiting for a number: the losses, and whether all was finite."""
        if not self.model.training:
            self.model.train()
        frozen = None if self.frozen is None else self.frozen.layers
        recipe, parts = self.plans[0].recipe, []
        for one, share in forwards(batch, recipe.label_smoothing):
            logits = logits_of(self.model, one.inputs, recipe.precision, frozen)
            logits = logits.unflatten(0, (len(batch["step"]), -1))
            own = self.loss(logits, one) if share is None else self.loss(logits, one) * share
            own.sum().backward()  # a loss that is not finite reaches its own run's gradients alone
            parts.append(own.detach())
        losses, gradients = sum(parts[1:], parts[0]), self.matrix.gather()
        finite = losses.isfinite() & gradients.isfinite().all(dim=1)
        gradients.masked_fill_(~finite[:, None], 0.0)
        rates = batch["rate"] * (finite[:, None] if self.kinds else finite)
        self.optimizer.step(batch["step"], rates, batch["clip"], batch.get("decay"))
        return torch.stack([losses, finite.to(losses.dtype)])

    def _written(self) -> list[Tensor]:
        """The tensors that a step changes in place."""
        return [self.matrix.values, self.matrix.written, self.optimizer.first, self.optimizer.second]

    def _examples(self, plan: int) -> list[list[int]]:
        """The training examples of each forward of a plan's next step."""
        chosen = self.plans[plan]
        step = self.progress[plan].step % chosen.steps  # an estimate of time may take more steps than there are
        epoch = chosen.epochs_at(step)
        if (plan, epoch) not in self.orders:
            self.orders.pop((plan, epoch - 1), None)
            self.orders[plan, epoch] = chosen.epoch(epoch)
        return self.orders[plan, epoch][step - (chosen.ends[epoch - 1] if epoch else 0)]

    def _evaluate(self, due: list[int]) -> None:
        """Score the validation examples of some runs, and keep their parameters where they are the best so far."""
        plans = [self.plans[self.runs[run]] for run in due]
        with self._holding(_rows_of(self.matrix.values, due)):
            every = self.predict([plan.validation for plan in plans])
            texts = self._texts(plans, "validation", [plan.task.selects_by_text for plan in plans])
        for run, plan, logits, written in zip(due, plans, every, texts):
            if plan.evaluate(self.progress[self.runs[run]], logits, written):
                self.best[run].copy_(self.matrix.values[run])

    def _texts(self, plans: list[Plan], part: str, wanted: list[bool]) -> list[list[str] | None]:
        """What each run writes for its own examples of a part, where any of them is wanted."""
        if not any(wanted):
            return [None] * len(plans)
        every = [getattr(plan, part) for plan in plans]
        return list(plans[0].task.answers(self.model, self.tokenizer, every, lambda rows: self._notify("prediction")))

    def _finished(self) -> Iterator[FinishedRun]:
        """Yield the runs that have ended, after their places have been given to the next plans of the queue."""
        ended = [run for run, plan in enumerate(self.runs) if self.progress[plan].ended]
        if not ended:
            return
        started, plans = time.monotonic(), [self.runs[run] for run in ended]
        found = self._results(plans, self.best[ended])
        self._refill(ended)
        seconds = time.monotonic() - started
        self.seconds += seconds
        for plan in plans:
            self.progress[plan].seconds += seconds / len(plans)
        for plan, (record, state) in zip(plans, found):
            record = replace(record, seconds=self.progress[plan].seconds)
            yield FinishedRun(self.plans[plan].key, record, state, plan, self.model)

    def _results(
        self, plans: list[int], best: Float[Tensor, "run parameters"]
    ) -> list[tuple[RunRecord, dict[str, Tensor]]]:
        """Test the best parameters of these plans. best: a copy, which the state dicts are views of."""
        chosen = [self.plans[plan] for plan in plans]
        with self._holding(best):
            to_units(self.model, [plan.task.unit for plan in chosen])
            logits: list[Any] = [None] * len(plans)
            predicting: float | None = None
            texts: list[list[str] | None] = [None] * len(plans)
            gates: list[dict[str, Tensor]] = [{} for _ in plans]
            if all(plan.test is not None for plan in chosen):
                began = time.monotonic()
                logits = self.predict([plan.test for plan in chosen], gates=None if self.tuned is None else gates)  # type: ignore[misc]
                texts = self._texts(chosen, "test", [plan.task.writes for plan in chosen])
                predicting = (time.monotonic() - began) / len(plans)
            states = [
                self.model.state_dict() if self.tuned is None else self.tuned.state_of(i) for i in range(len(plans))
            ]
        every = zip(plans, chosen, logits, texts, gates)
        records = [plan.result(self.progress[number], *one) for number, plan, *one in every]
        how: dict[str, Any] = {"width": self.width, "device": str(self.device), "predicting": predicting}
        return [(replace(one, **how), state) for one, state in zip(records, states)]

    @torch.no_grad()
    def _refill(self, ended: list[int]) -> None:
        """Give the places of ended runs to the next plans of the queue; drop places for which no plan is left."""
        for run in ended[: len(self.waiting)]:
            assert self.tuned is not None
            following = self.waiting.pop(0)
            self.tuned.reset_run(run, self.plans[following].key.seed)
            self.best[run].copy_(self.matrix.values[run])
            self.optimizer.reset(run)
            self.runs[run] = following
        keep = [run for run, plan in enumerate(self.runs) if not self.progress[plan].ended]
        if not keep:
            self.runs = []
        elif len(keep) < len(self.runs):
            self.best = self.best[keep]
            self.optimizer.keep(keep)
            self._train(self.matrix.values[keep], [self.runs[run] for run in keep])

    @contextmanager
    def _holding(self, values: Float[Tensor, "run parameters"]) -> Iterator[None]:
        """Inside the block the model's parameters are this matrix."""
        self._show(values)
        try:
            yield
        finally:
            self._show(self.matrix.values)

    def _show(self, values: Float[Tensor, "run parameters"]) -> None:
        self.matrix.show(values)
        if self.tuned is not None:
            self.tuned.set_runs([len(values)])

    def _train(self, values: Float[Tensor, "run parameters"], plans: list[int]) -> None:
        """Train these plans in the rows of this matrix from now on."""
        self.runs = plans
        self.matrix.train(values)
        self._show(values)

    def _save(self) -> None:
        loop = Loop(self.runs, self.width, self.waiting, self.seconds, identity_of(self.plans), self.progress)
        save_state(self.folder, self._tensors(), loop)  # type: ignore[arg-type]

    def _tensors(self) -> dict[str, Tensor]:
        optimizer = self.optimizer
        return {"values": self.matrix.values, "best": self.best, "first": optimizer.first, "second": optimizer.second}

    def _restore(self) -> None:
        plans, columns = self.plans, self.matrix.values.shape[1]
        found = (
            find_state(self.folder, identity_of(plans), [*self._tensors()], columns)
            if self.folder is not None
            else None
        )
        if found is None:
            return
        tensors, loop = found
        values, self.best, self.optimizer.first, self.optimizer.second = (
            tensors[name].to(self.matrix.values, copy=True) for name in self._tensors()
        )  # a copy is aligned as torch aligns: sums over a file's own memory end in other last bits
        self._train(values, loop.runs)
        self.width, self.waiting, self.seconds, self.progress = loop.width, loop.waiting, loop.seconds, loop.progress

    def _vector(self, values: list[Any]) -> Tensor:
        return torch.tensor(values, dtype=self.matrix.values.dtype, device=self.device)


def _rows_of(matrix: Tensor, rows: list[int]) -> Tensor:
    """The matrix itself where that is all of it."""
    return matrix if len(rows) == len(matrix) else matrix[rows]
