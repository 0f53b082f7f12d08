"""What a forward knows belongs to that forward and its thread: however it is called, whatever else is registered or running."""

import asyncio
import gc
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from threading import Barrier, Thread
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

import unipelt
from laws.lawbook import attached, equal, first, on_each, result, small, stacks
from unipelt import Bottleneck, Change, Gate, LowRank, Mixture, UserError
from unipelt.inject.state import attached_state

GATED = Mixture(small("unipelt-apl").changes + small("parallel-adapter").changes, "gated")
MAPS = Mixture(  # for those that compute their attention by themselves
    (
        Change(form=LowRank(r=2), site="value", reads="input", weight=Gate()),
        Change(form=Bottleneck(size=3), site="ffn", reads="input", weight=Gate()),
    ),
    "gated maps",
)


def gated(arch: str) -> Mixture:
    return GATED if arch in on_each("unipelt-apl") else MAPS


def nothing_left(model: nn.Module) -> bool:
    thread = attached_state(model).forwards.thread
    kept = thread.context is None and not thread.captured and thread.rows is None
    return kept and not thread.disabled and not thread.dropped and not thread.made_by_attention


@pytest.mark.parametrize("arch", tiny.ARCHITECTURES)
@torch.no_grad()
def test_forward_without_its_hooks_is_the_call(arch: str):
    """sentence-transformers calls `model.forward`, which runs no hook of the outermost module."""
    model = attached(arch, gated(arch), top="base", runs=2)
    given = tiny.inputs(arch, model, batch=4, pads=(0, 3, 5, 1))
    for rows in ([1, 0, 0, 1], None):
        with unipelt.route(model, rows) if rows else nullcontext():
            equal(result(model.forward(**given)), result(model(**given)), arch)
    assert nothing_left(model)


@pytest.mark.parametrize("arch", ["deberta-v2", "bart"])
@torch.no_grad()
def test_nothing_grows_with_calls(arch: str):
    model = attached(arch, gated(arch), top="base")
    given = tiny.inputs(arch, model)

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    for call in (model, model.forward):
        call(**given)
        before = tensors()
        for _ in range(3):
            call(**given)
        assert tensors() <= before


@pytest.mark.parametrize("arch", ["bert", "roberta", "distilbert", "modernbert", "llama", "gpt_neox"])
@torch.no_grad()
def test_a_layer_called_alone_is_the_layer_in_its_model(arch: str):
    """With the arguments that it has there, its attention mask among them; and so is its attention block."""
    model = attached(arch, gated(arch), runs=2)
    model.config.use_cache = False
    given = tiny.inputs(arch, model, batch=4, pads=(0, 3, 5, 1))
    layer = stacks(model)[0].layers[-1]
    for module in (layer.module, layer.get(stacks(model)[0].entry.attention.module)):
        calls: list[tuple] = []

        def listen(module: nn.Module, args: tuple, kwargs: dict, output: Any, calls: list = calls) -> None:
            calls.append((args, {n: v for n, v in kwargs.items() if not n.startswith("unipelt")}, first(output)))

        hook = module.register_forward_hook(listen, with_kwargs=True)
        with unipelt.route(model, [1, 0, 0, 1]):
            model(**given)
            args, kwargs, inside = calls[0]
            alone = first(module(*args, **kwargs))
        hook.remove()
        equal(alone, inside, arch)
        assert nothing_left(model)


def test_a_forward_that_fails_leaves_nothing_behind():
    model = attached("bert", GATED)
    given = tiny.inputs("bert", model)
    expected = result(model(**given))
    hook = model.bert.encoder.layer[0].output.dense.register_forward_pre_hook(lambda *_: 1 / 0)
    for call in (model, model.bert.forward):
        with pytest.raises(ZeroDivisionError):
            call(**given)
        assert nothing_left(model)
    hook.remove()
    equal(result(model(**given)), expected, "bert")


@pytest.mark.parametrize("when", ["before attach", "after attach"])
@pytest.mark.parametrize("arch", ["bert", "llama", "bart"])
@torch.no_grad()
def test_hooks_of_a_user_before_or_after_ours_change_nothing(arch: str, when: str):
    def listen(model: nn.Module) -> nn.Module:
        for module in model.modules():
            module.register_forward_pre_hook(lambda m, args, kwargs: (args, kwargs), with_kwargs=True)
            module.register_forward_hook(lambda m, args, output: output)
        return model

    expected = attached(arch, gated(arch))
    given = tiny.inputs(arch, expected)
    base = unipelt.detach(attached(arch, gated(arch)))
    model = listen(base) if when == "before attach" else base
    unipelt.attach(model, gated(arch))
    attached_state(model).load_state_dict(attached_state(expected).state_dict())
    model = listen(model) if when == "after attach" else model
    equal(result(model(**given)), result(expected(**given)), arch)
    with unipelt.disabled(model), unipelt.disabled(expected):
        equal(result(model(**given)), result(expected(**given)), arch)
    equal(result(model(**given)), result(expected(**given)), arch)


