"""Laws 4, 5, 6, 11: a prefix is a λ-mixture of two attentions, computed here in plain torch for every attention of every model."""

import math
from contextlib import contextmanager
from dataclasses import replace

import pytest
import tiny
import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import unipelt
from laws.lawbook import WITH_SDPA, attached, equal, kernel, on_each, result, rows, small, stacks
from unipelt import Change, Gate, Learned, Mixture, Prefix, Route, Stack
from unipelt.errors import SiteError
from unipelt.forms.prefix import (
    HeadShape,
    PrefixMLP,
    gated_prefix_attention,
    prefix_attention_unfused,
    table_of,
)
from unipelt.inject.attention import prefixes_computed_once
from unipelt.inject.shapes import most_tokens
from unipelt.inject.state import mixture_state

PREFIXED = on_each("prefix")
DISPATCHING = [arch for arch in PREFIXED if rows(arch)[0].attention.softmax is None]
RELU = Prefix(length=3, function="relu")


def of(form: Prefix, weight) -> Mixture:
    return Mixture((Change(form=form, site="heads", reads="queries", weight=weight),))


MIXTURES = {
    "prefix": small("prefix"),
    "prefix, 0.7": of(Prefix(length=3, mlp=0), 0.7),
    "prefix, learned": of(Prefix(length=3, mlp=5, init="torch"), Learned()),
    "prefix, gated": of(Prefix(length=3, mlp=0), Gate()),
    "prefix, gated by token": of(Prefix(length=3, mlp=5), Gate(pool="token")),
    "relu": small("multi-head-parallel-adapter"),
    "relu, gated": of(RELU, Gate()),
    "relu, learned": of(RELU, Learned()),
}


@contextmanager
def spy(name: str):
    """What each attention of a forward is given, and its output."""
    calls, marked = [], f"unipelt_{name}"
    inner = ALL_ATTENTION_FUNCTIONS[marked]

    def listening(module, query, key, value, attention_mask, **kwargs):
        output = inner(module, query, key, value, attention_mask, **kwargs)
        calls.append((module, query, key, value, kwargs, output[0]))
        return output

    ALL_ATTENTION_FUNCTIONS[marked] = listening
    try:
        yield calls
    finally:
        ALL_ATTENTION_FUNCTIONS[marked] = inner


def prefixes(table: nn.Module, layer: int) -> tuple[Tensor, Tensor]:
    """P_k and P_v `[head, prefix, d]` from the parameters alone."""
    if isinstance(table, PrefixMLP):
        hidden = torch.tanh(table.embedding[0] @ table.hidden.weight[0].T + table.hidden.bias[0])
        output = table.outputs[layer]
        pair = (hidden @ output.weight[0].T + output.bias[0]).chunk(2, dim=-1)
    else:
        pair = (table.key[0, layer], table.value[0, layer])
    key, value = (p.reshape(len(p), table.heads, -1).transpose(0, 1) for p in pair)
    return key, value


def lambda_mixture(q, k, v, hidden, bias, p_k, p_v, g, scaling, softcap) -> Tensor:
    """(1−λ) softmax(q Kᵀ) V + λ softmax(g q P_kᵀ) g P_v, λ = σ(LSE_prefix − LSE_context)          He et al. 2022, §3.1"""
    cap = (lambda s: s) if softcap is None else (lambda s: softcap * torch.tanh(s / softcap))
    context, prefix = cap(q @ k.mT * scaling), cap(g * (q @ p_k.mT) * scaling)
    context = (context if bias is None else context + bias).masked_fill(hidden, -math.inf)
    share = (prefix.logsumexp(dim=-1, keepdim=True) - context.logsumexp(dim=-1, keepdim=True)).sigmoid()
    return (1 - share) * (context.softmax(dim=-1) @ v) + share * g * (prefix.softmax(dim=-1) @ p_v)


def attend(q, k, v, hidden, bias, scaling, softcap) -> Tensor:
    scores = q @ k.mT * scaling
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    return (scores if bias is None else scores + bias).masked_fill(hidden, -math.inf).softmax(dim=-1) @ v


