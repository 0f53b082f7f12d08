"""Laws 7, 8, 9, 20: the adapters' equations on every architecture, no-ops at step 0, scales, and the order of the tuple."""

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unipelt
from laws.lawbook import (
    attached,
    cases,
    equal,
    first,
    is_pre_norm,
    kernel,
    listen,
    precision,
    presets_of,
    randomise,
    real_tokens,
    result,
    rows,
    small,
    stacks,
)
from unipelt import PRESETS, Bottleneck, Change, Gate, Kronecker, LowRank, Mixture, Route
from unipelt.forms import MAPS
from unipelt.inject.state import mixture_state

NO_OPS = {
    "lora",
    "dora",
    "ia3",
    "bitfit",
    "head",
    "parallel-adapter",
    "scaled-parallel-adapter",
    "multi-head-parallel-adapter",
}
"""presets that leave the base as it is at step 0; every other moves it"""
FFN = Bottleneck(size=6)


def delta(form: nn.Module, x: Tensor) -> Tensor:
    """f(x W↓ + b↓) W↑ + b↑ of run 0, f = ReLU"""
    hidden = (x @ form.down.weight[0].T + form.down.bias[0]).relu()
    return hidden @ form.up.weight[0].T + form.up.bias[0]


def normed(norm: nn.Module, s: Tensor) -> Tensor:
    """The base's own LayerNorm, or RMSNorm for what is no post-LN model."""
    return F.layer_norm(s, s.shape[-1:], norm.weight, norm.bias, norm.eps)


def gate_of(gate: nn.Module, h: Tensor, real: Tensor | None, causal: bool) -> Tensor:
    sigmas = (h @ gate.score.weight[0].T + gate.score.bias[0]).sigmoid()
    if causal:
        return sigmas
    kept = torch.ones_like(sigmas) if real is None else real[..., None].to(sigmas)
    return (sigmas * kept).sum(dim=1, keepdim=True) / kept.sum(dim=1, keepdim=True)


@pytest.mark.parametrize("arch", tiny.ARCHITECTURES)
def test_a_gated_pfeiffer_adapter_is_its_equation(arch: str):
    """LN(g A(LN(s)) + s) after the FFN of a post-LN model; y + g A(y) on the layer's output else."""
    gated = Mixture((Change(form=FFN, site="ffn", reads="normed sum", weight=Gate()),))
    model = tiny.build(arch, dtype=precision(arch), attn=kernel(arch))
    given = tiny.inputs(arch, model)
    for stack in stacks(model):
        layer, post = stack.layers[0], stack.entry.ffn_norm
        path = f"{layer.path}.{post}" if post else layer.path
        with torch.no_grad(), listen(model, path) as plain:  # its hook comes before the adapter's
            randomise(unipelt.attach(model, gated))
            with listen(model, path) as changed:
                model(**given)
        s, y = changed[0][0][0], first(plain[0][2])
        form = mixture_state(model).get_submodule(f"{stack.entry.name}.0.bottleneck_ffn.ffn")
        gate = mixture_state(model).get_submodule(f"{stack.entry.name}.0.bottleneck_ffn.ffn.gate")
        delta_ = gate_of(gate, y, real_tokens(given, stack.entry), stack.entry.causal) * delta(form, y)
        expected = normed(layer.get(post), s + delta_) if post else y + delta_
        equal(first(changed[0][2]), expected, arch, what=stack.entry.name)
        unipelt.detach(model)


@pytest.mark.parametrize(("arch", "preset"), [(arch, p) for arch in tiny.ARCHITECTURES for p in presets_of(arch)])
def test_which_presets_start_from_the_base(arch: str, preset: str):
    model = tiny.build(arch, dtype=precision(arch), attn=kernel(arch))
    given = tiny.inputs(arch, model)
    with torch.no_grad():
        before = result(model(**given))
        after = result(unipelt.attach(model, small(preset))(**given))
    if preset in NO_OPS:
        torch.testing.assert_close(after, before, rtol=0, atol=0)
    else:
        assert (after - before).abs().max() > 1e-6


