"""Rule 19: gradient checkpointing, both kinds, with two forwards of different masks before one backward, changes no gradient."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import tiny
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import unipelt
from laws.lawbook import (
    attached,
    cases,
    equal,
    gradients,
    on_each,
    randomise,
    result,
    rows,
    scalar,
    small,
    stacks,
    without_dropout,
)
from unipelt import Mixture, UserError
from unipelt.errors import SiteError

CHECKPOINTED = tuple(name for name, t in tiny.ARCHITECTURES.items() if t.classifier.supports_gradient_checkpointing)
RUNS = 2


def trained(model: nn.Module, arch: str) -> dict[str, torch.Tensor]:
    """The gradients of one backward through two forwards, whose masks differ."""
    model.zero_grad()
    both = [tiny.inputs(arch, model, batch=4, pads=pads, seed=seed) for seed, pads in enumerate([(0, 3, 5), (6, 1)])]
    sum(scalar(result(model(**given))) for given in both).backward()
    return {name: gradient.clone() for name, gradient in gradients(model).items()}


def assert_checkpointing_changes_nothing(model: nn.Module, arch: str) -> None:
    without_dropout(model).train()
    expected = trained(model, arch)
    for reentrant in (True, False):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        actual = trained(model, arch)
        assert actual.keys() == expected.keys()
        for name in expected:
            equal(actual[name], expected[name], arch, what=f"{name}, reentrant: {reentrant}")


@pytest.mark.parametrize(("arch", "mixture"), cases(CHECKPOINTED, ()))
def test_gradients_are_those_without_checkpointing(arch: str, mixture: Mixture):
    assert_checkpointing_changes_nothing(attached(arch, mixture), arch)


@pytest.mark.parametrize("arch", on_each("unipelt-apl", CHECKPOINTED))
def test_checkpointing_may_be_enabled_before_attach(arch: str):
    model = without_dropout(attached(arch, "unipelt-apl")).train()
    expected = trained(model, arch)
    unipelt.detach(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    actual = trained(randomise(unipelt.attach(model, small("unipelt-apl"))), arch)
    assert actual.keys() == expected.keys()
    for name in expected:
        equal(actual[name], expected[name], arch, what=name)


@pytest.mark.parametrize(
    ("arch", "preset"),
    [(arch, "unipelt-apl") for arch in CHECKPOINTED]
    + [(arch, preset) for arch in ("bert", "llama", "bart") for preset in ("houlsby", "mam")],
)
def test_gradients_of_a_fleet_are_those_without_checkpointing(arch: str, preset: str):
    preset = preset if arch in on_each(preset, runs=RUNS) else "parallel-adapter"
    assert_checkpointing_changes_nothing(attached(arch, preset, runs=RUNS), arch)


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
@pytest.mark.parametrize("arch", CHECKPOINTED)
def test_the_layers_are_indeed_recomputed(arch: str, reentrant: bool):
    """What the laws above stand on; but for the lowest layer, whose inside may have nothing that needs a gradient."""
    model = attached(arch, "adapter").train()
    calls: list[int] = []
    for layer in stacks(model)[0].layers[1:]:
        layer.get(rows(arch)[0].attention.module).register_forward_pre_hook(lambda *_: calls.append(1))
    trained(model, arch)
    once = len(calls)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    trained(model, arch)
    assert len(calls) == 3 * once


INSIDE = {
    "a route by rows": lambda model: unipelt.route(model, [1, 0, 1, 1]),
    "a layer dropped": lambda model: unipelt.dropped(model, 1),
}
REFUSED = INSIDE | {"a prompt": lambda model: unipelt.prompt(model, torch.ones(4, 2))}


@pytest.mark.parametrize("mixtures", [1, 2])
@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("arch", ["bert", "llama", "bart", "t5"])
def test_a_recomputed_layer_knows_the_route_and_the_switches_of_its_forward(arch: str, inside: str, mixtures: int):
    """Also where it is recomputed in a thread of its own, as on a GPU: what this thread has set is nothing to that one."""
    what, runs = ([small("unipelt-apl"), small("mam")], [1, 1]) if mixtures == 2 else (small("unipelt-apl"), 2)
    model = without_dropout(attached(arch, what, runs=runs)).train()
    given, found = tiny.inputs(arch, model, batch=4, pads=(0, 3, 5)), []
    for checkpointed in (False, True):
        model.zero_grad()
        if checkpointed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        with INSIDE[inside](model):
            loss = scalar(result(model(**given)))
        with ThreadPoolExecutor(1) as pool:
            pool.submit(loss.backward).result()
        found.append(gradients(model))
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        equal(found[1][name], gradient, arch, what=name)


@pytest.mark.parametrize("inside", REFUSED)
@pytest.mark.parametrize(("arch", "preset"), [("deberta-v2", "adapter"), ("llama", "houlsby")])
def test_layers_that_cannot_know_are_refused(arch: str, preset: str, inside: str):
    """Those that pass no keywords on, and those that are changed before their attention block."""
    model = attached(arch, preset, runs=RUNS).train()
    model.gradient_checkpointing_enable()
    with (
        REFUSED[inside](model),
        pytest.raises(
            UserError, match=r"does not see.*`prompt`, .*; use equal blocks of rows, or no gradient checkpointing"
        ),
    ):
        model(**tiny.inputs(arch, model, batch=4))


@pytest.mark.parametrize("arch", ["bert", "llama"])
def test_recorded_gates_have_a_gradient_or_are_refused(arch: str):
    model = without_dropout(attached(arch, "unipelt-apl")).train()
    given = tiny.inputs(arch, model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    with unipelt.record_gates(model) as values:
        with pytest.raises(SiteError, match="'use_reentrant': False"):
            model(**given)
        model.eval()(**given)
    assert values
    model.train()(**given)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with unipelt.record_gates(model) as values:
        model(**given)
    assert all(value.requires_grad for path in values for value in values[path])


def test_every_architecture_is_here_but_two_that_have_no_checkpointing():
    assert set(tiny.ARCHITECTURES) - set(CHECKPOINTED) == {"albert", "mpnet"}


@pytest.mark.parametrize("reentrant", [True, False])
def test_layers_that_a_user_checkpoints_by_hand_have_the_same_gradients(reentrant: bool):
    """Of which the model says nothing: what the layers share is computed before them, and a recomputed layer finds its own."""
    found = []
    for by_hand in (False, True):
        model = without_dropout(attached("bert", "unipelt-apl")).train()
        model.get_input_embeddings().register_forward_hook(lambda module, args, output: output.requires_grad_(True))
        for layer in model.bert.encoder.layer if by_hand else ():
            plain = layer.forward
            layer.forward = lambda *args, plain=plain, **given: checkpoint(
                partial(plain, **given), *args, use_reentrant=reentrant
            )
        scalar(result(model(**tiny.inputs("bert", model)))).backward()
        found.append(gradients(model))
    for name, gradient in found[0].items():
        equal(found[1][name], gradient, "bert", what=name)
