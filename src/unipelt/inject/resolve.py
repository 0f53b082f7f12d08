"""Find the modules of a base for the sites of a mixture, with their sizes and fused parts."""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from unipelt.errors import SiteError, did_you_mean
from unipelt.forms.prefix import HeadShape
from unipelt.inject.architectures import ARCHITECTURES, Attention, Stack, entries_for, other_switch


def embedding_module(model: nn.Module, which: str) -> nn.Module | None:
    """The input or output embeddings of a model, as transformers gives them. which: "input" or "output"; None: it has none."""
    try:
        return getattr(model, f"get_{which}_embeddings")()
    except (AttributeError, NotImplementedError):
        return None


def path_of(model: nn.Module, module: nn.Module | None) -> str | None:
    """The path of a module in a model; None where it is not in it."""
    return next((path for path, other in model.named_modules() if other is module), None)


class FusedColumns:
    """The columns of query, key or value in what a fused projection gives: `groups` equal groups, each with parts of these sizes."""

    def __init__(self, groups: int, sizes: Sequence[int], index: int):
        self.groups, self.sizes, self.index = groups, list(sizes), index

    def take(self, y: Float[Tensor, "*rows fused"]) -> Float[Tensor, "*rows own"]:
        return y.unflatten(-1, (self.groups, -1)).split(self.sizes, dim=-1)[self.index].flatten(-2)

    def add(self, y: Float[Tensor, "*rows fused"], delta: Float[Tensor, "*rows own"]) -> Float[Tensor, "*rows fused"]:
        parts = list(y.unflatten(-1, (self.groups, -1)).split(self.sizes, dim=-1))
        parts[self.index] = parts[self.index] + delta.unflatten(-1, (self.groups, -1))
        return torch.cat(parts, dim=-1).flatten(-2)

    def rows(self, weight: Float[Tensor, "fused ..."]) -> Float[Tensor, "own ..."]:
        """The rows of the fused weight or bias that give these columns; a view where there is one group."""
        return weight.unflatten(0, (self.groups, -1)).split(self.sizes, dim=1)[self.index].flatten(0, 1)


class Channels:
    """All columns of a convolution's output, in which they are the second dimension."""

    def take(self, y: Float[Tensor, "batch d *rest"]) -> Float[Tensor, "batch *rest d"]:
        return y.movedim(1, -1)

    def add(self, y: Float[Tensor, "batch d *rest"], delta: Float[Tensor, "_ *_ d"]) -> Float[Tensor, "batch d *rest"]:
        return y + delta.movedim(-1, 1)


Columns = FusedColumns | Channels


@dataclass
class Layer:
    """One layer of one stack."""

    index: int
    path: str
    module: nn.Module

    def get(self, path: str) -> nn.Module:
        return self.module.get_submodule(path)

    def has(self, path: str) -> bool:
        return _submodule(self.module, path) is not None


@dataclass
class ResolvedStack:
    """An entry of the table, found in a base model."""

    entry: Stack
    path: str
    module: nn.Module
    layers: list[Layer]
    """those that have every part of the entry"""
    others: int = 0
    """how many more the list has"""

    @property
    def dispatches(self) -> bool:
        """Whether an attention of it calls transformers' attention functions."""
        return any(attention.softmax is None for _, attention in self.entry.attentions())

    def layer_of(self, path: str) -> Layer | None:
        return next((layer for layer in self.layers if path.startswith(layer.path + ".")), None)


def find_stacks(model: PreTrainedModel, entries: tuple[Stack, ...] | None) -> list[ResolvedStack]:
    """The stacks of a model. Raises SiteError for an architecture that has no entry, or whose entry does not fit."""
    base: Any = model.base_model
    name: str = base.config.model_type
    entries = entries_for(base.config) if entries is None else entries
    if entries is None:
        switch = other_switch(base.config)
        why = f"with {switch} " if switch else ""
        raise SiteError(
            f"model_type={name!r} {why}has no entry in the table of architectures ({did_you_mean(name, ARCHITECTURES)}); "
            "attach with discover=True, or give attach(…, stacks=(Stack(…),))"
        )
    if getattr(base.config, "chunk_size_feed_forward", 0):
        raise SiteError(
            "chunk_size_feed_forward cuts sequences apart: expected 0; set config.chunk_size_feed_forward = 0"
        )
    if getattr(base.config, "add_cross_attention", False) and len(entries) == 1:
        raise SiteError(f"{name} with add_cross_attention: its entry has no cross-attention; give attach(…, stacks=…)")
    prefix = path_of(model, base) or ""
    stacks: list[ResolvedStack] = []
    for entry in entries:
        if stacks and not hasattr(base, entry.module):  # an encoder taken alone, such as T5EncoderModel
            continue
        try:
            module = base.get_submodule(entry.module)
            layers = _layers(base, entry.layers)
            stack = ResolvedStack(entry, _join(prefix, entry.module), module, [])
            every = [Layer(i, _join(prefix, path), layer) for i, (path, layer) in enumerate(layers)]
            stack.layers = [layer for layer in every if not _missing(layer, entry)]
            if not stack.layers:
                raise AttributeError(f"no layer has {_missing(every[0], entry)!r}" if every else "it has no layers")
            stack.others = len(every) - len(stack.layers)
        except AttributeError as error:
            raise SiteError(
                f"the entry of {name!r} does not fit this model: {error}; give attach(…, stacks=…)"
            ) from None
        stacks.append(stack)
    return stacks


