"""Where the changes of a mixture join a base: for each change a list of hook points. Nothing is built or registered here."""

import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from torch import nn
from transformers import PreTrainedModel

from unipelt import spec
from unipelt.errors import SiteError
from unipelt.forms.prefix import HeadShape
from unipelt.inject.architectures import Attention
from unipelt.inject.context import parameters_of
from unipelt.inject.resolve import (
    Channels,
    Columns,
    Layer,
    ResolvedStack,
    by_head_shape,
    embedding_module,
    features,
    last_linear,
    match_linears,
    projection,
)
from unipelt.inject.shapes import most_tokens
from unipelt.spec import Location
from unipelt.spec.compatibility import LINEARS

CHANNELS = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)
"""modules whose features are dimension 1 of their output"""


@dataclass(frozen=True)
class Base:
    """What the search for hook points needs to know of a model."""

    model: PreTrainedModel
    stacks: list[ResolvedStack]
    head: frozenset[str]
    """paths of the head's modules"""
    several: bool
    """whether a batch has rows of several runs"""

    @property
    def config(self) -> Any:
        return self.model.base_model.config


class TableSlot(NamedTuple):
    """Which layer of a prefix table a hook point is: the table's location, shape and number of layers, and the layer's number."""

    location: Location
    shape: HeadShape
    layers: int
    slot: int


@dataclass(frozen=True, kw_only=True, eq=False)
class HookPoint:
    """Where one change joins one module of the base: which side of it, and what Δ reads."""

    stack: ResolvedStack
    location: Location
    path: str
    """of the module, from the model"""
    inputs: int
    """features that Δ reads"""
    outputs: int
    """features that Δ gives"""
    side: Literal["before", "after", "attention", "front"] = "after"
    """what is changed. before: the module's input; after: its output; attention: the keys and values of its attention function;
    front: vectors are put in front of its input"""
    reads: Literal["input", "output", "normed sum"] = "input"
    captured: str | None = None
    """path of a module earlier in the layer whose first argument Δ reads; None: Δ reads the module's own input or output"""
    source: bool = False
    """whether Δ reads the encoder's output"""
    table: TableSlot | None = None
    query: str = ""
    """path of the query's projection, of an attention block"""
    columns: Columns | None = None
    """columns of the output of the linear at `query`, else of the module at `path`, that it uses; None: all"""


def hook_points(name: str, change: spec.Change, base: Base) -> list[HookPoint]:
    """Every hook point of a change, stack by stack and layer by layer. Raises SiteError where the base does not support it."""
    depth = max(stack.layers[-1].index + 1 for stack in base.stacks)
    if change.layers is not None and (beyond := [i for i in change.layers if i >= depth]):
        raise SiteError(f"{name}: layers={beyond} of a base with {depth} layers; they count from 0")
    if change.form.name == "bias":
        points = list(biases(name, change, base))
    elif change.form.name == "prompt":
        points = [prompt_point(name, change.form.length, base)]  # type: ignore[union-attr]
    else:
        points = []
        for site in change.sites:
            if site.startswith(LINEARS):
                points += linears(name, change, site.removeprefix(LINEARS), base)
                continue
            points += [point for stack in base.stacks for point in in_stack(name, change, site, stack, base.config)]
    for point in points:
        refuse_positions(point, change, base)
    return points


def in_stack(name: str, change: spec.Change, site: str, stack: ResolvedStack, config: Any) -> Iterator[HookPoint]:
    """The hook points of a change at one site in one stack."""
    layers = [layer for layer in stack.layers if change.layers is None or layer.index in change.layers]
    if change.form.name == "prefix":
        yield from prefixes(name, layers, stack, config)
    for layer in layers if change.form.name != "prefix" else ():
        if change.form.name == "norm":
            yield from norms(name, stack, layer)
        elif site == "ffn_hidden":
            yield ffn_hidden(name, stack, layer)
        elif site in ("ffn", "layer"):
            yield ffn(name, stack, layer, site, change.reads)
        else:
            for kind, attention in stack.entry.attentions():
                yield in_attention(name, stack, layer, kind, attention, site, change.reads, config)


def make_point(stack: ResolvedStack, layer: Layer | None, name: str, label: str, path: str, **rest: Any) -> HookPoint:
    """The hook point of a change at a module. path: of the module, from the model; label: `part` of its Location."""
    location = Location(stack.entry.name, None if layer is None else layer.index, name, label)
    return HookPoint(stack=stack, location=location, path=path, **rest)