def weight_of(model: nn.Module, change: Change, gates: dict, owner: str, label: str) -> Tensor | float:
    """g of one attention, `[batch or 1, 1, query or 1, 1]`."""
    if isinstance(change.weight, Gate):
        value = gates[f"{owner}.{label}.gate"].pop(0)  # ALBERT calls one layer again and again
        return value[:, None, :, None] if value.dim() == 2 else value[:, None, None, None]
    if isinstance(change.weight, Learned):
        return mixture_state(model).get_submodule(f"{owner}.{'cross_' if 'cross' in label else ''}scale").scale[0]
    return change.weight


def unseen(given: dict, stack, kind: str, queries: int, keys: int) -> Tensor:
    """True where a query must not look, `[batch, 1, query, key]`, from the padding and the order of tokens alone."""
    batch = len(next(iter(given.values())))
    mask = torch.zeros(batch, 1, queries, keys, dtype=torch.bool)
    own = given.get("attention_mask") if "decoder_input_ids" not in given or stack.name == "encoder" else None
    real = given.get("attention_mask") if kind == "cross" else own
    if real is not None:
        mask = mask | ~real.bool()[:, None, None]
    if stack.causal and kind == "self":
        mask = mask | torch.ones(queries, keys, dtype=torch.bool).triu(1)
    return mask


def kernels_and_mixtures() -> list[tuple[str, str, str]]:
    """All on one architecture of each kind and on grouped heads, position biases and fused projections; two on the others."""
    every = [(a, n) for a in DISPATCHING for n in tiny.ARCHITECTURES[a].attention]
    some = ("prefix, gated by token", "relu, gated")
    varied = ("bert", "llama", "bart", "t5", "gpt2")
    return [(a, n, mixture) for a, n in every for mixture in (MIXTURES if a in varied else some)]


@pytest.mark.parametrize(("arch", "attn", "mixture"), kernels_and_mixtures())
def test_every_attention_is_the_mixture(arch: str, attn: str, mixture: str):
    model = attached(arch, MIXTURES[mixture], attn=attn, dtype=torch.float64, top="base")
    padded = tiny.inputs(arch, model)
    bare = {name: tensor for name, tensor in tiny.inputs(arch, model, pads=()).items() if name != "attention_mask"}
    for given in (padded, bare):  # without a mask a kernel is tempted to trust its own is_causal
        assert_every_attention_is_the_mixture(model, given, arch, attn)