BLOCKS = {
    "route": lambda model, i: unipelt.route(model, [i % 3, (i + 1) % 3]),
    "disabled": lambda model, i: unipelt.disabled(model) if i % 2 else nullcontext(),
    "dropped": lambda model, i: unipelt.dropped(model, i % 3),
}


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("arch", ["bert", "llama"])
@torch.no_grad()
def test_eight_threads_each_have_their_own_route_and_switches(arch: str, block: str):
    model = attached(arch, gated(arch), runs=3)
    every = [tiny.inputs(arch, model, batch=2, pads=(0, i % 4), seed=i) for i in range(8)]

    def ask(i: int) -> Tensor:
        with unipelt.route(model, [0, 1]), BLOCKS[block](model, i):
            return result(model(**every[i]))

    expected = [ask(i) for i in range(8)]
    start = Barrier(8, timeout=60)

    def together(i: int) -> list[Tensor]:
        start.wait()
        found = [ask(i) for _ in range(6)]
        assert nothing_left(model)
        return found

    with ThreadPoolExecutor(8) as pool:
        for i, found in enumerate(pool.map(together, range(8))):
            for one in found:
                equal(one, expected[i], arch, what=f"thread {i}")
    assert nothing_left(model)


def test_tasks_of_an_event_loop_each_have_their_own_route_and_switches():
    """As threads have; nothing is set any more when all blocks have ended, in whatever order they end."""
    model = attached("bert", "lora", runs=2)
    given = tiny.inputs("bert", model)

    def blocks(number: int):
        return (unipelt.route(model, [number % 2] * 3), unipelt.disabled(model), unipelt.dropped(model, 1))[number % 3]

    def answer() -> torch.Tensor:
        with torch.no_grad():
            return result(model(**given))

    alone = []
    for number in range(6):
        with unipelt.route(model, [0, 0, 1]), blocks(number):
            alone.append(answer())

    async def task(number: int) -> torch.Tensor:
        with unipelt.route(model, [0, 0, 1]):
            await asyncio.sleep(0.001 * number)
            with blocks(number):
                await asyncio.sleep(0.002 * (6 - number))
                return answer()

    async def every() -> list[torch.Tensor]:
        return await asyncio.gather(*map(task, range(6)))

    for found, expected in zip(asyncio.run(every()), alone):
        torch.testing.assert_close(found, expected)
    own = attached_state(model).forwards.thread
    assert (own.rows, own.disabled, own.dropped) == (None, False, 0)


def test_gates_are_recorded_of_ones_own_thread():
    model = attached("bert", GATED)
    given = tiny.inputs("bert", model)
    with unipelt.record_gates(model) as gates:
        other = Thread(target=lambda: model(**given))
        other.start()
        other.join()
        assert not gates
        model(**given)
    assert gates and all(len(values) == 1 for values in gates.values())


def replicate(model: nn.Module) -> nn.Module:
    """As torch.nn.parallel.replicate does for one device more."""
    modules = [*model.modules()]
    copies = {module: module._replicate_for_data_parallel() for module in modules}
    for module, copy in copies.items():
        for name, child in module._modules.items():
            setattr(copy, name, copies[child]) if child is not None else copy._modules.__setitem__(name, None)
        for name, parameter in module._parameters.items():
            if parameter is None:
                copy._parameters[name] = None
            else:
                setattr(copy, name, parameter.clone())  # the gradient goes back to the parameter
    return copies[model]


@pytest.mark.parametrize("top", ["base", "classifier"])
@pytest.mark.parametrize("arch", ["bert", "llama", "bart"])
def test_a_replica_computes_with_its_own_parameters(arch: str, top: str):
    """DataParallel: each device has a copy of every module, in a thread, with tensors in place of parameters."""
    model = attached(arch, gated(arch), top=top)
    given = tiny.inputs(arch, model)
    expected = result(model(**given))
    copy = replicate(model)
    found: list[Any] = []
    thread = Thread(target=lambda: found.append(result(copy(**given))))
    thread.start()
    thread.join()
    equal(found[0], expected, arch)
    for module in copy.unipelt.modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                vars(module)[name] = torch.zeros_like(value)
    equal(result(model(**given)), expected, arch)
    thread = Thread(target=lambda: found.append(result(copy(**given))))
    thread.start()
    thread.join()
    assert (found[1] - expected).abs().max() > 1e-3


def test_several_runs_are_refused_to_replicas():
    copy = replicate(attached("bert", GATED, runs=2))
    with pytest.raises(UserError, match="DataParallel splits a batch over devices"):
        copy(**tiny.inputs("bert", attached("bert", GATED), batch=4))
