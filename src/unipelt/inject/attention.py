"""Prefixes for transformers' attention functions `eager` and `sdpa`: functions registered beside these.

A pre-hook on the attention block puts its prefixes into one keyword, which the block passes to its attention function.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from unipelt import spec
from unipelt.errors import SiteError
from unipelt.forms.prefix import (
    AttentionFunction,
    PrefixMLP,
    gated_prefix_attention,
    multi_head_parallel,
    prefix_attention,
    prefix_attention_unfused,
    split_heads,
    table_of,
)
from unipelt.inject.context import Context, in_batch_order
from unipelt.inject.hooks import BoundChange, module_of

PREFIXES = "unipelt_prefixes"
MARK = "unipelt_"
IMPLEMENTATIONS = ("eager", "sdpa")
LONGEST_PLAIN = 512  # keys: a score for each pair of tokens is kept, and its memory grows with the square


class PrefixCall(NamedTuple):
    """One prefix of one forward."""

    function: str
    key: Float[Tensor, "rows head prefix k"]
    value: Float[Tensor, "rows head prefix v"]
    weight: Float[Tensor, "rows _ 1"] | None
    """the gate, one for each query or for all; None: already multiplied into P_v (and into P_k for softmax)"""
    query: Float[Tensor, "rows head query k"] | None = None
    """query that a relu prefix reads; None: the attention's own"""

    def to(self, dtype: torch.dtype) -> "PrefixCall":
        """In the kernel's own precision: concatenating keys of two precisions would give the wider one."""
        weight = None if self.weight is None else self.weight.to(dtype)
        query = None if self.query is None else self.query.to(dtype)
        return self._replace(key=self.key.to(dtype), value=self.value.to(dtype), weight=weight, query=query)


Calls = list[tuple[Any, tuple[PrefixCall, ...]]]
"""for each mixture that is attached: its rows, or None for all, and its prefixes"""