@torch.no_grad()
def assert_every_attention_is_the_mixture(model: nn.Module, given: dict, arch: str, attn: str) -> None:
    ((name, change),) = mixture_state(model).mixture.named()
    places = {
        id(layer.get(attention.module)): (stack.entry, layer.index, kind)
        for stack in stacks(model)
        for layer in stack.layers
        for kind, attention in stack.entry.attentions()
    }
    with unipelt.record_gates(model) as gates, spy(attn) as calls:
        model(**given)
    assert {id(call[0]) for call in calls} == places.keys()
    for module, q, k, v, kwargs, output in calls:
        row, layer, kind = places[id(module)]
        table = mixture_state(model).get_submodule(f"{row.name}.stack.{name}.{kind}")
        p_k, p_v = (p.repeat_interleave(q.shape[1] // p.shape[0], dim=0) for p in prefixes(table, layer))
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
        label = "heads" if kind == "self" else "cross_heads"
        g = weight_of(model, change, gates, f"{row.name}.{layer}.{name}", label)
        scaling, cap, bias = kwargs.get("scaling"), kwargs.get("softcap"), kwargs.get("position_bias")
        scaling = q.shape[-1] ** -0.5 if scaling is None else scaling
        hidden = unseen(given, row, kind, q.shape[-2], k.shape[-2])
        if change.form.function == "softmax":
            expected = lambda_mixture(q, k, v, hidden, bias, p_k, p_v, g, scaling, cap)
        else:
            expected = attend(q, k, v, hidden, bias, scaling, cap) + g * (q @ p_k.mT).relu() @ p_v
        equal(output, expected.transpose(1, 2), arch, attn, what=f"{row.name} {layer} {kind}")


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    "masks", ["none", "bool", "of each head", "causal", "causal, padded on the left", "half of the keys"]
)
def test_plain_products_are_the_mixture_in_any_kernel(masks: str, gated: bool):
    """With grouped heads, for rows of scores that are padded and queries that are computed in two halves; dropout takes all that
    the keys give and nothing of what the prefix gives."""
    torch.manual_seed(0)
    n = 24  # three cache lines
    q, k, v = (torch.randn(2, heads, n, 4, dtype=torch.float64) for heads in (6, 3, 3))
    p_k, p_v, gate = torch.randn(2, 3, 2, 4).double(), torch.randn(2, 3, 2, 4).double(), torch.rand(2, n, 1).double()
    gate = gate if gated else torch.ones_like(gate)
    causal, real = torch.ones(n, n, dtype=torch.bool).tril(), torch.arange(n) >= torch.tensor([[0], [3]])
    given = {"none": None, "bool": torch.rand(2, 1, n, n) < 0.6, "of each head": torch.randn(2, 6, n, n).double()}
    given |= {"causal": causal[None, None], "causal, padded on the left": causal & real[:, None, None]}
    mask = (given | {"half of the keys": torch.arange(n)[None, None, None] < 8})[masks]

    def kernel(q, k, v, mask, bias, dropout):
        k, v = (t.repeat_interleave(2, dim=1) for t in (k, v))
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3).transpose(1, 2), None

    own = {"prefix_k": p_k, "prefix_v": p_v, "scaling": 0.3}
    expected, _ = gated_prefix_attention(kernel, q, k, v, mask, None, 0.0, gate=gate, softcap=None, **own)
    for learned in (False, True):
        q.requires_grad_(learned)
        found, _ = prefix_attention_unfused(q, k, v, mask, None, 0.0, gate=gate if gated else None, **own)
        torch.testing.assert_close(found, expected)
    dropped, _ = prefix_attention_unfused(q, k, torch.zeros_like(v), mask, None, 0.0, gate=gate, **own)
    torch.testing.assert_close(prefix_attention_unfused(q, k, v, mask, None, 1.0, gate=gate, **own)[0], dropped)


def watched(arch: str, softmax: str) -> tuple[Stack, ...]:
    """The rows of an architecture whose attention is watched, as if it called no attention function."""
    return tuple(
        replace(
            row,
            attention=replace(row.attention, softmax=softmax),
            cross=row.cross and replace(row.cross, softmax=softmax),
        )
        for row in rows(arch)
    )


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("arch", ["bert", "gpt2", "bart"])
def test_prefixes_around_an_own_softmax_are_those_in_an_attention_function(arch: str, attn: str):
    both = [MIXTURES["prefix, gated by token"], MIXTURES["relu, gated"]]
    cases = {
        **MIXTURES,
        "two prefixes": Mixture(tuple(c for mixture in both for c in mixture.changes)),
        "relu, a LayerNorm of its own": of(Prefix(length=3, function="relu", norm=True), Gate()),
        "side by side": both,
        "beside changes that multiply, and gates that take a softmax": small("unipelt-central"),
    }
    for name, mixture in cases.items():
        outputs = []
        for rows_ in (None, watched(arch, "scaled")):
            model = attached(arch, mixture, runs=[1, 2] if name == "side by side" else 1, attn=attn, stacks=rows_)
            with torch.no_grad():
                outputs.append(result(model(**tiny.inputs(arch, model, batch=6))))
        equal(*outputs, arch, attn, what=name)


def test_attention_that_is_computed_in_another_way_than_its_row_says_is_refused():
    model = attached("bert", "prefix", attn="eager", stacks=watched("bert", "fused"))
    with pytest.raises(SiteError, match="computes its attention in another way than when its entry was found"):
        model(**tiny.inputs("bert", model))
    assert torch.overrides._len_torch_function_stack() == 0  # nothing watches any more
    assert result(unipelt.detach(model)(**tiny.inputs("bert", model))).isfinite().all()