def ffn(name: str, stack: ResolvedStack, layer: Layer, site: str, reads: str) -> HookPoint:
    entry, d_model = stack.entry, features(layer.get(stack.entry.attention.out))[1]
    output, ffn_input = f"{layer.path}.{entry.ffn_output}", f"{layer.path}.{entry.ffn_input}"
    point = make_point(stack, layer, name, site, output, inputs=d_model, outputs=d_model)
    if site == "layer":
        return replace(point, path=layer.path, reads="output", captured=layer.path if reads == "input" else None)
    if reads == "normed sum":
        if entry.ffn_norm is None:  # pre-LN: the sum is the layer's output, and nothing normalises it
            return replace(point, path=layer.path, reads="output")
        return replace(point, path=f"{layer.path}.{entry.ffn_norm}", reads="normed sum")
    if reads == "residual" and entry.ffn_residual is not None:
        return replace(point, captured=f"{layer.path}.{entry.ffn_residual}")
    if reads in ("input", "residual"):
        return replace(point, captured=None if ffn_input == output else ffn_input)
    return replace(point, reads="output")


def ffn_hidden(name: str, stack: ResolvedStack, layer: Layer) -> HookPoint:
    """The FFN's hidden activations: the input of its last linear."""
    path = last_linear(layer, stack.entry)
    width = features(layer.get(path))[0]
    path = f"{layer.path}.{path}"
    return make_point(stack, layer, name, "ffn_hidden", path, inputs=width, outputs=width, side="before")


def in_attention(
    name: str, stack: ResolvedStack, layer: Layer, kind: str, attention: Attention, site: str, reads: str, config: Any
) -> HookPoint:
    """kind: `self` or `cross`. Raises SiteError for 'normed sum' in pre-LN models."""
    label = site if kind == "self" else f"cross_{site}"
    if site in ("query", "key", "value"):
        path, inputs, outputs, columns = projection(layer, attention, site, config)
        return make_point(
            stack, layer, name, label, f"{layer.path}.{path}", inputs=outputs if reads == "output" else inputs,
            outputs=outputs, reads=reads, source=kind == "cross" and site != "query", columns=columns,
        )  # fmt: skip
    inner, d_model = features(layer.get(attention.out))
    block = f"{layer.path}.{attention.module}"
    point = make_point(stack, layer, name, label, f"{layer.path}.{attention.out}", inputs=d_model, outputs=d_model)
    if site == "heads":
        return replace(point, side="before", outputs=inner, captured=block)
    if reads == "normed sum":
        if attention.norm is None:
            raise SiteError(
                f"'normed sum' at attention: {config.model_type} has no LayerNorm over attention output and residual; "
                "read 'output' instead, or put the change on the FFN"
            )
        return replace(point, path=f"{layer.path}.{attention.norm}", reads="normed sum")
    return replace(point, reads="output", captured=block if reads == "input" else None)


def prefixes(name: str, layers: list[Layer], stack: ResolvedStack, config: Any) -> Iterator[HookPoint]:
    """The attention blocks that get prefixes, one table for heads of one shape. Raises SiteError where none can enter."""
    if not layers:
        return
    for kind, attention in stack.entry.attentions():
        if not attention.prefix:
            raise SiteError(
                f"{name}: no prefix enters {layers[0].path}.{attention.module} of {config.model_type}: it calls none of "
                "transformers' attention functions and takes no softmax of q kᵀ alone; use a mixture without a prefix, such as "
                "lora, adapter or bitfit"
            )
        for group, (shape, alike) in enumerate(by_head_shape(layers, attention, config)):
            table = Location(stack.entry.name, None, name, f"{kind}_{group}" if group else kind)
            d_model = features(alike[0].get(attention.out))[1]
            for slot, layer in enumerate(alike):
                path, *_, columns = projection(layer, attention, "query", config)
                yield make_point(
                    stack, layer, name, "heads" if kind == "self" else "cross_heads", f"{layer.path}.{attention.module}",
                    side="attention", inputs=d_model, outputs=0, table=TableSlot(table, shape, len(alike), slot),
                    query=f"{layer.path}.{path}", columns=columns,
                )  # fmt: skip


def norms(name: str, stack: ResolvedStack, layer: Layer) -> Iterator[HookPoint]:
    for path in stack.entry.norms:
        scale: Any = getattr(layer.get(path), "weight", None) if layer.has(path) else None
        if scale is not None:  # some layers lack a norm, such as ModernBERT's first
            yield make_point(stack, layer, name, path, f"{layer.path}.{path}", inputs=len(scale), outputs=len(scale))


