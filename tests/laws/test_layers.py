"""Changes in some layers alone: nothing runs backward below the lowest of them, and AdapterDrop leaves the lowest out."""

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

import unipelt
from laws.lawbook import (
    attached,
    equal,
    first,
    gradients,
    on_each,
    result,
    rows,
    scalar,
    small,
    stacks,
    without_dropout,
)
from unipelt import Mixture
from unipelt.errors import SpecError
from unipelt.inject.state import attached_state, mixture_state
from unipelt.spec import Location

DEEP = dict.fromkeys(("num_hidden_layers", "n_layers", "n_layer", "encoder_layers", "decoder_layers", "num_layers"), 4)
ARCHS = [arch for arch in on_each("unipelt-apl") if arch != "albert"]  # ALBERT's layers share one change


def deep(arch: str, mixture: Mixture, **options: Any) -> nn.Module:
    """Four layers a stack, and two where the config lists them."""
    fields = {**tiny.ARCHITECTURES[arch].config().to_dict()}
    sizes = {name: 4 for name in DEEP if name in fields and not fields.get("layer_types")}
    return attached(arch, mixture, build=sizes, **options)


def backward(model: nn.Module, given: dict[str, Tensor]) -> dict[tuple[str, int], tuple[bool, bool, int]]:
    """Of each layer: whether its input and its output need a gradient, and how many tensors inside got one."""
    seen: dict[tuple[str, int], list] = {}
    hooks = []

    def count(place: tuple[str, int]):
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            value = first(output)
            if isinstance(value, Tensor) and value.requires_grad:
                value.register_hook(lambda gradient: seen[place].__setitem__(2, seen[place][2] + 1))

        return hook

    for stack in stacks(model):
        for layer in stack.layers:
            place = stack.entry.name, layer.index

            def enter(module: nn.Module, args: tuple, kwargs: dict, place=place) -> None:
                seen.setdefault(place, [(args[0] if args else kwargs["hidden_states"]).requires_grad, None, 0])

            def leave(module: nn.Module, args: tuple, output: Any, place=place) -> None:
                seen[place][1] = first(output).requires_grad

            hooks.append(layer.module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True))
            hooks.append(layer.module.register_forward_hook(leave))
            hooks += [module.register_forward_hook(count(place)) for module in layer.module.modules()]
    model.zero_grad()
    scalar(result(model(**given))).backward()
    for hook in hooks:
        hook.remove()
    return {place: tuple(found) for place, found in seen.items()}


@pytest.mark.parametrize(
    ("arch", "checkpointing"),
    [(arch, False) for arch in ARCHS] + [(arch, True) for arch in ARCHS if arch != "mpnet"],  # which has none
)
def test_nothing_runs_backward_below_the_lowest_change(arch: str, checkpointing: bool):
    """Of an encoder-decoder the encoder alone: the decoder's lowest layer reads what the encoder's changes have made."""
    model = without_dropout(deep(arch, small("unipelt-apl"))).train()
    stack = stacks(model)[0]
    depth = len(stack.layers)
    lowest = depth - 1
    unipelt.attach(unipelt.detach(model), small("unipelt-apl", layers=f"{lowest}-{lowest}"))
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.disable_input_require_grads()  # which transformers sets for reentrant checkpointing, and without it too
    found = backward(model, tiny.inputs(arch, model))
    for layer in range(depth):
        enters, leaves, counted = found[stack.entry.name, layer]
        assert (enters, leaves, counted > 0) == (False, layer == lowest, layer == lowest), layer
    assert all(p.grad is not None for p in mixture_state(model).parameters())


@pytest.mark.parametrize("arch", ARCHS)
def test_what_is_dropped_is_as_if_it_had_never_been(arch: str):
    model = without_dropout(deep(arch, small("unipelt-apl", mlp=0))).train()
    given, whole = tiny.inputs(arch, model), mixture_state(model)
    everywhere = result(model(**given))
    depth = len(stacks(model)[0].layers)
    with unipelt.dropped(model, depth - 1):
        found = backward(model, given)
        actual, changed = result(model(**given)), {name: g.clone() for name, g in gradients(model).items()}
    low = [name for name in changed if (layer := Location.parse(name).layer) is not None and layer < depth - 1]
    assert not low and changed
    assert not any(enters for (stack, _), (enters, _, _) in found.items() if stack == stacks(model)[0].entry.name)
    assert torch.equal(result(model(**given)), everywhere)
    with unipelt.dropped(model, 0):
        assert torch.equal(result(model(**given)), everywhere)

    values = {name: p.detach() for name, p in whole.named_parameters()}
    unipelt.attach(unipelt.detach(model), small("unipelt-apl", mlp=0, layers=(depth - 1,)))
    with torch.no_grad():
        for name, parameter in mixture_state(model).named_parameters():
            value = values[name]
            parameter.copy_(value if value.shape == parameter.shape else value[:, -1:])
    equal(actual, result(model(**given)), arch)


@pytest.mark.parametrize(("mixtures", "runs"), [(1, [1]), (1, [2]), (2, [1, 1])])
def test_all_layers_dropped_leave_the_head_alone(mixtures: int, runs: list[int]):
    model = attached("bert", [small("unipelt-apl"), small("lora")][:mixtures], runs=runs)
    given = tiny.inputs("bert", model, batch=4)
    plain = attached("bert", ["head"] * mixtures, runs=runs)
    with torch.no_grad():
        for name, parameter in attached_state(plain).named_parameters():
            parameter.copy_(attached_state(model).get_parameter(name))
        with unipelt.dropped(model, 2):
            assert torch.equal(result(model(**given)), result(plain(**given)))


def test_a_prefix_passes_over_a_stack_without_its_layers():
    """Also one that no prefix could enter."""
    encoder, decoder = rows("bart")
    closed = decoder.with_attentions(lambda attention: replace(attention, prefix=False))
    model = tiny.build("bart", encoder_layers=3)
    unipelt.attach(model, small("prefix", layers=(2,)), stacks=(encoder, closed))
    assert {change.path for change in mixture_state(model).changes} == {"model.encoder.layers.2.self_attn"}


def test_a_compiled_model_looks_again():
    model = attached("bert", "unipelt-apl")
    given = tiny.inputs("bert", model)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        everywhere = result(compiled(**given))
        with unipelt.dropped(model, 1):
            expected = result(model(**given))
            equal(result(compiled(**given)), expected, "bert")
        equal(result(compiled(**given)), everywhere, "bert")
    assert (everywhere - expected).abs().max() > 1e-3


@pytest.mark.parametrize("layers", [-1, 3, 1.0, True, "1"])
def test_a_number_of_layers_that_is_not_there(layers: Any):
    model = attached("bert", "unipelt-apl")
    with pytest.raises(SpecError, match="expected a whole number from 0 to 2, the layers of the base"):
        unipelt.dropped(model, layers).__enter__()
    assert mixture_state(model).handles
