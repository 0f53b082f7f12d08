"""Laws 1, 2, 3: what a gate is, and what a mixture is whose gates are all 1 or all 0."""

import pytest
import tiny
import torch
from torch import Tensor, nn

import unipelt
from laws.lawbook import (
    attached,
    cases,
    equal,
    first,
    is_exact,
    kernel,
    listen,
    on_each,
    real_tokens,
    result,
    rows,
    small,
    stacks,
)
from unipelt import Change, Gate, LowRank, Mixture
from unipelt.forms.gate import Gate as GateModule
from unipelt.forms.gate import GroupGate
from unipelt.inject.state import mixture_state
from unipelt.spec import PRESETS

GATED = on_each("unipelt-apl")
ONE, ZERO = 50.0, -800.0
"""logits whose σ is 1 and 0 exactly in float64"""


@torch.no_grad()
def fix_all_gates(model: nn.Module, logit: float) -> None:
    for module in mixture_state(model).modules():
        if isinstance(module, GateModule):
            module.score.weight.zero_()
            module.score.bias.fill_(logit)


def gate_of(h: Tensor, gate: nn.Module, real: Tensor | None, causal: bool) -> tuple[Tensor, Tensor]:
    """By the book: the mean over real tokens of σ(h·w + b), or each token's own; and σ of the mean, which is none."""
    scores = h @ gate.score.weight[0, 0] + gate.score.bias[0, 0]
    if causal:
        return scores.sigmoid(), scores
    each = [row if real is None else row[real[i]] for i, row in enumerate(scores)]
    return torch.stack([row.sigmoid().mean() for row in each]), torch.stack([row.mean().sigmoid() for row in each])


@pytest.mark.parametrize("arch", GATED)
def test_a_gate_is_the_mean_of_sigmas_over_real_tokens(arch: str):
    model = attached(arch, "unipelt-apl")
    given = tiny.inputs(arch, model)
    for stack in stacks(model):
        attention = stack.entry.attention.module
        with unipelt.record_gates(model) as values, listen(model, f"{stack.layers[-1].path}.{attention}") as calls:
            model(**given)
        args, kwargs, _ = calls[0]
        h = args[0] if args else kwargs["hidden_states"]
        for name in ("prefix_heads.heads", "low_rank_query.query", "low_rank_value.value"):
            path = f"{stack.entry.name}.{stack.layers[-1].index}.{name}.gate"
            gate = mixture_state(model).get_submodule(path)
            real = real_tokens(given, stack.entry)
            expected, of_the_mean = gate_of(h, gate, real, stack.entry.causal)
            equal(values[path][0], expected, arch, what=path)
            assert (values[path][0] - of_the_mean).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("arch", "mixture"), [case for case in cases() if any(isinstance(c.weight, Gate) for c in case.values[1].changes)]
)
def test_a_fresh_gate_is_drawn_with_the_run_s_own_values(arch: str, mixture: Mixture):
    """w ~ N(0, 0.02²), b = 0 (Mao et al. 2022, code), wherever the gate stands."""
    model = unipelt.attach(tiny.build(arch, attn=kernel(arch)), mixture, runs=2)
    for path, gate in mixture_state(model).named_modules():
        if isinstance(gate, GateModule | GroupGate):
            weight = gate.score.weight.detach()
            assert 0.2 < weight.square().mean().sqrt() / 0.02 < 2, path
            assert not torch.equal(weight[0], weight[1]), path
            assert not gate.score.bias.any(), path


@pytest.mark.parametrize("arch", GATED)
def test_a_group_of_gates_shares_one(arch: str):
    """U's central gate: softmax of the mean of ReLU, so that LoRA and prefix sum to 1."""
    model = attached(arch, "unipelt-central")
    given = tiny.inputs(arch, model)
    row = rows(arch)[0]
    with (
        unipelt.record_gates(model) as values,
        listen(model, f"{stacks(model)[0].layers[0].path}.{row.attention.module}") as calls,
    ):
        model(**given)
    args, kwargs, _ = calls[0]
    h, real = args[0] if args else kwargs["hidden_states"], real_tokens(given, row)
    gate = mixture_state(model).get_submodule(f"{row.name}.0.central.gate")
    scores = (h @ gate.score.weight[0].mT + gate.score.bias[0]).relu()
    if not row.causal:
        scores = torch.stack([s.mean(dim=0) if real is None else s[real[i]].mean(dim=0) for i, s in enumerate(scores)])
    equal(values[f"{row.name}.0.central.gate"][0], scores.softmax(dim=-1), arch)