def ffn_output(arch: str, mixture: Mixture, seed: int = 0) -> Tensor:
    """The output of layer 0's FFN."""
    model = attached(arch, mixture, seed=seed)
    stack = stacks(model)[0]
    with torch.no_grad(), listen(model, f"{stack.layers[0].path}.{stack.entry.ffn_output}") as calls:
        model(**tiny.inputs(arch, model))
    return calls[0][2]


@pytest.mark.parametrize("arch", tiny.ARCHITECTURES)
def test_a_scaled_parallel_adapter_is_affine_in_its_scale(arch: str):
    h = {s: ffn_output(arch, small("scaled-parallel-adapter", s=s)) for s in (0.0, 1.0, 3.0)}
    equal(h[3.0] - h[0.0], 3 * (h[1.0] - h[0.0]), arch)
    equal(h[1.0], ffn_output(arch, small("parallel-adapter")), arch)
    assert (h[1.0] - h[0.0]).abs().max() > 1e-3


@pytest.mark.parametrize("arch", tiny.ARCHITECTURES)
def test_parallel_is_not_sequential(arch: str):
    def at(reads: str) -> Tensor:
        return ffn_output(arch, Mixture((Change(form=FFN, site="ffn", reads=reads),)))

    assert (at("input") - at("output")).abs().max() > 1e-3