@pytest.mark.parametrize("arch", PREFIXED)
def test_two_prefixes_are_one_of_both_lengths(arch: str):
    """Concatenation: two ungated prefixes in one attention share one softmax."""
    two = attached(arch, Mixture(of(Prefix(length=3, mlp=0), 1.0).changes + of(Prefix(length=2, mlp=0), 1.0).changes))
    one = attached(arch, of(Prefix(length=5, mlp=0), 1.0))
    with torch.no_grad():
        for path, table in mixture_state(one).named_modules():
            if hasattr(table, "function"):
                its = [
                    mixture_state(two).get_submodule(path.replace("prefix_heads", n))
                    for n in ("prefix_heads", "prefix_heads_2")
                ]
                table.key.copy_(torch.cat([t.key for t in its], dim=2))
                table.value.copy_(torch.cat([t.value for t in its], dim=2))
        if mixture_state(one).get_submodule("head") is not None:
            for name, parameter in mixture_state(one).named_parameters():
                if name.startswith("head."):
                    parameter.copy_(mixture_state(two).get_parameter(name))
        given = tiny.inputs(arch, one)
        equal(result(one(**given)), result(two(**given)), arch)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("kinds", ["gg", "ng", "gn", "ggg"])
def test_prefixes_whose_gates_are_one_are_prefixes_without_gates(kinds: str, attn: str, training: bool):
    """Several in one mixture of a decoder, whose gates are per token: g is gated, n a number; with dropout of the attention too."""
    weights = {"g": Gate(), "n": 1.0}
    mixtures = [
        Mixture(
            tuple(change for n, kind in enumerate(kinds) for change in of(Prefix(length=2 + n), weight(kind)).changes)
        )
        for weight in (weights.__getitem__, lambda kind: 1.0)
    ]
    build = {"attention_dropout": 1e-9} if training else {}  # which takes the path with dropout, and drops nothing
    gated, plain = (attached("llama", mixture, attn=attn, build=build).train(training) for mixture in mixtures)
    theirs = dict(mixture_state(plain).named_parameters())
    with torch.no_grad():
        for name, parameter in mixture_state(gated).named_parameters():
            if ".gate." in f".{name}.":
                parameter.fill_(0.0 if name.endswith("weight") else 800.0)
            else:
                theirs[name].copy_(parameter)
    given = tiny.inputs("llama", gated)
    equal(result(gated(**given)), result(plain(**given)), "llama", attn)


@pytest.mark.parametrize("function", ["softmax", "relu"])
@pytest.mark.parametrize("layers", [None, (1,)])
def test_a_prefix_is_in_the_layers_it_names(layers, function: str):
    model = attached(
        "bert",
        Mixture(
            (Change(form=Prefix(length=3, mlp=0, function=function), site="heads", reads="queries", layers=layers),)
        ),
    )
    with torch.no_grad(), spy(kernel("bert")) as calls:
        model(**tiny.inputs("bert", model))
    with_prefix = [bool(call[4].get("unipelt_prefixes")) for call in calls]
    assert with_prefix == [layers is None, True]


@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("layers", [1, 3])
def test_a_prefix_without_its_mlp_gives_the_same_keys_and_values(runs: int, layers: int):
    """Rule 11: the MLP is a way to train, and no part of the function."""
    mlp = PrefixMLP(runs, layers, 4, HeadShape(2, 8, 6), 16, 5, "torch").double()
    for run in range(runs):
        mlp.reset_parameters(run, torch.Generator().manual_seed(run))
    table, batch = table_of(mlp), 2 * runs
    for layer in range(layers):
        for mine, its in zip(table(layer, Route.blocks(runs), batch), mlp(layer, Route.blocks(runs), batch)):
            torch.testing.assert_close(mine, its, rtol=0, atol=1e-14)
    assert sum(p.numel() for p in table.parameters()) == runs * 2 * 4 * layers * (8 + 6)


