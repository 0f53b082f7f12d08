"""Prefixes inside any attention kernel: functions registered beside transformers' own, and the masks that they need.

A pre-hook on the attention block puts its prefixes into one keyword, which the block hands to its attention function.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from unipelt.errors import SiteError
from unipelt.forms.prefix import mixed, multi_head_parallel, pad_mask, prefix_attention
from unipelt.inject.context import Context, ForwardState, together
from unipelt.inject.hooks import BoundChange
from unipelt.spec import Location

KEYWORD = "unipelt_prefixes"
MARK = "unipelt_"
KERNELS = ("eager", "sdpa")


class PrefixCall(NamedTuple):
    """One prefix of one forward: P_k and P_v `[rows, head, prefix, d]`; weight `[batch, query, 1]` where each query has its own."""

    function: str
    key: Tensor
    value: Tensor
    weight: Tensor | None

    def to(self, dtype: torch.dtype) -> "PrefixCall":
        """In the kernel's own precision: keys of two would be put together in the wider one."""
        weight = None if self.weight is None else self.weight.to(dtype)
        return self._replace(key=self.key.to(dtype), value=self.value.to(dtype), weight=weight)


class BoundPrefix(BoundChange):
    """A prefix's weight multiplies P_k and P_v (softmax) or Δ (relu); `form` gives the prefixes of one layer of its stack."""

    def __init__(
        self, location: Location, form: nn.Module, weight: Any, *, table: str, layer: int, function: str, **rest: Any
    ):
        """table: which one the form is, of those whose layers share something."""
        super().__init__(location, form, weight, "queries", **rest)
        self.table, self.layer, self.function = table, layer, function

    def call(self, x: Tensor, context: Context) -> PrefixCall:
        pair = self.form(self.layer, context.route, x.shape[0], self._shared(context))
        key, value = (p.to(x.device) for p in pair)
        weight = self.gate(x, context).to(key) if callable(self.weight) else None
        if weight is not None and (weight.shape[1] > 1 or self.function == "relu"):
            return PrefixCall(self.function, key, value, weight)
        scale: Any = self.weight if weight is None else weight[:, None]  # rows head prefix d
        return PrefixCall(self.function, key if self.function == "relu" else key * scale, value * scale, None)

    def _shared(self, context: Context) -> Tensor | None:
        """What all layers read of the table, computed at the stack's door."""
        every = context.shared or {}
        if self.table in every and every[self.table].requires_grad and not torch.is_grad_enabled():
            del every[self.table]  # reentrant checkpointing: the layer comes again, and has gradients of its own
        return every.get(self.table)


class PrefixEntry:
    """Puts an attention block's prefixes into the call of its attention function."""

    def __init__(self, flow: ForwardState):
        self.flow = flow
        self.deltas: list[BoundPrefix] = []

    def enter(self, attention: nn.Module, args: tuple, kwargs: dict[str, Any]):
        x = args[0] if args else kwargs["hidden_states"]
        calls = []
        for context in self.flow.context.parts or (self.flow.context,):
            own = x if context.mine is None else x[context.mine]
            deltas = [delta for delta in self.deltas if delta.mixture == context.mixture]
            calls.append((context.mine, tuple(delta.call(own, context) for delta in deltas)))
        return args, {**kwargs, KEYWORD: (calls, self.flow.pad_mask)}