@pytest.mark.parametrize("arch", GATED)
def test_gates_of_one_are_no_gates_where_the_ungated_scale_is_one(arch: str):
    gated = attached(arch, "unipelt-apl")
    fix_all_gates(gated, ONE)
    given = tiny.inputs(arch, gated)
    expected = result(gated(**given))
    for alpha, same in ((2.0, True), (4.0, False)):  # r = 2
        plain = attached(arch, small("unipelt-apl-nogate", alpha=alpha))
        with torch.no_grad():
            for name, parameter in mixture_state(plain).named_parameters():
                parameter.copy_(mixture_state(gated).get_parameter(name))
        actual = result(plain(**given))
        if same:
            equal(actual, expected, arch)
        else:
            assert (actual - expected).abs().max() > 1e-4


GATED_MAPS = Mixture(
    tuple(change for change in small("unipelt-apl").changes if change.form.name != "prefix"), "adapter and LoRA, gated"
)


@pytest.mark.parametrize("arch", tiny.ARCHITECTURES)
def test_gates_of_zero_leave_the_base_to_the_last_bit(arch: str):
    value_and_adapter = Mixture(tuple(change for change in GATED_MAPS.changes if change.site != "query"))
    model = tiny.build(arch, dtype=torch.float64, attn=kernel(arch))
    given = tiny.inputs(arch, model)
    with torch.no_grad():
        expected = result(model(**given))
        unipelt.attach(model, value_and_adapter if rows(arch)[0].positions else GATED_MAPS, head_modules=[])
        for parameter in mixture_state(model).parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
        assert (result(model(**given)) - expected).abs().max() > 1e-3
        fix_all_gates(model, ZERO)
        torch.testing.assert_close(result(model(**given)), expected, rtol=0, atol=0)


@pytest.mark.parametrize("arch", GATED)
def test_a_prefix_with_a_gate_of_zero_keeps_its_softmax_mass(arch: str):
    """head = (1 − L/(L+Z)) h, so h/head − 1 = L/Z, which grows with L as L does."""
    excess = {}
    for length in (3, 6):
        prefix = Mixture(
            tuple(change for change in small("unipelt-ap", prefix=length).changes if change.form.name == "prefix")
        )
        model = attached(arch, prefix)
        fix_all_gates(model, ZERO)
        given = tiny.inputs(arch, model, pads=())
        out = f"{stacks(model)[0].layers[0].path}.{rows(arch)[0].attention.out}"
        with torch.no_grad(), listen(model, out) as calls:
            model(**given)
            with unipelt.disabled(model):
                model(**given)
        heads, without = (calls[i][0][0] for i in (0, len(calls) // 2))
        width = mixture_state(model).get_submodule(f"{rows(arch)[0].name}.stack.prefix_heads.self").shape.value
        heads, without = (h.unflatten(-1, (-1, width)) for h in (heads, without))
        factor = (heads * without).sum(dim=-1) / without.square().sum(dim=-1)
        equal(heads, factor[..., None] * without, arch, what="the head keeps its direction")
        assert factor.min() > 0 and factor.max() < 1
        excess[length] = 1 / factor - 1
    torch.testing.assert_close(excess[6], 2 * excess[3], rtol=1e-9 if is_exact(arch) else 1e-3, atol=0)


@pytest.mark.parametrize("arch", GATED)
def test_gate_values_are_part_of_the_graph(arch: str):
    """A loss may regularise them, on any preset with gates."""
    for preset in ("unipelt-ap", "unipelt-apl", "unipelt-central"):
        model = attached(arch, preset)
        with unipelt.record_gates(model) as values:
            model(**tiny.inputs(arch, model))
        sum(value.sum() for each in values.values() for value in each).backward()
        gates = [path for path, _ in mixture_state(model).named_parameters() if "gate" in path]
        assert gates and all(mixture_state(model).get_parameter(path).grad is not None for path in gates)


def test_recording_leaves_nothing_behind():
    model = attached("bert", "unipelt-apl")
    gates = [module for module in mixture_state(model).modules() if isinstance(module, GateModule)]
    with pytest.raises(ZeroDivisionError), unipelt.record_gates(model):
        raise ZeroDivisionError
    assert not any(gate._forward_hooks for gate in gates)


def test_a_token_gate_is_each_tokens_own_in_an_encoder_too():
    change = Change(form=LowRank(r=2), site="query", reads="input", weight=Gate(pool="token"))
    model = attached("bert", Mixture((change,)))
    given = tiny.inputs("bert", model)
    with unipelt.record_gates(model) as values, listen(model, "bert.encoder.layer.0.attention.self.query") as calls:
        model(**given)
    path = "encoder.0.low_rank_query.query.gate"
    expected, _ = gate_of(first(calls[0][0]), mixture_state(model).get_submodule(path), None, causal=True)
    equal(values[path][0], expected, "bert")


def test_each_gated_preset_is_here():
    with_gates = {name for name in PRESETS if any(isinstance(c.weight, Gate) for c in small(name).changes)}
    assert with_gates == {"unipelt-ap", "unipelt-apl", "unipelt-central"}