@torch.no_grad()
def test_prefixes_that_are_computed_once_are_the_same_and_later_the_mlp_counts_again():
    model = attached("llama", "unipelt-apl", runs=2)
    given, (mlp,) = tiny.inputs("llama", model, batch=4), [m for m in model.modules() if isinstance(m, PrefixMLP)]
    before, names = result(model(**given)), [name for name, _ in model.named_parameters()]
    with prefixes_computed_once(model), prefixes_computed_once(model):
        equal(result(model(**given)), before, "llama")
        mlp.embedding += 1
        equal(result(model(**given)), before, "llama")
        assert [name for name, _ in model.named_parameters()] == names
    assert not torch.allclose(result(model(**given)), before)


@pytest.mark.parametrize(
    ("arch", "preset"),
    [(arch, "unipelt-apl") for arch in PREFIXED]
    + [(arch, preset) for arch in ("bert", "llama", "bart") for preset in ("prefix", "mam", "unipelt-central")],
)
def test_a_model_with_prefixes_without_mlps_gives_the_same_logits(arch: str, preset: str):
    from unipelt.inject.fixed_gates import replace_mixture, with_prefix_tables

    model = attached(arch, preset)
    given = tiny.inputs(arch, model)
    with torch.no_grad():
        before = result(model(**given))
        mixture, state = with_prefix_tables(mixture_state(model))
        replace_mixture(model, mixture, state.__getitem__)
        equal(result(model(**given)), before, arch)
    assert not any(isinstance(module, PrefixMLP) for module in mixture_state(model).modules())


def test_sdpa_is_tried():
    assert len(WITH_SDPA) > len(DISPATCHING) - 3 and rows("t5")[1].cross is not None


@pytest.mark.parametrize("arch", PREFIXED)
def test_a_row_as_long_as_the_base_takes_fits_with_a_prefix(arch: str):
    """A prefix takes no position; elsewhere such rows are out of range."""
    model = attached(arch, "unipelt-apl")
    given = tiny.inputs(arch, model, batch=2, length=most_tokens(model, 128), pads=(0, 3))
    assert result(model(**given)).isfinite().all()


QUERIES = {  # the first attention of a base: the module, its query's weight and bias, its output projection
    "bert": ("encoder.layer.0.attention.self", lambda m: (m.query.weight, m.query.bias), "encoder.layer.0.attention.output.dense"),
    "bart": ("encoder.layers.0.self_attn", lambda m: (m.q_proj.weight, m.q_proj.bias), "encoder.layers.0.self_attn.out_proj"),
    "gpt2": ("h.0.attn", lambda m: (m.c_attn.weight.T[:32], m.c_attn.bias[:32]), "h.0.attn.c_proj"),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("arch", QUERIES)
def test_a_relu_prefix_may_read_the_query_of_its_own_layer_norm(arch: str):
    """Δ = ReLU(W_q LN(x) P_kᵀ) P_v on each head, q neither scaled nor that of the attention          He et al. 2022, their code"""
    model = attached(arch, of(Prefix(length=3, function="relu", norm=True), 1.0))
    path, query, out = QUERIES[arch]
    attention, seen = model.base_model.get_submodule(path), {}
    attention.register_forward_pre_hook(
        lambda _, args, kwargs: seen.update(x=(args or (kwargs.get("hidden_states"),))[0]), with_kwargs=True
    )
    model.base_model.get_submodule(out).register_forward_pre_hook(lambda _, args: seen.update(heads=args[0]))
    table = next(m for m in mixture_state(model).modules() if type(m).__name__ == "PrefixTable")
    for parameter in table.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.5)
    given = tiny.inputs(arch, model)
    result(model(**given))
    changed, x = seen["heads"], seen["x"]
    values, table.value.data = table.value.data.clone(), torch.zeros_like(table.value)
    result(model(**given))
    weight, bias = query(attention)
    normed = nn.functional.layer_norm(x, x.shape[-1:]) * table.norm_weight[0, 0] + table.norm_bias[0, 0]
    q, p_k, p_v = (
        t.unflatten(-1, (table.heads, -1)).transpose(-3, -2)
        for t in (normed @ weight.T + bias, table.key[0, 0], values[0, 0])
    )
    expected = ((q @ p_k.mT).relu() @ p_v).transpose(-3, -2).flatten(-2)
    torch.testing.assert_close(changed - seen["heads"], expected)
    assert expected.abs().max() > 0.01
