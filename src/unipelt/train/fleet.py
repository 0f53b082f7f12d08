"""The training loop: many runs over one frozen base, with one forward and backward per step of all runs.

Each run has its own examples, order, learning rate, schedule, clipping, early stopping and best parameters. The examples
of a step are equal blocks, one block per run. When a run ends, the next queued run takes its index. A single run is a fleet
of one.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unipelt.inject.heads import to_units
from unipelt.inject.state import NAME, MixtureState
from unipelt.tasks.batches import Encoded, Part
from unipelt.train.capture import CapturedStep, CudaGraphs
from unipelt.train.forward import StepInputs, autocast, logits_of, predict_with_gates, step_batches
from unipelt.train.frozen import FrozenStates
from unipelt.train.head_start import start_heads
from unipelt.train.optimizer import AdamW, ParameterMatrix
from unipelt.train.recipes import kind_of
from unipelt.train.records import FAILED
from unipelt.train.run_folder import Loop
from unipelt.train.runs import FinishedRun, Plan
from unipelt.train.state import find_state, save_state

SAVE_EVERY = 30.0  # seconds after which the state is saved where no evaluation has come before
SAVE_SHARE = 0.05  # largest share of the time that saving states may take

Observer = Callable[["Fleet", str], None]
"""Called with the fleet after each step, each evaluation and each batch of predictions: `step`, `evaluation`, `prediction`"""


class OutOfTime(Exception):
    """The deadline has passed."""


class Fleet:
    """Trains plans in the runs of an attached model, or one plan with full fine-tuning.

    The first plans start in the model's runs; the others wait until a run ends. folder: where the state is saved and found
    again. deadline: value of time.monotonic() after which OutOfTime is raised.
    """

    def __init__(
        self, model: PreTrainedModel, plans: list[Plan], tokenizer: PreTrainedTokenizerBase, *,
        folder: Path | None = None, on_step: Observer | None = None, deadline: float | None = None,
        frozen: FrozenStates | None = None,
    ):  # fmt: skip
        self.model, self.plans, self.tokenizer, self.folder = model, plans, tokenizer, folder
        self.on_step, self.deadline, self.frozen = on_step, deadline, frozen
        self.saving = 0.0
        """seconds that the last save took"""
        self.device = next(model.parameters()).device
        self.loss, self.task = plans[0].task.loss, type(plans[0].task)
        self.attached: MixtureState | None = getattr(model, NAME, None)
        self.width = 1 if self.attached is None else self.attached.runs
        """number of runs at once when the training began"""
        self.records = [replace(plan.initial_record, curve=[], width=self.width) for plan in plans]
        """of each plan: how far its run is"""
        self.plan_numbers = list(range(len(plans)))[: self.width]
        """by run of the model: number of the plan that it trains"""
        self.queue = list(range(len(plans)))[self.width :]
        """numbers of the plans that have no run yet"""
        trained: nn.Module = model if self.attached is None else self.attached
        parameters = [p for p in trained.parameters() if p.requires_grad or self.attached is not None]
        rated = any(plan.recipe.rates for plan in plans)
        located = [] if self.attached is None or not rated else self.attached.named_locations()
        kinds = [kind_of(self.attached.mixture, at) for at, _ in located]  # type: ignore[union-attr]
        self.kinds = list(dict.fromkeys(kinds))
        """kinds of parameters with separate learning rates; empty if no run has one"""
        columns = [self.kinds.index(kind) for kind in kinds] or None
        self.matrix = ParameterMatrix(parameters, self.width, run_axis=self.attached is not None, kinds=columns)
        self.best = self.matrix.values.clone()
        self.optimizer = AdamW(self.matrix)
        self.epoch_batches: dict[tuple[int, int], list[list[list[int]]]] = {}
        on_gpu = self.device.type == "cuda"
        self.advance = (
            CapturedStep(self._advance, self._mutable_tensors, CudaGraphs(self.device)) if on_gpu else self._advance
        )

    def train(self) -> Iterator[FinishedRun]:
        """Train all plans, from the last saved state if there is one, and yield each run when it ends.

        After a kill, a run that had been yielded may be yielded again: one whose index had no other plan yet when the last state was
        saved.

        Raises OutOfTime after the deadline, and CheckpointError if a state cannot be read or written.
        """
        if not self._restore():
            self.start_heads([*range(len(self.plan_numbers))])
        yield from self._collect_finished()
        last = saved = time.monotonic()
        while self.plan_numbers:
            self.step()
            due = [run for run, number in enumerate(self.plan_numbers) if self._is_due(number)]
            if due:
                self._evaluate(due)
            now = time.monotonic()
            self._add_seconds(now - last, self.plan_numbers)
            all_ended = all(self.records[number].ended for number in self.plan_numbers)
            should_save = (due or now - saved > SAVE_EVERY) and (now - saved) * SAVE_SHARE >= self.saving
            if self.folder is not None and (should_save or all_ended):
                self._save()
                saved = time.monotonic()
                self.saving = saved - now
            self._after("evaluation" if due else "step")
            before = time.monotonic()
            yield from self._collect_finished()
            last = now + time.monotonic() - before  # handling finished runs is not training time

    @property
    def seconds(self) -> float:
        """Seconds of the whole training."""
        return sum(record.seconds for record in self.records)

    def predict(self, data: list[Encoded]) -> list[Float[Tensor, "example ..."]]:
        """Logits of every run for its own examples, in their order."""
        return [logits for logits, _ in self._predict(data, gates=False)]

    def _predict(self, data: list[Encoded], gates: bool) -> list[tuple[Tensor, dict[str, Tensor]]]:
        return predict_with_gates(
            self.model, self.tokenizer, data, task=self.task, precision=self.plans[0].recipe.precision, frozen=self.frozen,
            on_batch=self._on_batch, gates=gates,
        )  # fmt: skip

    def start_heads(self, runs: list[int]) -> None:
        """Start the heads of these runs as their recipes say, before their first step."""
        for run in start_heads(self.model, [self.plans[number] for number in self.plan_numbers], runs, self.predict):
            self.best[run].copy_(self.matrix.values[run])

    def step(self) -> None:
        """Take one step of every run."""
        losses, finite = self.advance(self._inputs()).tolist()
        for number, loss_, fine in zip(self.plan_numbers, losses, finite):
            record = self.records[number]
            record.steps += 1
            if fine:
                record.losses += loss_
                continue
            what = f"loss is not finite ({loss_})" if not math.isfinite(loss_) else "gradient is not finite"
            lower = f"try a lower --lr than {self.plans[number].recipe.lr:g}"
            record.status = f"{FAILED}the {what} at step {record.steps}; {lower}"

    def _after(self, event: str) -> None:
        """Tell the observer what has happened. After the deadline save the state and raise OutOfTime."""
        if self.on_step is not None:
            self.on_step(self, event)
        if self.deadline is not None and time.monotonic() > self.deadline:
            if self.folder is not None and event != "prediction":  # during predictions the step is incomplete
                self._save()
            raise OutOfTime

    def _on_batch(self, examples: int) -> None:
        self._after("prediction")

    def _is_due(self, number: int) -> bool:
        record = self.records[number]
        return not record.ended and self.plans[number].is_due(record.steps)

    def _add_seconds(self, seconds: float, numbers: Sequence[int]) -> None:
        """Count seconds that were spent on these plans."""
        for number in numbers:
            self.records[number].seconds += seconds / len(numbers)

    def _inputs(self) -> StepInputs:
        """The inputs of the next step of every run."""
        plans = [self.plans[number] for number in self.plan_numbers]
        steps = [self.records[number].steps for number in self.plan_numbers]
        parts = [
            [Part(plan.task, plan.train, examples) for examples in self._examples(number)]
            for number, plan in zip(self.plan_numbers, plans)
        ]
        batches, shares = step_batches(self.task, parts, self.tokenizer, self.device, self.frozen, self._on_batch)
        decay = [plan.recipe.weight_decay for plan in plans]
        return StepInputs(
            batches, shares, self._vector([step + 1.0 for step in steps]),
            self._vector([plan.rates(step, self.kinds) for plan, step in zip(plans, steps)]),
            self._vector([plan.recipe.clip for plan in plans]), self._vector(decay) if any(decay) else None,
        )  # fmt: skip

    def _advance(self, step: StepInputs) -> Float[Tensor, "2 run"]:
        """Forwards, backwards and update, without waiting for the device. Return the losses, and whether all values were finite."""
        if not self.model.training:
            self.model.train()
        frozen = None if self.frozen is None else self.frozen.layers
        recipe, parts = self.plans[0].recipe, []
        for number, batch in enumerate(step.batches):
            logits = logits_of(self.model, batch.inputs, recipe.precision, frozen)
            logits = logits.unflatten(0, (len(batch.targets), -1))
            own = self.loss(logits, batch._replace(smoothing=recipe.label_smoothing))
            own = own * step.shares[number] if step.shares else own
            own.sum().backward()  # a loss that is not finite affects only the gradients of its run
            parts.append(own.detach())
        losses, gradients = sum(parts[1:], parts[0]), self.matrix.gather()
        finite = losses.isfinite() & gradients.isfinite().all(dim=1)
        gradients.masked_fill_(~finite[:, None], 0.0)
        rates = step.rates * (finite[:, None] if self.kinds else finite)
        self.optimizer.step(step.numbers, rates, step.clip, step.decay)
        return torch.stack([losses, finite.to(losses.dtype)])

    def _mutable_tensors(self) -> list[Tensor]:
        """The tensors that a step changes in place."""
        return [self.matrix.values, self.matrix.written, self.optimizer.first, self.optimizer.second]

    def _examples(self, number: int) -> list[list[int]]:
        """The training examples of each forward of a plan's next step."""
        plan = self.plans[number]
        step = self.records[number].steps % plan.steps  # a time estimate may take more steps than the plan has
        epoch = plan.epochs_at(step)
        if (number, epoch) not in self.epoch_batches:
            self.epoch_batches.pop((number, epoch - 1), None)
            self.epoch_batches[number, epoch] = plan.epoch(epoch)
        return self.epoch_batches[number, epoch][step - (plan.ends[epoch - 1] if epoch else 0)]

    def _evaluate(self, due: list[int]) -> None:
        """Evaluate the validation examples of these runs, and keep their parameters if they are the best so far."""
        plans = [self.plans[self.plan_numbers[run]] for run in due]
        with self._with_parameters(self.matrix.rows(due)):
            every = self.predict([plan.validation for plan in plans])
            texts = self._generate(plans, "validation", [plan.task.selects_by_text for plan in plans])
        for run, plan, logits, written in zip(due, plans, every, texts):
            if plan.evaluate(self.records[self.plan_numbers[run]], logits, written):
                self.best[run].copy_(self.matrix.values[run])

    def _generate(self, plans: list[Plan], split: str, wanted: list[bool]) -> list[list[str] | None]:
        """The generated texts of each run for a split; None for all if no run needs them."""
        if not any(wanted):
            return [None] * len(plans)
        every = [getattr(plan, split) for plan in plans]
        with autocast(self.device, plans[0].recipe.precision):
            return list(plans[0].task.generate(self.model, self.tokenizer, every, self._on_batch))

    def _collect_finished(self) -> Iterator[FinishedRun]:
        """Test the ended runs, give their indices to the next plans of the queue, then yield them."""
        ended = [run for run, number in enumerate(self.plan_numbers) if self.records[number].ended]
        if not ended:
            return
        started, numbers = time.monotonic(), [self.plan_numbers[run] for run in ended]
        finished = self._test(numbers, self.best[ended])
        self._refill(ended)
        self._add_seconds(time.monotonic() - started, numbers)
        for run in finished:
            run.record.seconds = self.records[run.plan_number].seconds
            yield run

    def _test(self, numbers: list[int], best: Float[Tensor, "run parameters"]) -> list[FinishedRun]:
        """Test the best parameters of these plans. best: a copy; the states of the finished runs are views of it."""
        plans = [self.plans[number] for number in numbers]
        found: list[tuple[Tensor | None, dict[str, Tensor]]] = [(None, {})] * len(plans)
        texts: list[list[str] | None] = [None] * len(plans)
        predicting: float | None = None
        with self._with_parameters(best):
            to_units(self.model, [plan.task.target_scale for plan in plans])
            if all(plan.test is not None for plan in plans):
                began = time.monotonic()
                found = [*self._predict([plan.test for plan in plans], gates=self.attached is not None)]  # type: ignore[misc]
                texts = self._generate(plans, "test", [plan.task.generates_text for plan in plans])
                predicting = (time.monotonic() - began) / len(plans)
            states = [
                self.model.state_dict() if self.attached is None else self.attached.state_of(run)
                for run in range(len(plans))
            ]
        finished = []
        for number, (logits, gates), written, state in zip(numbers, found, texts, states):
            record = self.plans[number].result(self.records[number], logits, written, gates)
            record.device, record.predicting = str(self.device), predicting
            finished.append(FinishedRun(record, state, number, self.model))
        return finished

    @torch.no_grad()
    def _refill(self, ended: list[int]) -> None:
        """Give the indices of ended runs to the next plans of the queue; remove runs for which no plan is left."""
        refilled = ended[: len(self.queue)]
        for run in refilled:
            assert self.attached is not None
            following = self.queue.pop(0)
            self.attached.reset_run(run, self.plans[following].key.seed)
            self.best[run].copy_(self.matrix.values[run])
            self.optimizer.reset(run)
            self.plan_numbers[run] = following
        self.start_heads(refilled)
        keep = [run for run, number in enumerate(self.plan_numbers) if not self.records[number].ended]
        if not keep:
            self.plan_numbers = []
        elif len(keep) < len(self.plan_numbers):
            self.best = self.best[keep]
            self.optimizer.keep(keep)
            self._set_runs(self.matrix.values[keep], [self.plan_numbers[run] for run in keep])

    @contextmanager
    def _with_parameters(self, values: Float[Tensor, "run parameters"]) -> Iterator[None]:
        """Context manager: the model's parameters are views of this matrix."""
        self._use(values)
        try:
            yield
        finally:
            self._use(self.matrix.values)

    def _use(self, values: Float[Tensor, "run parameters"]) -> None:
        """Make the model's parameters views of this matrix."""
        self.matrix.bind(values)
        if self.attached is not None:
            self.attached.set_runs([len(values)])

    def _set_runs(self, values: Float[Tensor, "run parameters"], numbers: list[int]) -> None:
        """Train these plans from now on, each in its row of this matrix."""
        self.plan_numbers = numbers
        self.matrix.replace_values(values)
        self._use(values)

    def _save(self) -> None:
        save_state(self.folder, self._tensors(), Loop(self.plan_numbers, self.records))  # type: ignore[arg-type]

    def _tensors(self) -> dict[str, Tensor]:
        optimizer = self.optimizer
        return {"values": self.matrix.values, "best": self.best, "first": optimizer.first, "second": optimizer.second}

    def _restore(self) -> bool:
        """Continue from the last saved state; whether there was one."""
        if self.folder is None:
            return False
        found = find_state(self.folder, self.records, [*self._tensors()], self.matrix.values.shape[1])
        if found is None:
            return False
        tensors, loop = found
        values, self.best, self.optimizer.first, self.optimizer.second = (
            tensors[name].to(self.matrix.values, copy=True) for name in self._tensors()
        )  # copied, because memory-mapped tensors are aligned differently, which changes the last bits of sums
        self._set_runs(values, loop.runs)
        self.records, self.width = loop.records, loop.records[0].width or self.width
        ended = [number for number, record in enumerate(self.records) if record.ended]
        self.queue = [number for number in range(len(self.plans)) if number not in (*loop.runs, *ended)]
        return True

    def _vector(self, values: Sequence[float | list[float]]) -> Tensor:
        return torch.tensor(values, dtype=self.matrix.values.dtype, device=self.device)