class BoundPrefix(BoundChange):
    """A prefix's weight multiplies P_k and P_v (softmax) or Δ (relu); `form` gives the prefixes of one layer of its stack."""

    query: partial[tuple[Float[Tensor, "queries d"], Float[Tensor, " queries"] | None]] | None = None
    """gives W_q and its bias, where the form has a LayerNorm before them"""

    @property
    def layer(self) -> int:
        """Which layer of the form's table it is."""
        assert self.point.table is not None
        return self.point.table.slot

    def prefix_call(self, x: Float[Tensor, "rows seq d"], context: Context) -> PrefixCall:
        function = cast(spec.Prefix, self.change.form).function
        pair = module_of(self.form, context)(self.layer, context.route, x.shape[0])
        key, value = (p.to(x.device) for p in pair)
        weight = self.weight_value(x, context).to(key) if isinstance(self.weight, nn.Module) else None
        if weight is not None and (weight.shape[1] > 1 or function == "relu"):
            return PrefixCall(function, key, value, weight, self._query(x, context))
        scale: Any = self.weight if weight is None else weight[:, None]  # rows head prefix d
        key = key if function == "relu" else key * scale
        return PrefixCall(function, key, value * scale, None, self._query(x, context))

    def _query(self, x: Float[Tensor, "rows seq d"], context: Context) -> Float[Tensor, "rows head seq k"] | None:
        """W_q LN(x), neither scaled nor rotated"""
        if self.query is None:
            return None
        table: Any = module_of(self.form, context)
        weight, bias = self.query()
        q = F.linear(table.norm(x, self.layer, context.route).to(weight.dtype), weight, bias)
        return split_heads(q, q.shape[-1] // (table.key.shape[-1] // table.heads))


def attend_with_prefixes(
    name: str, module: nn.Module, query: Float[Tensor, "batch head query d"], key: Float[Tensor, "batch kv_head key d"],
    value: Float[Tensor, "batch kv_head key v"], attention_mask: Shaped[Tensor, "_ _ query key"] | None, **kwargs: Any,
) -> tuple[Float[Tensor, "batch query head v"], Tensor | None]:  # fmt: skip
    """The output of transformers' attention function `name` with every prefix of the call applied, in tuple order.

    Of mixtures side by side, each attends in its own rows; as these have unlike numbers of keys, no weights are returned.
    """
    calls: Calls = kwargs.pop(PREFIXES, [])
    kernel = eager_of(module) if name == "eager" else ALL_ATTENTION_FUNCTIONS[name]
    if not any(prefixes for _, prefixes in calls):
        return kernel(module, query, key, value, attention_mask, **kwargs)
    autocast = name == "sdpa" and torch.is_autocast_enabled(kind := query.device.type)
    if autocast and query.dtype != torch.float64:  # the kernel would do so itself
        query, key, value = (t.to(torch.get_autocast_dtype(kind)) for t in (query, key, value))
    bias, dropout = kwargs.pop("position_bias", None), kwargs.pop("dropout", 0.0)
    scaling = kwargs.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    is_causal = kwargs.get("is_causal", getattr(module, "is_causal", False))
    if attention_mask is None and query.shape[-2] > 1 and is_causal:
        attention_mask = causal_mask(query, key, name)

    def plain(q, k, v, mask, bias, dropout):
        extra = {} if bias is None else {"position_bias": bias}
        return kernel(module, q, k, v, mask, dropout=dropout, **extra, **kwargs)

    return apply_prefixes(
        calls, plain, query, key, value, attention_mask, bias, dropout, scaling=scaling, softcap=kwargs.get("softcap"),
        products=name == "sdpa" and all(item is None for item in (bias, kwargs.get("softcap"), kwargs.get("cache"))),
    )  # fmt: skip


def apply_prefixes(
    calls: Calls, plain: AttentionFunction, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None,
    bias: Tensor | None, dropout: float, *, scaling: float, softcap: float | None = None, products: bool = False,
) -> tuple[Float[Tensor, "batch query head v"], Tensor | None]:  # fmt: skip
    """The output of `plain` with every prefix applied, in tuple order.

    products: whether `plain` computes softmax(s q kᵀ + mask) v and nothing else.
    """

    def changed(prefixes, q, k, v, mask, bias):
        attend: AttentionFunction = plain
        prefixes = [prefix.to(q.dtype) for prefix in prefixes]
        _check_head_shapes(prefixes, k, v)
        for prefix in prefixes:
            keywords: Any = {"prefix_k": prefix.key, "prefix_v": prefix.value}
            if prefix.function != "softmax":
                continue
            if products and attend is plain and (prefix.weight is not None or _slow_when_fused(q, k)):
                attend = partial(prefix_attention_unfused, gate=prefix.weight, scaling=scaling, **keywords)
            elif prefix.weight is None:
                attend = partial(prefix_attention, attend, **keywords)
            else:
                keywords |= {"gate": prefix.weight, "scaling": scaling, "softcap": softcap}
                attend = partial(gated_prefix_attention, attend, **keywords)
        output, weights = attend(q, k, v, mask, bias, dropout)
        for prefix in prefixes:
            if prefix.function == "relu":
                queries = q if prefix.query is None else prefix.query
                delta = multi_head_parallel(queries, prefix.key, prefix.value)
                output = output + (delta if prefix.weight is None else delta * prefix.weight[:, :, None])
        return output, weights

    arguments = query, key, value, mask, bias
    if calls[0][0] is None:
        return changed(calls[0][1], *arguments)
    rows = [mixture_rows for mixture_rows, _ in calls]
    parts = [
        changed(prefixes, *(t if t is None or t.shape[0] == 1 else t[mixture_rows] for t in arguments))[0]
        for mixture_rows, prefixes in calls
    ]
    return in_batch_order(rows, parts), None


def _check_head_shapes(prefixes: list[PrefixCall], key: Tensor, value: Tensor) -> None:
    """Raise SiteError where prefixes were made for other keys and values than the attention has: its entry is wrong."""
    shape = (key.shape[1], key.shape[-1], value.shape[-1])
    for prefix in prefixes:
        prefix_shape = (prefix.key.shape[1], prefix.key.shape[-1], prefix.value.shape[-1])
        if prefix_shape != shape:
            raise SiteError(
                f"an attention block has {shape[0]} heads of keys and values, of widths {shape[1]} and {shape[2]}; its "
                f"entry in stacks= gives {prefix_shape[0]}, {prefix_shape[1]} and {prefix_shape[2]}: name them, "
                f"Attention(…, shape=({shape[0]}, {shape[1]}, {shape[2]})), "
                "or leave stacks= out, and the entry is found"
            )


def _slow_when_fused(query: Tensor, key: Tensor) -> bool:
    """Whether plain products are faster than a fused kernel: in bf16 on a CPU, with at most LONGEST_PLAIN keys."""
    return query.device.type == "cpu" and query.dtype == torch.bfloat16 and key.shape[-2] <= LONGEST_PLAIN


def causal_mask(query: Tensor, key: Tensor, name: str) -> Shaped[Tensor, "1 1 query key"]:
    """The mask that a kernel would else make by itself (`is_causal`), which prefix keys in front would shift."""
    queries, keys = query.shape[-2], key.shape[-2]
    mask = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
    if name != "eager":
        return mask
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)