@pytest.mark.parametrize("reads", ["input", "output", "residual"])
@pytest.mark.parametrize("arch", tiny.ARCHITECTURES)
def test_an_adapter_beside_the_ffn_is_its_equation(arch: str, reads: str):
    model = attached(arch, Mixture((Change(form=FFN, site="ffn", reads=reads, weight=0.7),)))
    stack = stacks(model)[0]
    row, path = stack.entry, stack.layers[0].path
    entry = row.ffn_residual if reads == "residual" and is_pre_norm(arch) else row.ffn_input
    with (
        torch.no_grad(),
        listen(model, f"{path}.{row.ffn_output}") as outputs,
        listen(model, f"{path}.{entry}") as entries,
    ):
        model(**tiny.inputs(arch, model))
        with unipelt.disabled(model):
            model(**tiny.inputs(arch, model))
    before = outputs[len(outputs) // 2][2]
    x = before if reads == "output" else entries[0][0][0]
    form = mixture_state(model).get_submodule(f"{row.name}.0.bottleneck_ffn.ffn")
    equal(outputs[0][2], before + 0.7 * delta(form, x), arch)


@pytest.mark.parametrize("arch", tiny.ARCHITECTURES)
def test_the_order_of_the_tuple_is_the_order_of_composition(arch: str):
    """Two sequential adapters on one FFN: h₂ = h₁ + B(h₁), h₁ = h + A(h)."""
    sizes = (4, 6)
    outputs = {}
    for order in (sizes, sizes[::-1]):
        changes = (Change(form=Bottleneck(size=size), site="ffn", reads="output") for size in order)
        model = attached(arch, Mixture(tuple(changes)))
        stack = stacks(model)[0]
        forms = [mixture_state(model).get_submodule(f"{stack.entry.name}.0.bottleneck_ffn{n}.ffn") for n in ("", "_2")]
        by_size = {form.down.weight.shape[1]: form for form in forms}
        with torch.no_grad():
            for size, form in by_size.items():
                for parameter in form.parameters():
                    parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(size)) * 0.3)
            with listen(model, f"{stack.layers[0].path}.{stack.entry.ffn_output}") as calls:
                model(**tiny.inputs(arch, model))
                with unipelt.disabled(model):
                    model(**tiny.inputs(arch, model))
            h = calls[len(calls) // 2][2]
            for size in order:
                h = h + delta(by_size[size], h)
        equal(calls[0][2], h, arch)
        outputs[order] = h
    assert (outputs[sizes] - outputs[sizes[::-1]]).abs().max() > 1e-3


@pytest.mark.parametrize("site", ["attention", "ffn"])
def test_two_changes_of_one_layer_norm_compose_inside_it(site: str):
    """Pfeiffer's adapter and tuned LayerNorms: each is applied to what the ones before it make of the norm."""
    norm, pfeiffer = (
        Change(form=unipelt.Norm(), site="norms", reads="input"),
        Change(form=FFN, site=site, reads="normed sum"),
    )
    for order in ((norm, pfeiffer), (pfeiffer, norm)):
        model = attached("bert", Mixture(order))
        block = "attention.output.LayerNorm" if site == "attention" else "output.LayerNorm"
        layer = model.bert.encoder.layer[0]
        with torch.no_grad(), listen(model, f"bert.encoder.layer.0.{block}") as calls:
            model(**tiny.inputs("bert", model))
        s, its = calls[0][0][0], layer.get_submodule(block)
        tuned_norm = mixture_state(model).get_submodule(f"encoder.0.norm_norms.{block}")
        adapter = mixture_state(model).get_submodule(f"encoder.0.bottleneck_{site}.{site}")

        def own(s, its=its, tuned_norm=tuned_norm):
            return F.layer_norm(s, s.shape[-1:], eps=its.eps) * tuned_norm.weight[0] + tuned_norm.bias[0]

        if order[0] is norm:
            inside = lambda s, its=its, own=own: normed(its, s) + own(s)  # noqa: E731
            expected = inside(s + delta(adapter, inside(s)))
        else:
            expected = normed(its, s + delta(adapter, normed(its, s))) + own(s)
        equal(calls[0][2], expected, "bert")


@pytest.mark.parametrize(("arch", "mixture"), cases(("bert", "gpt_neox", "bart"), ("bert", "gpt_neox", "bart")))
def test_a_change_with_weight_zero_is_as_if_it_were_not_there(arch: str, mixture: Mixture):
    """Softmax prefixes and prompts apart: keys of zeros, or of zero vectors, keep their softmax mass."""
    other = Change(form=LowRank(r=2), site="value", reads="input")
    numbers = (c for c in mixture.changes if c.form.name != "prompt" and getattr(c.form, "function", "") != "softmax")
    nothing = (Change(form=c.form, site=c.site, reads=c.reads, weight=0.0) for c in numbers)
    model, alone = attached(arch, Mixture((other, *nothing))), attached(arch, Mixture((other,)))
    given = tiny.inputs(arch, model)
    with torch.no_grad():
        for name, parameter in mixture_state(alone).named_parameters():
            parameter.copy_(mixture_state(model).get_parameter(name))
        torch.testing.assert_close(result(model(**given)), result(alone(**given)), rtol=0, atol=0)


@pytest.mark.parametrize("terms", [1, 2, 4])
@pytest.mark.parametrize("rank", [1, 3])
def test_a_kronecker_linear_is_a_sum_of_kronecker_products(terms: int, rank: int):
    """W = Σᵢ Aᵢ ⊗ (sᵢ tᵢ)          Mahabadi et al. 2021, equation 4, by torch.kron"""
    form = MAPS["kronecker"](Kronecker(size=8, terms=terms, rank=rank, activation="identity"), 1, 16, 12).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in form.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    y = x = torch.randn(2, 3, 16, generator=generator, dtype=torch.float64)
    for linear in (form.down, form.up):
        products = (torch.kron(linear.rule[0, i], linear.left[0, i] @ linear.right[0, i]) for i in range(terms))
        y = y @ sum(products) + linear.bias[0]
    torch.testing.assert_close(form(x, Route.blocks(1)), y)


def test_an_adapter_with_a_norm_of_its_own_reads_through_it():
    form = MAPS["bottleneck"](Bottleneck(size=4, norm=True), 1, 8, 8).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in form.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x = torch.randn(2, 3, 8, generator=generator, dtype=torch.float64)
    expected = delta(form.form, F.layer_norm(x, (8,), form.weight[0], form.bias[0]))
    torch.testing.assert_close(form(x, Route.blocks(1)), expected)


def test_no_ops_are_presets():
    assert set(PRESETS) > NO_OPS and rows("bert")[0].ffn_norm
