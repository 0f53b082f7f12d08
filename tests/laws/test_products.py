"""What reads one tensor is one matrix product: the same function, computed once."""

import copy
import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import unipelt
from laws.lawbook import (
    THOROUGH,
    VARIED,
    attached,
    cases,
    equal,
    gradients,
    on_each,
    result,
    scalar,
    without_dropout,
)
from unipelt import Change, Gate, LowRank, Mixture
from unipelt.forms.gate import FusedGates
from unipelt.forms.routed import FusedLinear, RoutedLinear, SharedResult
from unipelt.inject.state import mixture_state


def products(model: torch.nn.Module) -> set[FusedLinear]:
    takers = [getattr(m, "alike", None) or m for m in mixture_state(model).modules()]
    return {taker.product for taker in takers if getattr(taker, "product", None) is not None}


def turns(model: torch.nn.Module) -> set[SharedResult]:
    """Products, and gates that are alike."""
    return products(model) | {m.alike for m in mixture_state(model).modules() if getattr(m, "alike", None) is not None}


def linears(product: FusedLinear) -> list[RoutedLinear]:
    return [linear for taker in product.takers for linear in taker.linears]


def take_apart(model: torch.nn.Module) -> None:
    for module in mixture_state(model).modules():
        for name in {"alike", "product"} & vars(module).keys():
            setattr(module, name, None)


def noting(method: Callable, computed: list[SharedResult]) -> Callable:
    return lambda own, *how: (computed.append(own), method(own, *how))[1]


@pytest.mark.parametrize(
    ("arch", "mixture", "runs"),
    [(*case.values, 1) for case in cases(varied=THOROUGH[:1])] + [(*case.values, 3) for case in cases(VARIED, (), 3)],
)
def test_a_product_is_the_linears_apart(arch: str, mixture: Mixture, runs: int, monkeypatch: pytest.MonkeyPatch):
    model = without_dropout(attached(arch, mixture, runs=runs)).train()
    given, computed = tiny.inputs(arch, model, batch=3), []
    made = turns(model)
    with monkeypatch.context() as patch:
        for kind in (FusedLinear, FusedGates):
            patch.setattr(kind, "_all", noting(kind._all, computed))
        together = result(model(**given))
    times = model.config.num_hidden_layers if arch == "albert" else 1  # its layers are one
    assert len(computed) == times * len(made) and {*computed} == made, "each is computed once a layer"
    assert all(one.turn == (None, []) for one in made), "no tensor outlives its layer"
    scalar(together).backward()
    expected = gradients(model)
    take_apart(model)
    model.zero_grad()
    apart = result(model(**given))
    equal(together, apart, arch)
    scalar(apart).backward()
    for name, gradient in gradients(model).items():
        equal(expected[name], gradient, arch, what=name)


@pytest.mark.parametrize("autocast", [False, True], ids=["a bfloat16 base", "autocast"])
@pytest.mark.parametrize("preset", ["unipelt-apl", "unipelt-central"])
@pytest.mark.parametrize("arch", ["bert", "llama", "bart", "t5"])
def test_in_bfloat16_it_differs_by_its_rounding_alone(arch: str, preset: str, autocast: bool):
    """Outputs and the gradient as a whole, to 1e-2 relative."""
    model = attached(arch, preset, dtype=torch.float32 if autocast else torch.bfloat16)
    given, found = tiny.inputs(arch, model), []
    for apart in (False, True):
        if apart:
            take_apart(model)
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            output = result(model(**given)).float()
        scalar(output).backward()
        found.append((output.detach().flatten(), torch.cat([g.flatten().float() for g in gradients(model).values()])))
    for together, expected in zip(*found):
        assert (together - expected).norm() <= 1e-2 * expected.norm()


class Casts(TorchDispatchMode):
    """How often each weight is cast inside the block, in the backward too."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.names = {p.untyped_storage().data_ptr(): name for name, p in model.named_parameters()}
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation._opname == "_to_copy" and (name := self.names.get(args[0].untyped_storage().data_ptr())):
            self.counts[name] += 1
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("arch", "preset", "runs"),
    [(arch, preset, runs) for runs in (1, 3) for preset in unipelt.PRESETS for arch in on_each(preset, VARIED, runs)],
)
def test_no_weight_is_cast_twice_in_a_step(arch: str, preset: str, runs: int):
    model = attached(arch, preset, runs=runs, dtype=torch.float32).train()
    with Casts(model) as casts:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = result(model(**tiny.inputs(arch, model, batch=3)))
        scalar(output.float()).backward()
    assert casts.counts, "what autocast does has another name"
    assert {name: count for name, count in casts.counts.items() if count > 1} == {}


@pytest.mark.parametrize("arch", on_each("unipelt-apl"))
def test_a_gated_mixture_has_two_products_a_layer(arch: str):
    """Of the attention block's input (gates of query, value and prefix, LoRA's two), and of the adapter's; more where a
    cross-attention's query and value read unlike streams. σ and the mean of the first three are one."""
    model = attached(arch, "unipelt-apl")
    sizes = sorted({len(linears(product)) for product in products(model)})
    assert 3 in {len(one.takers) for one in turns(model) - products(model)}
    assert sizes[0] == 2 and sizes[-1] == 5


def test_dropout_before_a_linear_keeps_it_apart():
    for dropout, made in ((0.5, 0), (0.0, 2)):
        change = Change(form=LowRank(r=2, dropout=dropout), site="query", reads="input", weight=Gate())
        assert len(products(attached("bert", Mixture((change,))))) == made


def test_without_a_gate_nothing_is_put_together():
    """So that LoRA is bit for bit what peft's is."""
    assert not products(attached("bert", "lora"))


def test_a_copy_has_its_own_and_takes_no_tensor_along():
    model = attached("bert", "unipelt-apl")
    given = tiny.inputs("bert", model)
    broken = next(iter(products(model)))
    first = broken.takers[0]
    broken.of(first, torch.ones(1, 1, first.linears[0].weight.shape[-1], dtype=torch.float64), unipelt.Route())
    for made in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert products(made).isdisjoint(products(model)) and len(products(made)) == len(products(model))
        assert turns(made).isdisjoint(turns(model)) and all(one.turn == (None, []) for one in turns(made))
        equal(result(made(**given)), result(model(**given)), "bert")


def test_a_forward_that_was_broken_off_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch):
    """Whose tensor comes again, as an encoder's output does for each decoding: with other numbers in it."""
    model, fresh = (attached("bart", "unipelt-apl", top="base") for _ in range(2))
    given = tiny.inputs("bart", model)
    states = model.get_encoder()(given.pop("input_ids"), given["attention_mask"]).last_hidden_state.detach()
    call = given | {"encoder_outputs": (states,), "use_cache": False}
    up = mixture_state(model).get_submodule("decoder.0.low_rank_value.cross_value.up")
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError), torch.no_grad():
        patch.setattr(up, "forward", lambda *_, **__: 1 / 0)
        model(**call)
    states.mul_(2)
    outputs = [result(one(**call)) for one in (model, fresh)]
    equal(*outputs, "bart")
    assert all(one.turn == (None, []) for one in turns(model))
    for output in outputs:
        scalar(output).backward()
    for name, gradient in gradients(fresh).items():
        equal(gradients(model)[name], gradient, "bart", what=name)