def eager_of(module: nn.Module) -> Callable:
    """`eager_attention_forward` of the module's own modelling file, or else SDPA."""
    function = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return function or ALL_ATTENTION_FUNCTIONS["sdpa"]


def configs_of(model: nn.Module) -> list[Any]:
    """Every config of a model's modules, once."""
    return list({id(module.config): module.config for module in model.modules() if hasattr(module, "config")}.values())


for _kernel in IMPLEMENTATIONS:
    AttentionInterface.register(MARK + _kernel, partial(attend_with_prefixes, _kernel))
    AttentionMaskInterface.register(MARK + _kernel, ALL_MASK_ATTENTION_FUNCTIONS[_kernel])


@contextmanager
def prefixes_computed_once(module: nn.Module) -> Iterator[None]:
    """Inside the block a prefix MLP does not compute its prefixes in each forward: they are those at the beginning of the block.

    For forwards without gradients: a text is written with as many forwards as it has tokens.
    """
    mlps = [mlp for mlp in module.modules() if isinstance(mlp, PrefixMLP) and "forward" not in vars(mlp)]
    for mlp in mlps:
        mlp.forward = table_of(mlp).forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        for mlp in mlps:
            del mlp.forward


class AttentionImplementations:
    """Keeps each config of a model on the wrapper of the attention implementation that its user has set, or sets later."""

    def __init__(self, model: nn.Module):
        self.configs = [config for config in configs_of(model) if hasattr(config, "_attn_implementation")]

    def wrap(self) -> None:
        """Wrap each config's implementation; again at each forward, as the user may set another. Raises SiteError for an unknown one."""
        kernels = [attention_implementation(config) for config in self.configs]
        for kernel in kernels:
            if kernel not in IMPLEMENTATIONS:
                raise SiteError(
                    f"attention implementation {kernel!r} with a prefix: expected one of {', '.join(IMPLEMENTATIONS)}; "
                    "call model.set_attn_implementation('sdpa')"
                )
        for config, kernel in zip(self.configs, kernels):
            if config._attn_implementation != MARK + kernel:
                config._attn_implementation_internal = MARK + kernel

    def restore(self) -> None:
        for config in self.configs:
            config._attn_implementation_internal = attention_implementation(config)


def attention_implementation(config: Any) -> str:
    """transformers' name of the attention implementation that a config asks for, without unipelt's mark."""
    return (config._attn_implementation or "eager").removeprefix(MARK)
