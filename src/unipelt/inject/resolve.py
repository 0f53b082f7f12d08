"""From the words of a mixture to the modules of a base: which module a site is, and what stands beside it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from unipelt.errors import SiteError, did_you_mean
from unipelt.inject.architectures import ARCHITECTURES, Attention, Stack, row_name
from unipelt.inject.context import ForwardState
from unipelt.inject.hooks import Blocks, Interleaved, Part


@dataclass
class Layer:
    """One layer of one stack."""

    index: int
    path: str
    module: nn.Module

    def get(self, path: str) -> nn.Module:
        return self.module.get_submodule(path)


@dataclass
class ResolvedStack:
    """A row of the table, found in a base model."""

    row: Stack
    path: str
    module: nn.Module
    layers: list[Layer]
    flow: ForwardState

    def attentions(self) -> Iterator[tuple[str, Attention]]:
        yield "self", self.row.attention
        if self.row.cross is not None:
            yield "cross", self.row.cross

    def layer_of(self, path: str) -> Layer | None:
        return next((layer for layer in self.layers if path.startswith(layer.path + ".")), None)


def find_stacks(model: PreTrainedModel, sites: tuple[Stack, ...] | None, runs: int) -> list[ResolvedStack]:
    """The stacks of a model. Raises SiteError for an architecture that has no row, or whose row does not fit."""
    base = model.base_model
    name = row_name(base.config)
    if sites is None:
        if name not in ARCHITECTURES:
            raise SiteError(
                f"model_type={name!r} has no row in the table of architectures ({did_you_mean(name, ARCHITECTURES)}); add one to "
                "unipelt/inject/architectures.py, or give attach(…, sites=(Stack(…),))"
            )
        sites = ARCHITECTURES[name]
    if getattr(base.config, "chunk_size_feed_forward", 0):
        raise SiteError(
            "chunk_size_feed_forward cuts sequences apart: expected 0; set config.chunk_size_feed_forward = 0"
        )
    if getattr(base.config, "add_cross_attention", False) and len(sites) == 1:
        raise SiteError(f"{name} with add_cross_attention: its row has no cross-attention; give attach(…, sites=…)")
    prefix = next((path for path, module in model.named_modules() if module is base), "")
    stacks: list[ResolvedStack] = []
    for row in sites:
        if stacks and not hasattr(base, row.module):  # an encoder taken alone, such as T5EncoderModel
            continue
        try:
            module = base.get_submodule(row.module)
            layers = _layers(base, row.layers)
            stack = ResolvedStack(row, _join(prefix, row.module), module, [], ForwardState(runs))
            stack.layers = [Layer(i, _join(prefix, path), layer) for i, (path, layer) in enumerate(layers)]
            for layer in stack.layers:
                for path in _paths(row):
                    layer.get(path)
        except AttributeError as error:
            raise SiteError(f"the row of {name!r} does not fit this model: {error}; give attach(…, sites=…)") from None
        stacks.append(stack)
    return stacks


def _layers(base: nn.Module, pattern: str) -> list[tuple[str, nn.Module]]:
    places = [("", base)]
    for part in [*pattern.split("."), "*"]:
        places = [
            (_join(path, name), child)
            for path, module in places
            for name, child in (module.named_children() if part == "*" else [(part, module.get_submodule(part))])
        ]
    return places


def _paths(row: Stack) -> Iterator[str]:
    for attention in (row.attention, row.cross):
        if attention is not None:
            yield from (attention.module, attention.query, attention.key, attention.value, attention.out)
    yield from (row.ffn_input, row.ffn_output, *row.norms)


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def is_linear(module: nn.Module) -> bool:
    """A linear map over the last dimension: nn.Linear, Conv1D, or a quantised linear that names its features."""
    return isinstance(module, nn.Linear | Conv1D) or (
        hasattr(module, "in_features") and hasattr(module, "out_features")
    )


def features(linear: nn.Module) -> tuple[int, int]:
    """Input and output features."""
    if isinstance(linear, Conv1D):
        return linear.nx, linear.nf
    return int(linear.in_features), int(linear.out_features)  # type: ignore[arg-type]


def heads_of(layer: Layer, attention: Attention, config: Any) -> tuple[int, int]:
    """Number of key/value heads, and the width of one."""
    module = layer.get(attention.module)
    inner = features(layer.get(attention.out))[0]
    queries = next(
        (getattr(module, n) for n in ("num_heads", "n_heads", "num_attention_heads") if hasattr(module, n)), None
    )
    queries = queries or config.num_attention_heads
    width = inner // queries
    return fused_sizes(layer, attention)[1] // width, width


def fused_sizes(layer: Layer, attention: Attention) -> tuple[int, int, int]:
    """Output features of query, key and value."""
    inner, out = features(layer.get(attention.out))[0], features(layer.get(attention.key))[1]
    if attention.query != attention.key:
        return inner, out, features(layer.get(attention.value))[1]
    return inner, (out - inner) // 2, (out - inner) // 2


def projection(layer: Layer, attention: Attention, which: str, config: Any) -> tuple[str, int, int, Part | None]:
    """Path, input and output features of query, key or value; and its part where the projection is fused."""
    index = ("query", "key", "value").index(which)
    path = (attention.query, attention.key, attention.value)[index]
    sizes = fused_sizes(layer, attention)
    part: Part | None = None
    if attention.query == attention.key:
        part = (
            Interleaved(heads_of(layer, attention, config)[0], index) if attention.interleaved else Blocks(sizes, index)
        )
    return path, features(layer.get(path))[0], sizes[index], part


def match_linears(stacks: list[ResolvedStack], model: PreTrainedModel, target: str, head: set[str]) -> list[str]:
    """The paths of the linears that a target names: exact name, dotted suffix, regular expression, or all-linear.

    Raises SiteError where it names none, with the nearest right names.
    """
    base = model.base_model
    prefix = next((path for path, module in model.named_modules() if module is base), "")
    linears = {
        path: path.removeprefix(prefix + ".") if prefix else path
        for path, module in model.named_modules()
        if is_linear(module) and path not in head and (not prefix or path.startswith(prefix + "."))
        and any(path.startswith(stack.path + "." if stack.path else "") for stack in stacks)
    }  # fmt: skip
    if target == "all-linear":
        return [path for path in linears if any(stack.layer_of(path) for stack in stacks)]
    named = [p for p, short in linears.items() if target in (p, short) or p.endswith("." + target)]
    if not named:
        try:
            pattern = re.compile(target)
        except re.error:
            pattern = re.compile(re.escape(target))
        named = [p for p, short in linears.items() if pattern.fullmatch(p) or pattern.fullmatch(short)]
    if not named:
        known = sorted({path.rsplit(".", 1)[-1] for path in linears} | {"all-linear", "query", "key", "value"})
        kind = next(
            (type(m).__name__ for p, m in model.named_modules() if p == target or p.endswith("." + target)), None
        )
        what = f"names a {kind}, not a linear" if kind else "matches no linear"
        raise SiteError(f"target_modules={target!r} {what} of this model: {did_you_mean(target, known, most=5)}")
    return named


def normaliser(norm: nn.Module):
    """The function that a LayerNorm or RMSNorm computes before its scale and shift. Raises SiteError for another module."""
    eps = next((getattr(norm, name) for name in ("eps", "variance_epsilon") if hasattr(norm, name)), None)
    if isinstance(norm, nn.LayerNorm):
        return LayerNormalise(norm.eps)
    if "RMSNorm" in type(norm).__name__ or type(norm).__name__ in ("T5LayerNorm", "FusedRMSNorm"):
        return RootMeanSquare(eps)
    raise SiteError(f"{type(norm).__name__} is neither a LayerNorm nor an RMSNorm: its scale cannot be tuned")


class LayerNormalise:
    def __init__(self, eps: float):
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=self.eps)


class RootMeanSquare:
    def __init__(self, eps: float | None):
        self.eps = eps or torch.finfo(torch.float32).eps  # as torch.nn.RMSNorm

    def __call__(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return (wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + self.eps)).to(x.dtype)
