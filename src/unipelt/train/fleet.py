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

from unipelt.inject.heads import rescale_outputs
from unipelt.inject.state import NAME, MixtureState
from unipelt.tasks.batches import Encoded, Part
from unipelt.train.capture import CapturedStep, CudaGraphs
from unipelt.train.forward import StepInputs, autocast, logits_of, predict_with_gates, step_batches
from unipelt.train.frozen import FrozenStates
from unipelt.train.head_start import start_heads
from unipelt.train.optimizer import AdamW, ParameterMatrix
from unipelt.train.recipes import kind_of
from unipelt.train.records import FAILED
from unipelt.train.run_folder import LoopState
from unipelt.train.runs import FinishedRun, Plan
from unipelt.train.state import restore_state, save_state

SAVE_EVERY = 30.0  # seconds after which the state is saved where no evaluation has come before
SAVE_SHARE = 0.05  # largest share of the time that saving states may take

Observer = Callable[["Fleet", str], None]
"""Called with the fleet after each step, each evaluation and each batch of predictions: `step`, `evaluation`, `prediction`"""


class OutOfTime(Exception):
    """The deadline has passed."""


class Fleet:
    """Trains plans at the run indices of an attached model, or one plan with full fine-tuning.

    Each index trains one plan at a time; the other plans wait until one ends. folder: where the state is saved and found
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
        self.loss, self.task_type = plans[0].task.loss, type(plans[0].task)
        self.attached: MixtureState | None = getattr(model, NAME, None)
        self.runs_at_once = 1 if self.attached is None else self.attached.runs
        """number of runs at once when the training began"""
        self.records = [replace(plan.initial_record, curve=[], runs_at_once=self.runs_at_once) for plan in plans]
        """by plan: the record of its run so far"""
        self.plan_indices = list(range(len(plans)))[: self.runs_at_once]
        """by index on the model's run axis: index of the plan that is trained there"""
        self.queue = list(range(len(plans)))[self.runs_at_once :]
        """indices of the plans that are not started yet"""
        trained: nn.Module = model if self.attached is None else self.attached
        parameters = [p for p in trained.parameters() if p.requires_grad or self.attached is not None]
        rated = any(plan.recipe.rates for plan in plans)
        located = [] if self.attached is None or not rated else self.attached.named_locations()
        kinds = [kind_of(self.attached.mixture, at) for at, _ in located]  # type: ignore[union-attr]
        self.kinds = list(dict.fromkeys(kinds))
        """kinds of parameters with separate learning rates; empty if no run has one"""
        columns = [self.kinds.index(kind) for kind in kinds] or None
        self.matrix = ParameterMatrix(parameters, self.runs_at_once, run_axis=self.attached is not None, kinds=columns)
        self.best = self.matrix.values.clone()
        self.optimizer = AdamW(self.matrix)
        self.epoch_batches: dict[tuple[int, int], list[list[list[int]]]] = {}
        on_gpu = self.device.type == "cuda"
        self.advance = (
            CapturedStep(self._advance, self._mutable_tensors, CudaGraphs(self.device)) if on_gpu else self._advance
        )

    def train(self) -> Iterator[FinishedRun]:
        """Train all plans, from the last saved state if there is one, and yield each run when it ends.

        After a kill, a run may be yielded twice: if the last state was saved before another plan took its index.

        Raises OutOfTime after the deadline, and CheckpointError if a state cannot be read or written.
        """
        if not self._restore():
            self.start_heads([*range(len(self.plan_indices))])
        yield from self._collect_finished()
        last = saved = time.monotonic()
        while self.plan_indices:
            self.step()
            due = [index for index, plan_index in enumerate(self.plan_indices) if self._is_due(plan_index)]
            if due:
                self._evaluate(due)
            now = time.monotonic()
            self._add_seconds(now - last, self.plan_indices)
            all_ended = all(self.records[plan_index].ended for plan_index in self.plan_indices)
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
            self.model, self.tokenizer, data, task_type=self.task_type, precision=self.plans[0].recipe.precision,
            frozen=self.frozen, on_batch=self._on_batch, gates=gates,
        )  # fmt: skip

    def start_heads(self, indices: list[int]) -> None:
        """Start the heads of these runs as their recipes say, before their first step."""
        for index in start_heads(
            self.model, [self.plans[plan_index] for plan_index in self.plan_indices], indices, self.predict
        ):
            self.best[index].copy_(self.matrix.values[index])

    def step(self) -> None:
        """Take one step of every run."""
        losses, finite = self.advance(self._inputs()).tolist()
        for plan_index, loss, is_finite in zip(self.plan_indices, losses, finite):
            record = self.records[plan_index]
            record.steps += 1
            if is_finite:
                record.losses += loss
                continue
            problem = f"loss is not finite ({loss})" if not math.isfinite(loss) else "gradient is not finite"
            lower = f"try a lower --lr than {self.plans[plan_index].recipe.lr:g}"
            record.status = f"{FAILED}the {problem} at step {record.steps}; {lower}"

    def _after(self, event: str) -> None:
        """Tell the observer what has happened. After the deadline save the state and raise OutOfTime."""
        if self.on_step is not None:
            self.on_step(self, event)
        if self.deadline is not None and time.monotonic() > self.deadline:
            if self.folder is not None and event != "prediction":  # during predictions the step is incomplete
                self._save()
            raise OutOfTime

    def _on_batch(self) -> None:
        self._after("prediction")

    def _is_due(self, plan_index: int) -> bool:
        record = self.records[plan_index]
        return not record.ended and self.plans[plan_index].is_due(record.steps)

    def _add_seconds(self, seconds: float, plan_indices: Sequence[int]) -> None:
        """Count seconds that were spent on these plans."""
        for plan_index in plan_indices:
            self.records[plan_index].seconds += seconds / len(plan_indices)

    def _inputs(self) -> StepInputs:
        """The inputs of the next step of every run."""
        plans = [self.plans[plan_index] for plan_index in self.plan_indices]
        steps = [self.records[plan_index].steps for plan_index in self.plan_indices]
        parts = [
            [Part(plan.task, plan.train, examples) for examples in self._examples(plan_index)]
            for plan_index, plan in zip(self.plan_indices, plans)
        ]
        batches, shares = step_batches(self.task_type, parts, self.tokenizer, self.device, self.frozen, self._on_batch)
        decay = [plan.recipe.weight_decay for plan in plans]
        return StepInputs(
            batches, shares, self._vector([step + 1.0 for step in steps]),
            self._vector([plan.rates(step, self.kinds) for plan, step in zip(plans, steps)]),
            self._vector([plan.recipe.clip for plan in plans]), self._vector(decay) if any(decay) else None,
        )  # fmt: skip

    def _advance(self, inputs: StepInputs) -> Float[Tensor, "2 run"]:
        """Forwards, backwards and update, without waiting for the device. Return the losses, and whether all values were finite."""
        if not self.model.training:
            self.model.train()
        frozen = None if self.frozen is None else self.frozen.layers
        recipe, losses_by_forward = self.plans[0].recipe, []
        for forward, batch in enumerate(inputs.batches):
            logits = logits_of(self.model, batch.inputs, recipe.precision, frozen)
            logits = logits.unflatten(0, (len(batch.targets), -1))
            run_losses = self.loss(logits, batch._replace(smoothing=recipe.label_smoothing))
            run_losses = run_losses * inputs.shares[forward] if inputs.shares else run_losses
            run_losses.sum().backward()  # a loss that is not finite affects only the gradients of its run
            losses_by_forward.append(run_losses.detach())
        losses, gradients = sum(losses_by_forward[1:], losses_by_forward[0]), self.matrix.gather()
        finite = losses.isfinite() & gradients.isfinite().all(dim=1)
        gradients.masked_fill_(~finite[:, None], 0.0)
        rates = inputs.rates * (finite[:, None] if self.kinds else finite)
        self.optimizer.step(inputs.steps, rates, inputs.clip, inputs.decay)
        return torch.stack([losses, finite.to(losses.dtype)])

    def _mutable_tensors(self) -> list[Tensor]:
        """The tensors that a step changes in place."""
        return [self.matrix.values, self.matrix.written, self.optimizer.exp_avg, self.optimizer.exp_avg_sq]

    def _examples(self, plan_index: int) -> list[list[int]]:
        """The training examples of each forward of a plan's next step."""
        plan = self.plans[plan_index]
        step = self.records[plan_index].steps % plan.steps  # a time estimate may take more steps than the plan has
        epoch = plan.epochs_at(step)
        if (plan_index, epoch) not in self.epoch_batches:
            self.epoch_batches.pop((plan_index, epoch - 1), None)
            self.epoch_batches[plan_index, epoch] = plan.epoch(epoch)
        return self.epoch_batches[plan_index, epoch][step - (plan.ends[epoch - 1] if epoch else 0)]

    def _evaluate(self, due: list[int]) -> None:
        """Evaluate the validation examples of these runs, and keep their parameters if they are the best so far."""
        plans = [self.plans[self.plan_indices[index]] for index in due]
        with self._with_parameters(self.matrix.rows(due)):
            all_logits = self.predict([plan.validation for plan in plans])
            texts = self._generate(plans, "validation", [plan.task.selects_by_text for plan in plans])
        for index, plan, run_logits, generated in zip(due, plans, all_logits, texts):
            if plan.evaluate(self.records[self.plan_indices[index]], run_logits, generated):
                self.best[index].copy_(self.matrix.values[index])

    def _generate(self, plans: list[Plan], split: str, needs_text: list[bool]) -> list[list[str] | None]:
        """The generated texts of each run for a split; None for all if no run needs them."""
        if not any(needs_text):
            return [None] * len(plans)
        sets = [getattr(plan, split) for plan in plans]
        with autocast(self.device, plans[0].recipe.precision):
            return list(plans[0].task.generate(self.model, self.tokenizer, sets, self._on_batch))

    def _collect_finished(self) -> Iterator[FinishedRun]:
        """Test the ended runs, give their indices to the next plans of the queue, then yield them."""
        ended = [index for index, plan_index in enumerate(self.plan_indices) if self.records[plan_index].ended]
        if not ended:
            return
        started, plan_indices = time.monotonic(), [self.plan_indices[index] for index in ended]
        finished = self._test(plan_indices, self.best[ended])
        self._refill(ended)
        self._add_seconds(time.monotonic() - started, plan_indices)
        for finished_run in finished:
            finished_run.record.seconds = self.records[finished_run.plan_index].seconds
            yield finished_run

    def _test(self, plan_indices: list[int], best: Float[Tensor, "run parameters"]) -> list[FinishedRun]:
        """Test the best parameters of these plans. best: a copy; the states of the finished runs are views of it."""
        plans = [self.plans[plan_index] for plan_index in plan_indices]
        predictions: list[tuple[Tensor | None, dict[str, Tensor]]] = [(None, {})] * len(plans)
        texts: list[list[str] | None] = [None] * len(plans)
        predicting: float | None = None
        with self._with_parameters(best):
            rescale_outputs(self.model, [plan.task.target_scale for plan in plans])
            if all(plan.test is not None for plan in plans):
                began = time.monotonic()
                predictions = [*self._predict([plan.test for plan in plans], gates=self.attached is not None)]  # type: ignore[misc]
                texts = self._generate(plans, "test", [plan.task.generates_text for plan in plans])
                predicting = (time.monotonic() - began) / len(plans)
            states = [
                self.model.state_dict() if self.attached is None else self.attached.state_of(index)
                for index in range(len(plans))
            ]
        finished = []
        for plan_index, (logits, gates), generated, state in zip(plan_indices, predictions, texts, states):
            record = self.plans[plan_index].result(self.records[plan_index], logits, generated, gates)
            record.device, record.predicting = str(self.device), predicting
            finished.append(FinishedRun(record, state, plan_index, self.model))
        return finished

    @torch.no_grad()
    def _refill(self, ended: list[int]) -> None:
        """Give the indices of ended runs to the next plans of the queue; remove runs for which no plan is left."""
        refilled = ended[: len(self.queue)]
        for index in refilled:
            assert self.attached is not None
            following = self.queue.pop(0)
            self.attached.reset_run(index, self.plans[following].key.seed)
            self.best[index].copy_(self.matrix.values[index])
            self.optimizer.reset(index)
            self.plan_indices[index] = following
        self.start_heads(refilled)
        keep = [index for index, plan_index in enumerate(self.plan_indices) if not self.records[plan_index].ended]
        if not keep:
            self.plan_indices = []
        elif len(keep) < len(self.plan_indices):
            self.best = self.best[keep]
            self.optimizer.keep(keep)
            self._set_runs(self.matrix.values[keep], [self.plan_indices[index] for index in keep])

    @contextmanager
    def _with_parameters(self, values: Float[Tensor, "run parameters"]) -> Iterator[None]:
        """Context manager: the model's parameters are views of this matrix."""
        self._bind(values)
        try:
            yield
        finally:
            self._bind(self.matrix.values)

    def _bind(self, values: Float[Tensor, "run parameters"]) -> None:
        """Make the model's parameters views of this matrix."""
        self.matrix.bind(values)
        if self.attached is not None:
            self.attached.set_runs([len(values)])

    def _set_runs(self, values: Float[Tensor, "run parameters"], plan_indices: list[int]) -> None:
        """Train these plans from now on, each in its row of this matrix."""
        self.plan_indices = plan_indices
        self.matrix.replace_values(values)
        self._bind(values)

    def _save(self) -> None:
        save_state(self.folder, self._tensors(), LoopState(self.plan_indices, self.records))  # type: ignore[arg-type]

    def _tensors(self) -> dict[str, Tensor]:
        adam = self.optimizer
        return {"values": self.matrix.values, "best": self.best, "exp_avg": adam.exp_avg, "exp_avg_sq": adam.exp_avg_sq}

    def _restore(self) -> bool:
        """Continue from the last saved state; whether there was one."""
        if self.folder is None:
            return False
        saved_state = restore_state(self.folder, self.records, [*self._tensors()], self.matrix.values.shape[1])
        if saved_state is None:
            return False
        tensors, loop = saved_state
        values, self.best, self.optimizer.exp_avg, self.optimizer.exp_avg_sq = (
            tensors[name].to(self.matrix.values, copy=True) for name in self._tensors()
        )  # copied, because memory-mapped tensors are aligned differently, which changes the last bits of sums
        self._set_runs(values, loop.plan_indices)
        self.records, self.runs_at_once = loop.records, loop.records[0].runs_at_once or self.runs_at_once
        ended = [plan_index for plan_index, record in enumerate(self.records) if record.ended]
        self.queue = [
            plan_index for plan_index in range(len(self.plans)) if plan_index not in (*loop.plan_indices, *ended)
        ]
        return True

    def _vector(self, values: Sequence[float | list[float]]) -> Tensor:
        return torch.tensor(values, dtype=self.matrix.values.dtype, device=self.device)