def _layers(base: nn.Module, pattern: str) -> list[tuple[str, nn.Module]]:
    """Path and module of each layer of a list; after a *, children that lack the rest of the path are passed over."""
    first, *rest = f"{pattern}.*".lstrip(".").split(".*")
    modules = [(first, base.get_submodule(first))]
    for part in rest:
        children = [(_join(path, name), child) for path, module in modules for name, child in module.named_children()]
        modules = [(_join(path, part[1:]), inner) for path, child in children if (inner := _submodule(child, part[1:]))]
    return modules


def _submodule(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def _paths(entry: Stack) -> Iterator[str]:
    """What a layer must have; its norms may differ from layer to layer."""
    for attention in (entry.attention, entry.cross):
        if attention is not None:
            yield from (attention.module, attention.query, attention.key, attention.value, attention.out)
            yield from filter(None, [attention.norm])
    yield from filter(None, [entry.ffn_input, entry.ffn_output, entry.ffn_norm, entry.ffn_residual])


def _missing(layer: Layer, entry: Stack) -> str | None:
    """The first path of an entry that a layer lacks."""
    return next((path for path in _paths(entry) if not layer.has(path)), None)


def warn_of_skipped_layers(name: str, stacks: list[ResolvedStack]) -> None:
    """One line for each stack some of whose layers have no attention, or no FFN, and so take no changes."""
    for stack in stacks:
        if stack.others:
            numbers = ", ".join(str(layer.index) for layer in stack.layers)
            logging.getLogger("unipelt").warning(
                "%s: layers %s of %d have attention and an FFN; changes go into these alone",
                name, numbers, len(stack.layers) + stack.others,
            )  # fmt: skip


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def weight_problem(module: nn.Module) -> str | None:
    """The type of a module's weight where it is not a plain floating-point parameter that could be written."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return "no weight"
    known = not is_linear(module) or isinstance(module, nn.Linear | Conv1D)
    plain = known and weight.is_floating_point() and weight.dtype.itemsize > 1 and not weight.is_meta
    return (
        None if plain else f"{type(weight).__name__} of {str(weight.dtype).removeprefix('torch.')} on {weight.device}"
    )


def last_linear(layer: Layer, entry: Stack) -> str:
    """The path, from its layer, of the linear that ends the FFN: the FFN's output, or the one inside of it that gives as many
    features as the layer has. Raises SiteError where there is not exactly one, as in a sum of experts."""
    ffn, d_model = layer.get(entry.ffn_output), features(layer.get(entry.attention.out))[1]
    if is_linear(ffn):
        return entry.ffn_output
    linears = [(path, module) for path, module in ffn.named_modules() if is_linear(module)]
    last = [path for path, module in linears if features(module)[1] == d_model]
    if len(last) != 1:
        raise SiteError(
            f"ffn_hidden: {layer.path}.{entry.ffn_output} has {len(last)} linears that give {d_model} features, expected one; "
            "leave ffn_hidden out of the mixture, or name a linear, such as site='linear:NAME'"
        )
    return f"{entry.ffn_output}.{last[0]}"


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


HEADS = ("num_heads", "n_heads", "num_attention_heads")
"""names under which attention modules keep their number of heads"""


def head_shape(layer: Layer, attention: Attention, config: Any) -> HeadShape:
    """Number of key/value heads and the widths of a key and a value. Raises SiteError where nothing tells them."""
    module = layer.get(attention.module)
    if attention.shape is not None:
        return HeadShape(*(_number(number, module, config) for number in attention.shape))
    inner = features(layer.get(attention.out))[0]
    heads = next((n for name in HEADS if isinstance(n := getattr(module, name, None), int)), None)
    heads = heads or getattr(config, "num_attention_heads", None)
    if not heads or inner % heads:
        raise SiteError(
            f"{layer.path}.{attention.module}: {heads} heads do not divide the {inner} features that {attention.out} reads; "
            "give attach(…, stacks=…) with Attention(shape=(key/value heads, key width, value width))"
        )
    width = inner // heads
    if attention.key == attention.value:
        outputs = features(layer.get(attention.key))[1] - (inner if attention.query == attention.key else 0)
        return HeadShape(outputs // 2 // width, width, width)
    heads = max(features(layer.get(attention.value))[1] // width, 1)
    return HeadShape(heads, features(layer.get(attention.key))[1] // heads, width)


def by_head_shape(layers: list[Layer], attention: Attention, config: Any) -> list[tuple[HeadShape, list[Layer]]]:
    """Layers by the shape of their heads: those of one shape have one table of prefixes."""
    groups: dict[HeadShape, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(head_shape(layer, attention, config), []).append(layer)
    return list(groups.items())


def _number(number: int | str, module: nn.Module, config: Any) -> int:
    """A number of an entry, or the attribute that it names: of the attention module, its config, or the model's."""
    if isinstance(number, int):
        return number
    for owner in (module, getattr(module, "config", None), config):
        if isinstance(value := getattr(owner, number, None), int):
            return value
    raise SiteError(f"no attribute {number!r} in {type(module).__name__} or the config; give attach(…, stacks=…)")


def projection(layer: Layer, attention: Attention, which: str, config: Any) -> tuple[str, int, int, Columns | None]:
    """Path, input and output features of query, key or value; and its part where the projection is fused."""
    paths = {"query": attention.query, "key": attention.key, "value": attention.value}
    path = paths[which]
    inputs, outputs = features(layer.get(path))
    order = [part for part in attention.order if part == "other" or paths[part] == path]
    if len(order) < 2 or list(paths.values()).count(path) < 2:
        return path, inputs, outputs, None
    shape = head_shape(layer, attention, config)
    sizes = {"value": shape.heads * shape.value, "key": shape.heads * shape.key}
    if "query" in order:
        sizes["query"] = features(layer.get(attention.out))[0] // shape.value * shape.key
    if "other" in order:
        sizes["other"] = outputs - sum(sizes.values())
    elif "query" not in order:  # multi-head latent attention: a part of each key comes from elsewhere
        sizes["key"] = outputs - sizes["value"]
    groups = shape.heads if attention.groups == "heads" else int(attention.groups)
    each = [sizes[part] // groups for part in order]
    if sum(each) * groups != outputs or min(each) <= 0:
        raise SiteError(f"{layer.path}.{path} has {outputs} output features; expected {groups} groups of {order}")
    return path, inputs, sizes[which], FusedColumns(groups, each, order.index(which))


def match_linears(stacks: list[ResolvedStack], model: PreTrainedModel, target: str, head: set[str]) -> list[str]:
    """The paths of the linears that a target names: exact name, dotted suffix, regular expression, or all-linear.

    Raises SiteError where it names none, with the nearest right names.
    """
    prefix = path_of(model, model.base_model) or ""
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
        other = next((m for p, m in model.named_modules() if p == target or p.endswith("." + target)), None)
        problem = "matches no linear" if other is None else f"names a {type(other).__name__}, not a linear,"
        if other is not None and is_linear(other):
            problem = "names a linear outside of the stacks, such as the head's, that no change can tune, and no other"
        raise SiteError(f"target_modules={target!r} {problem} of this model: {did_you_mean(target, known, most=5)}")
    return named


def normaliser(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    """The function that a LayerNorm or RMSNorm computes before its scale and shift. Raises SiteError for another module."""
    weight = cast(Tensor, norm.weight)
    eps: Any = next((getattr(norm, name) for name in ("eps", "variance_epsilon") if hasattr(norm, name)), 1e-6)
    eps = torch.finfo(weight.dtype).eps if eps is None else eps  # as nn.RMSNorm has it
    for function in (F.layer_norm, F.rms_norm):
        normalise = partial(function, normalized_shape=weight.shape, eps=eps)
        if weight.is_meta or _is_scaled(norm, normalise):
            return normalise
    raise SiteError(f"{type(norm).__name__} is neither a LayerNorm nor an RMSNorm: its scale cannot be tuned")


@torch.no_grad()
def _is_scaled(norm: nn.Module, function: Callable[[Tensor], Tensor]) -> bool:
    """Whether a weight that is larger by one adds exactly this function of the input."""
    weight = norm.weight
    if not isinstance(weight, nn.Parameter):
        return False
    x = torch.linspace(-2, 3, 2 * len(weight), device=weight.device).sin().to(weight.dtype).view(1, 2, -1)
    more = torch.func.functional_call(norm, {"weight": weight + 1}, (x,)) - norm(x)
    return torch.allclose(function(x), more, atol=1e-4 if x.dtype.itemsize > 2 else 5e-2)
