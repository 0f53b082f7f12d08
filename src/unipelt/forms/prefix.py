"""Prefix tuning: Li & Liang 2021, arXiv:2101.00190; as a gated add: He et al. 2022, §3.1; gated by UniPELT: Mao et al. 2022, §3.2.

Shapes: P_k `[run, head, prefix, k]` and P_v `[run, head, prefix, v]` per layer; head counts the key/value heads, k and v are the
widths of one key and one value.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from unipelt.forms.routed import Route, RoutedLinear, draw_kaiming, draw_normal, scale_and_shift

PrefixKeyValue = tuple[Float[Tensor, "rows head prefix k"], Float[Tensor, "rows head prefix v"]]


class HeadShape(NamedTuple):
    """Number of key/value heads of an attention block, and the widths of one key and one value."""

    heads: int
    key: int
    value: int


class PrefixTable(nn.Module):
    """P_k and P_v of every layer as parameters, without an MLP."""

    def __init__(self, runs: int, layers: int, length: int, shape: HeadShape, function: str, normed: int = 0):
        """normed: features of the LayerNorm before the query, one per layer; 0: none."""
        super().__init__()
        self.key = nn.Parameter(torch.zeros(runs, layers, length, shape.heads * shape.key))
        self.value = nn.Parameter(torch.zeros(runs, layers, length, shape.heads * shape.value))
        self.heads, self.function = shape.heads, function
        self.norm_weight = nn.Parameter(torch.ones(runs, layers, normed)) if normed else None
        self.norm_bias = nn.Parameter(torch.zeros(runs, layers, normed)) if normed else None

    def norm(self, x: Float[Tensor, "rows seq d"], layer: int, route: Route) -> Float[Tensor, "rows seq d"]:
        """LN(x) of one layer"""
        assert self.norm_weight is not None and self.norm_bias is not None
        weight_and_bias = self.norm_weight[:, layer], self.norm_bias[:, layer]
        return scale_and_shift(F.layer_norm(x, x.shape[-1:]), *weight_and_bias, route)

    def forward(self, layer: int, route: Route, batch: int) -> PrefixKeyValue:
        key, value = (route.pick(p[:, layer], batch) for p in (self.key, self.value))
        return split_heads(key, self.heads), split_heads(value, self.heads)

    def reset_parameters(self, run: int, generator: torch.Generator) -> None:
        draw_normal(self.key, run, generator, 0.02)
        if self.function == "softmax":  # a relu prefix keeps P_v = 0: Δ = 0 at step 0
            draw_normal(self.value, run, generator, 0.02)


class PrefixMLP(nn.Module):
    """[P_k, P_v] of layer i = tanh(E W + b) Wᵢ + bᵢ, E one learned row per prefix position

    Each layer has its own matrix: slicing one large matrix would create a gradient of its full size for each layer.
    """

    def __init__(self, runs: int, layers: int, length: int, shape: HeadShape, d_model: int, mlp: int, init: str):
        super().__init__()
        outputs = shape.heads * (shape.key + shape.value)
        self.embedding = nn.Parameter(torch.zeros(runs, length, d_model))
        self.hidden = RoutedLinear(runs, d_model, mlp)
        self.outputs = nn.ModuleList(RoutedLinear(runs, mlp, outputs) for _ in range(layers))
        self.shape, self.heads, self.init = shape, shape.heads, init

    def forward(self, layer: int, route: Route, batch: int) -> PrefixKeyValue:
        all_runs = Route.blocks(len(self.embedding))
        hidden = torch.tanh(self.hidden(self.embedding, all_runs))
        pair = route.pick(self.outputs[layer](hidden, all_runs), batch)
        heads, keys, values = self.shape
        key, value = pair.split([heads * keys, heads * values], dim=-1)
        return split_heads(key, heads), split_heads(value, heads)

    def reset_parameters(self, run: int, generator: torch.Generator) -> None:
        linears = [self.hidden, *self.outputs]
        if self.init == "unipelt":
            for parameter in (self.embedding, *(linear.weight for linear in linears)):
                draw_normal(parameter, run, generator, 0.02)
        else:
            draw_normal(self.embedding, run, generator, 1.0)
            for linear in linears:
                for drawn in linear.parameters():
                    draw_kaiming(drawn, run, generator, linear.weight.shape[-1])


def split_heads(packed: Float[Tensor, "rows prefix features"], heads: int) -> Float[Tensor, "rows head prefix d"]:
    """Split the features into heads."""
    return packed.unflatten(-1, (heads, -1)).transpose(1, 2)


@torch.no_grad()
def table_of(prefix: PrefixMLP) -> PrefixTable:
    """The prefixes that the MLP computes, as parameters: the same function without the reparameterisation of training."""
    runs, length = prefix.embedding.shape[:2]
    layers = len(prefix.outputs)
    table = PrefixTable(runs, layers, length, prefix.shape, "softmax").to(prefix.embedding)
    kind = prefix.embedding.device.type
    with nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False):  # there is no autocast on meta
        for layer in range(layers):
            for target, source in zip((table.key, table.value), prefix(layer, Route.blocks(runs), runs)):
                target[:, layer] = rearrange(source, "run head prefix d -> run prefix (head d)")
    return table


Query = Float[Tensor, "batch head query k"]
Key = Float[Tensor, "batch kv_head key k"]
Value = Float[Tensor, "batch kv_head key v"]
CACHE_LINE = 64
"""bytes"""
AttentionFunction = Callable[..., tuple[Float[Tensor, "batch query head d"], Tensor | None]]
"""(q, k, v, mask, bias, dropout) → (output, attention weights or None)"""


def pad_mask(mask: Shaped[Tensor, "*rows key"], columns: int, dtype: torch.dtype) -> Float[Tensor, "*rows _"]:
    """The additive mask (0 and −∞) with `columns` more columns in front, which every query attends to.

    Its rows are stored at multiples of 8 columns, because CUDA kernels copy a mask that is not aligned.
    """
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -torch.inf)
    width = columns + mask.shape[-1]
    return F.pad(mask, (columns, -width % 8))[..., :width]


def as_wide(prefix_v: Float[Tensor, "*rows prefix d"], v: Float[Tensor, "*_ key e"]) -> Float[Tensor, "*rows prefix e"]:
    """P_v with as many columns as v. An outer gated prefix appends to v the column that yields λ, or passes only that column;
    P_v is 0 in it."""
    more = v.shape[-1] - prefix_v.shape[-1]
    if more == 0:
        return prefix_v  # padding by nothing would copy it
    return F.pad(prefix_v, (0, more)) if more >= 0 else torch.zeros_like(prefix_v[..., : v.shape[-1]])


def prefix_attention(
    attend: AttentionFunction, q: Query, k: Key, v: Value, mask: Shaped[Tensor, "_ _ _ key"] | None,
    bias: Float[Tensor, "_ _ _ key"] | None, dropout: float, *, prefix_k: Float[Tensor, "_ kv_head prefix k"],
    prefix_v: Float[Tensor, "_ kv_head prefix _"],
) -> tuple[Float[Tensor, "batch query head v"], Tensor | None]:  # fmt: skip
    """softmax(q [P_k; k]ᵀ / √d) [P_v; v]; P_k and P_v are already multiplied by their weight"""
    batch, columns = k.shape[0], prefix_k.shape[-2]
    keys = torch.cat([prefix_k.expand(batch, -1, -1, -1), k], dim=-2)
    values = torch.cat([as_wide(prefix_v, v).expand(batch, -1, -1, -1), v], dim=-2)
    mask = None if mask is None else pad_mask(mask, columns, q.dtype)
    bias = None if bias is None else F.pad(bias, (columns, 0))
    return attend(q, keys, values, mask, bias, dropout)


def gated_prefix_attention(
    attend: AttentionFunction, q: Query, k: Key, v: Value, mask: Shaped[Tensor, "_ _ _ key"] | None,
    bias: Float[Tensor, "_ _ _ key"] | None, dropout: float, *, prefix_k: Float[Tensor, "_ kv_head prefix k"],
    prefix_v: Float[Tensor, "_ kv_head prefix _"], gate: Float[Tensor, "batch query 1"], scaling: float,
    softcap: float | None,
) -> tuple[Float[Tensor, "batch query head v"], Tensor | None]:  # fmt: skip
    """(1−λ) h + λ g softmax(g q P_kᵀ / √d) P_v for a gate g per query; λ is the fraction of the attention that the prefix receives

    One zero key with the additive bias logsumexp(prefix logits) represents the prefix. A value column that is 1 at this key and
    0 at all others returns λ, also beside an attention sink. With dropout λ is computed in a second call, without it.
    """
    repeat, queries = q.shape[1] // prefix_k.shape[1], q.shape[-2]
    prefix_k, prefix_v = (p.repeat_interleave(repeat, dim=1) for p in (prefix_k, prefix_v))
    gate = gate[:, None]  # batch 1 query 1
    logits = gate * scaling * (q @ prefix_k.mT)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    log_mass = logits.logsumexp(dim=-1, keepdim=True)
    delta = (gate * (logits.softmax(dim=-1) @ as_wide(prefix_v, v))).transpose(1, 2)

    if mask is None:
        mask = q.new_zeros(1, 1, queries, k.shape[-2])
    elif mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, torch.finfo(q.dtype).min)
    mask = torch.cat([log_mass, mask.expand(*log_mass.shape[:2], queries, -1)], dim=-1)
    keys, values = (F.pad(t, (0, 0, 1, 0)) for t in (k, v))
    indicator = F.pad(torch.ones_like(v[..., :1, :1]), (0, 0, 0, k.shape[-2])).expand(*values.shape[:-1], 1)
    bias = None if bias is None else F.pad(bias, (1, 0))
    if dropout:
        h, weights = attend(q, keys, values, mask, bias, dropout)
        lam, _ = attend(q, keys, indicator, mask, bias, 0.0)
    else:
        h, weights = attend(q, keys, torch.cat([values, indicator], dim=-1), mask, bias, 0.0)
        h, lam = h[..., :-1], h[..., -1:]  # batch query head d and λ
    return h + lam * delta, weights


def prefix_attention_unfused(
    q: Query, k: Key, v: Value, mask: Shaped[Tensor, "_ _ _ key"] | None, bias: None, dropout: float, *,
    prefix_k: Float[Tensor, "_ kv_head prefix k"], prefix_v: Float[Tensor, "_ kv_head prefix _"],
    gate: Float[Tensor, "batch query 1"] | None, scaling: float,
) -> tuple[Float[Tensor, "batch query head v"], None]:  # fmt: skip
    """softmax([g s q P_kᵀ, s q kᵀ + mask]) [g P_v; v] by plain products, in place of a function that computes softmax(s q kᵀ + mask) v

    gate: g per query; None: P_k and P_v are already multiplied by it. Dropout applies to the attention to tokens alone, where that
    of `prefix_attention` applies to the prefix too. Without dropout P_k and P_v are padded with positions that no query attends to:
    rows of whole cache lines are computed faster. Under a causal mask the first half of the queries is computed without later keys.
    """
    (queries, tokens, batch), vector = (q.shape[-2], k.shape[-2], len(k)), CACHE_LINE // q.element_size()
    length = prefix_k.shape[-2]
    padding = 0 if dropout else -(length + tokens) % vector
    columns, spans = length + padding, [(0, queries, tokens)]
    prefix_k, prefix_v = (F.pad(p, (0, 0, 0, padding)).expand(batch, -1, -1, -1) for p in (prefix_k, prefix_v))
    keys, prefix_v = torch.cat([prefix_k, k], dim=-2) * scaling, as_wide(prefix_v, v)
    if mask is not None:
        half = tokens - tokens // 2 // vector * vector
        if mask.shape[-2] == queries == tokens and is_fully_masked(mask[..., :half, half:]):
            spans = [(0, half, half), (half, queries, tokens)]
        mask = pad_mask(mask, columns, q.dtype)
        mask[..., length:columns] = -torch.inf
    parts = []
    for start, stop, last in spans:
        span_gate = None if gate is None else gate[:, None, start:stop]  # batch 1 query 1
        span_mask = None if mask is None else mask[..., start:stop, : columns + last]
        span_inputs = q[:, :, start:stop], keys[:, :, : columns + last], prefix_v, v[:, :, :last]
        parts.append(_product_attention(*span_inputs, length, span_gate, span_mask, dropout))
    return torch.cat(parts, dim=1) if parts[1:] else parts[0], None


def _product_attention(
    q: Query, keys: Float[Tensor, "batch kv_head prefix+key k"], prefix_v: Float[Tensor, "batch kv_head prefix v"], v: Value,
    length: int, gate: Float[Tensor, "batch 1 query 1"] | None, mask: Float[Tensor, "_ _ _ prefix+key"] | None, dropout: float,
) -> Float[Tensor, "batch query head v"]:  # fmt: skip
    """softmax([g q P_kᵀ, q kᵀ] + mask) [g P_v; v], keys being [P_k; k].

    length: of the prefix without its padding, which the mask excludes if there is one. Query heads that share a key are rows of one
    product, so no key is repeated.
    """
    (heads, queries), (batch, shared), columns = q.shape[1:3], keys.shape[:2], prefix_v.shape[-2]
    scores = q.reshape(len(q), shared, -1, q.shape[-1]) @ keys.mT
    by_head = scores.view(batch, shared, -1, queries, keys.shape[-2])
    gate = None if gate is None else gate[:, :, None]
    if gate is not None:
        by_head[..., :columns].mul_(gate)
    if mask is not None:
        by_head += mask[:, :, None] if mask.shape[1] == 1 else mask.unflatten(1, (shared, -1))
    elif columns > length:
        by_head[..., length:columns] = -torch.inf
    shares = by_head.softmax(dim=-1)
    if gate is not None and not shares.requires_grad:
        shares[..., :columns].mul_(gate)
    elif gate is not None:
        shares = torch.cat([shares[..., :columns] * gate, shares[..., columns:]], dim=-1)
    shares = shares.flatten(2, 3)
    if dropout:
        to_prefix, to_tokens = shares.tensor_split([columns], dim=-1)
        output = (F.dropout(to_tokens, dropout) @ v).flatten(0, 1)
        output.baddbmm_(to_prefix.flatten(0, 1), prefix_v.flatten(0, 1))
    else:
        output = shares @ torch.cat([prefix_v, v], dim=-2)
    return output.view(batch, heads, queries, -1).transpose(1, 2)


def is_fully_masked(part: Shaped[Tensor, "_ _ query key"]) -> bool:
    """Whether a mask lets no query attend to any key; where looking is not free (on a GPU, in compiled code), False."""
    free = part.dtype == torch.bool and part.device.type == "cpu" and not torch.compiler.is_compiling()
    return free and part.numel() > 0 and not bool(part.any())


def multi_head_parallel(
    q: Query, prefix_k: Float[Tensor, "_ kv_head prefix k"], prefix_v: Float[Tensor, "_ kv_head prefix d"]
) -> Float[Tensor, "batch query head d"]:
    """Δ = ReLU(q P_kᵀ) P_v on each head          He et al. 2022, §4.3"""
    repeat = q.shape[1] // prefix_k.shape[1]
    prefix_k, prefix_v = (p.repeat_interleave(repeat, dim=1) for p in (prefix_k, prefix_v))
    return (F.relu(q @ prefix_k.mT) @ prefix_v).transpose(1, 2)