def attend_with_prefixes(
    name: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """transformers' attention function `name`, each prefix of the call around it in tuple order.

    Of mixtures side by side, each attends in its own rows; as these have unlike numbers of keys, no weights are returned.
    """
    calls: list[tuple[Any, tuple[PrefixCall, ...]]]
    calls, widen = kwargs.pop(KEYWORD, ([(None, ())], pad_mask))
    bias, dropout = kwargs.pop("position_bias", None), kwargs.pop("dropout", 0.0)
    kernel = eager_of(module) if name == "eager" else ALL_ATTENTION_FUNCTIONS[name]
    scaling = kwargs.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling

    def plain(q, k, v, mask, bias, dropout=dropout):
        extra = {} if bias is None else {"position_bias": bias}
        return kernel(module, q, k, v, mask, dropout=dropout, **extra, **kwargs)

    if (
        attention_mask is None
        and any(prefixes for _, prefixes in calls)
        and query.shape[-2] > 1
        and kwargs.get("is_causal", getattr(module, "is_causal", False))
    ):
        queries, keys = query.shape[-2], key.shape[-2]
        attention_mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)[
            None, None
        ]
        if name == "eager":
            attention_mask = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill(
                ~attention_mask, torch.finfo(query.dtype).min
            )

    def changed(prefixes, q, k, v, mask, bias):
        attend: Callable = plain
        prefixes = [prefix.to(q.dtype) for prefix in prefixes]
        for prefix in prefixes:
            if prefix.function == "softmax" and prefix.weight is None:
                attend = partial(_prefix_attention, attend, prefix, widen)
            elif prefix.function == "softmax":
                attend = partial(_mixed, attend, prefix, scaling, kwargs.get("softcap"), dropout)
        output, weights = attend(q, k, v, mask, bias)
        for prefix in prefixes:
            if prefix.function == "relu":
                delta = multi_head_parallel(q, prefix.key, prefix.value)
                output = output + (delta if prefix.weight is None else delta * prefix.weight[:, :, None])
        return output, weights

    given = query, key, value, attention_mask, bias
    if calls[0][0] is None:
        return changed(calls[0][1], *given)
    rows = [mine for mine, _ in calls]
    parts = [
        changed(prefixes, *(t if t is None or t.shape[0] == 1 else t[mine] for t in given))[0]
        for mine, prefixes in calls
    ]
    return together(rows, parts), None


def _prefix_attention(attend: Callable, prefix: PrefixCall, widen: Callable, q, k, v, mask, bias, **kwargs):
    return prefix_attention(partial(attend, **kwargs), q, k, v, mask, prefix.key, prefix.value, bias, widen)


def _mixed(
    attend: Callable,
    prefix: PrefixCall,
    scaling: float,
    softcap: float | None,
    dropout: float,
    q,
    k,
    v,
    mask,
    bias,
    **kwargs,
):
    quiet = partial(attend, dropout=0.0) if dropout else None
    keys, values, weight = prefix.key, prefix.value, prefix.weight
    assert weight is not None
    return mixed(partial(attend, **kwargs), quiet, q, k, v, mask, keys, values, bias, weight, scaling, softcap)


def eager_of(module: nn.Module) -> Callable:
    """`eager_attention_forward` of the module's own modelling file."""
    return sys.modules[type(module).__module__].eager_attention_forward


def _explicit(kernel: str, *args: Any, **kwargs: Any) -> Tensor | None:
    """transformers' mask, never left to a kernel's `is_causal`: with prefix keys in front that is aligned to the wrong corner."""
    return ALL_MASK_ATTENTION_FUNCTIONS[kernel](*args, **{**kwargs, "allow_is_causal_skip": False})


for _kernel in KERNELS:
    AttentionInterface.register(MARK + _kernel, partial(attend_with_prefixes, _kernel))
    AttentionMaskInterface.register(MARK + _kernel, partial(_explicit, _kernel))


class Kernels:
    """Keeps every config of a model on the wrapper of the kernel that its user set, also when it is set anew."""

    def __init__(self, configs: list[Any]):
        self.configs = configs

    def enter(self, *_: Any) -> None:
        """A pre-hook of each stack, before its masks are built."""
        unknown = next((n for n in map(kernel_of, self.configs) if n not in KERNELS), None)
        if unknown is not None:
            raise SiteError(
                f"attention implementation {unknown!r} with a prefix: expected one of {', '.join(KERNELS)}; "
                "call model.set_attn_implementation('sdpa')"
            )
        for config in self.configs:
            if config._attn_implementation != MARK + kernel_of(config):
                config._attn_implementation_internal = MARK + kernel_of(config)

    def restore(self) -> None:
        for config in self.configs:
            config._attn_implementation_internal = kernel_of(config)


def kernel_of(config: Any) -> str:
    """transformers' own name of the kernel that a config asks for."""
    return (config._attn_implementation or "eager").removeprefix(MARK)
