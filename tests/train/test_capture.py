"""Captured steps: a fleet whose steps are recorded and replayed is the same fleet. The recorder here stands for a GPU's."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from laws.lawbook import DECODERS, ENCODERS, SEQ2SEQ, on_each
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import unipelt
from train.fleets import fleet, plan, train
from train.test_fleet import UNLIKE, same_run
from unipelt.train.capture import CapturedStep
from unipelt.train.fleet import Fleet


class Recorder:
    """Replays a step by calling it again, upon the memory that it was recorded with and none else."""

    def __init__(self, trained: Fleet, works: bool = True):
        self.trained, self.works = trained, works
        self.ran = self.recorded = self.replayed = 0
        self.why = RuntimeError("a number was looked at\nmore of it")

    def run(self, step: Callable[[], Tensor]) -> Tensor:
        self.ran += 1
        return step()

    def capture(self, step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        if not self.works:
            raise self.why
        self.recorded += 1
        result, places = torch.zeros(2, len(self.trained.plan_indices), dtype=torch.float64), self.places()

        def replay() -> None:
            assert places == self.places(), "the parameters are elsewhere by now"
            self.replayed += 1
            result.copy_(step())

        return replay, result

    def places(self) -> list[int]:
        return [tensor.data_ptr() for tensor in [*self.trained._tensors().values(), *self.trained.matrix.blocks][:3]]


def captured(plans: list, works: bool = True, **how: Any) -> tuple[Fleet, Recorder]:
    trained = fleet(plans, **how)
    recorder = Recorder(trained, works)
    trained.advance = CapturedStep(trained._advance, trained._mutable_tensors, recorder)
    return trained, recorder


def of_these_runs(trained: Fleet, event: str) -> None:
    graphs = trained.advance.graphs.values()  # type: ignore[attr-defined]
    assert {len(buffers.steps) for buffers, *_ in graphs} <= {len(trained.plan_indices)}, (
        "what is of no use any more is kept"
    )


@pytest.mark.parametrize("at_once", [5, 2])
def test_a_fleet_of_replayed_steps_is_every_run_alone(at_once: int):
    """Queues, ends at unlike times, other numbers of runs, short batches: whatever is recorded and dropped on the way."""
    plans = [make() for make in UNLIKE.values()]
    together, recorder = captured(plans, runs_at_once=at_once, on_step=of_these_runs)
    finished = train(together)
    for run, one in enumerate(plans):
        same_run(finished[run], train(fleet([one]))[0])
    assert recorder.replayed > recorder.recorded > 1 and recorder.ran > 1


def test_each_shape_is_recorded_once_when_it_comes_again():
    trained, recorder = captured([plan(seed=1, train=24, epochs=8)])
    shapes = []
    step = trained.step
    trained.step = lambda: (shapes.append(trained._inputs().batches[0].inputs["input_ids"].shape), step())  # type: ignore[method-assign, func-returns-value]
    train(trained)
    again = {shape for shape in shapes if shapes.count(shape) > 1}
    assert recorder.ran == len(set(shapes)) and recorder.recorded == len(again) > 1
    assert recorder.ran + recorder.replayed == len(shapes)


def test_dropout_goes_on_from_step_to_step():
    """As many draws as steps that are not recorded: nothing is drawn where a step is recorded."""
    curves = []
    for make in (lambda one: captured([one], dropout=True)[0], lambda one: fleet([one], dropout=True)):
        torch.manual_seed(3)
        trained = make(plan(seed=1))
        curves.append(train(trained)[0].record.curve)
    assert curves[0] == curves[1]


def test_where_nothing_can_be_recorded_it_trains_as_it_is_and_says_so_once():
    one = plan(seed=1)
    trained, recorder = captured([one], works=False)
    with pytest.warns(UserWarning, match="^training steps are not captured: a number was looked at$") as said:
        (finished,) = train(trained).values()
    assert len(said) == 1 and recorder.ran == one.steps
    same_run(finished, train(fleet([one]))[0])


LOOKS = {"_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "_unique2", "equal", "bincount"}
NOT_RECORDED = {"mixtral": "asks on the host which experts have rows"} | dict.fromkeys(
    SEQ2SEQ, "its head looks for eos"
)
RECORDED = tuple(arch for arch in ENCODERS + DECODERS if arch not in NOT_RECORDED)


class Looks(TorchDispatchMode):
    """What inside the block waits for a number, or has a shape that follows from one: none of it can be recorded."""

    def __init__(self):
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        chosen = [t for a in args if isinstance(a, list | tuple) for t in a if isinstance(t, Tensor)]
        by_mask = operation._opname.startswith("index") and any(t.dtype == torch.bool for t in chosen)
        self.seen |= {operation._opname} if by_mask or operation._opname in LOOKS else set()
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("arch", "preset"),
    [
        ("bert", "full"), *((arch, "unipelt-apl") for arch in on_each("unipelt-apl", RECORDED, 2)),
        *((arch, preset) for preset in unipelt.PRESETS for arch in on_each(preset, ("bert", "llama"), 2)),
    ],
)  # fmt: skip
def test_a_step_looks_at_no_number(arch: str, preset: str, monkeypatch: pytest.MonkeyPatch):
    """From the forward to the update, every architecture; transformers asks whether a stream is recording before it looks."""
    monkeypatch.setattr("transformers.utils.import_utils.is_cuda_stream_capturing", lambda: True)
    rand = torch.rand  # transformers 5.17's OPT draws its LayerDrop on the host, which no device waits for
    monkeypatch.setattr(torch, "rand", lambda *size, **how: 1.0 if size == ([],) else rand(*size, **how))
    plans = [plan(seed=1, weight_decay=0.1), plan(seed=2, classes=2)][: 1 if preset == "full" else 2]
    trained = fleet(plans, preset, arch=arch, dropout=True)
    batch = trained._inputs()
    with Looks() as looks:
        trained._advance(batch)
    assert looks.seen == set()


def test_too_little_memory_to_record_is_for_who_planned_the_fleet():
    trained, recorder = captured([plan(seed=1)], works=False)
    recorder.why = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        train(trained)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="captures CUDA graphs: there is no GPU here")
@pytest.mark.parametrize("dropout", [False, True])
def test_on_a_gpu_replayed_steps_are_the_steps(dropout: bool):
    trained = []
    for plain in (False, True):
        torch.manual_seed(0)
        one = fleet([plan(seed=1), plan(seed=2)], dropout=dropout)
        one.model.cuda()
        one = Fleet(one.model, one.plans, one.tokenizer)
        if plain:
            one.advance = one._advance
        trained.append(train(one))
        assert plain or one.advance.graphs  # type: ignore[attr-defined]
    for run in range(2):
        for name, value in trained[0][run].state.items():
            torch.testing.assert_close(value, trained[1][run].state[name], rtol=1e-3, atol=1e-4)