def prompt_point(name: str, length: int, base: Base) -> HookPoint:
    """The embedded input of the base, or of its encoder. Raises SiteError where a prompt of this length cannot precede it."""
    stack = base.stacks[0]
    table = embedding_module(stack.module, "input")
    width = getattr(table, "embedding_dim", None)
    if width is None or not {"input_ids", "inputs_embeds"} <= {*parameters_of(stack.module)}:
        raise SiteError(
            f"{name}: {type(stack.module).__name__} takes no embedded tokens (inputs_embeds), so no prompt can stand in front of "
            "its input; use another method, such as prefix, lora or adapter"
        )
    if length >= (positions := most_tokens(base.model, sys.maxsize)):
        raise SiteError(
            f"{name}: length={length} of the {positions} positions that {base.config.model_type} has leaves none for the input; "
            "expected fewer"
        )
    return make_point(stack, None, name, "embeddings", stack.path, inputs=0, outputs=width, side="front")


def biases(name: str, change: spec.Change, base: Base) -> list[HookPoint]:
    """Every bias vector of the base, those outside of its layers too. Raises SiteError where there is none."""
    paths = {module: path for path, module in reversed([*base.model.named_modules()])}
    points = []
    for path, module in base.model.base_model.named_modules():
        bias = getattr(module, "bias", None)
        if not isinstance(bias, nn.Parameter) or bias.dim() != 1 or paths[module] in base.head:
            continue
        stack, layer = owner_of(paths[module], base)
        if change.layers is None or (layer is not None and layer.index in change.layers):
            sizes: Any = dict.fromkeys(("inputs", "outputs"), len(bias))
            columns = Channels() if isinstance(module, CHANNELS) else None
            points.append(make_point(stack, layer, name, path, paths[module], **sizes, reads="output", columns=columns))
    if not points:
        raise SiteError(f"bitfit: {base.config.model_type} has no biases to tune; use lora or adapter")
    return points


def linears(name: str, change: spec.Change, target: str, base: Base) -> Iterator[HookPoint]:
    """The linears that a target names, also outside of layers. Raises SiteError where there is none, or one cannot be gated."""
    if target == "all-linear" and any(p.dim() == 3 for p in base.model.base_model.parameters()):
        logging.getLogger("unipelt").warning(
            "all-linear: the experts of %s are not nn.Linear modules, so they are not changed", base.config.model_type
        )
    known: dict[str, tuple[str, Attention]] = {}
    for stack in base.stacks:
        for layer in stack.layers:
            for kind, attention in stack.entry.attentions():
                for path in (attention.query, attention.key, attention.value):
                    known[f"{layer.path}.{path}"] = kind, attention
    for path in match_linears(base.stacks, base.model, target, set(base.head)):
        stack, inside = owner_of(path, base)
        if inside is not None and change.layers is not None and inside.index not in change.layers:
            continue
        gate = change.weight if isinstance(change.weight, spec.Gate) else None
        if gate is not None and inside is None:
            raise SiteError(
                f"{path!r} does not read the states of tokens, which a gate needs; gate another linear, or set a fixed weight"
            )
        if gate is not None and gate.group and path not in known:
            raise SiteError(
                f"{path!r}: a gate of group {gate.group!r} reads the input of an attention projection; "
                "expected a query, key or value projection, or Gate() without a group"
            )
        kind, attention = known.get(path, ("", stack.entry.attention))
        is_query = path.rsplit(".", 1)[-1] == attention.query.rsplit(".", 1)[-1]
        inputs, outputs = features(base.model.get_submodule(path))
        label = path.removeprefix(inside.path + ".") if inside else path
        before = change.form.name == "scaling" and change.reads == "input"
        yield make_point(
            stack, inside, name, label, path, inputs=outputs if change.reads == "output" else inputs,
            outputs=inputs if before else outputs, reads=change.reads, side="before" if before else "after",
            source=kind == "cross" and not is_query,
        )  # fmt: skip


def owner_of(path: str, base: Base) -> tuple[ResolvedStack, Layer | None]:
    """The stack and the layer that a module is in; the first stack, and None, where it is in none."""
    for stack in base.stacks:
        if (layer := stack.layer_of(path)) is not None:
            return stack, layer
    inside = [stack for stack in base.stacks if path.startswith(f"{stack.path}." if stack.path else "")]
    return max(inside, key=lambda stack: len(stack.path), default=base.stacks[0]), None


def refuse_positions(point: HookPoint, change: spec.Change, base: Base) -> None:
    """Raise SiteError for several runs or a gate at a projection that also reads relative positions: these have no batch axis."""
    passed = any(point.path.endswith("." + module) for module in point.stack.entry.positions)
    bound = base.several or isinstance(change.weight, spec.Gate)
    if passed and bound and getattr(base.config, "relative_attention", True):
        raise SiteError(
            f"{point.location.change}: {point.path!r} also reads relative positions, which have no batch axis, "
            "so it cannot have several runs or a gate; use one run and a fixed weight, or change 'value' or the FFN"
        )
