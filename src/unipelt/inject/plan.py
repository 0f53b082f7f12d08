"""A mixture becomes modules and the hooks that join them to a base: one small function a form."""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from unipelt import spec
from unipelt.errors import SiteError
from unipelt.forms import MAPS, product, reader
from unipelt.forms.constants import Bias, Norm
from unipelt.forms.gate import Gate, GroupGate, Learned, each_token, mean_of_all, mean_of_real
from unipelt.forms.low_rank import LowRank
from unipelt.forms.prefix import PrefixMLP, PrefixTable
from unipelt.inject.architectures import Attention
from unipelt.inject.attention import BoundPrefix, PrefixEntry
from unipelt.inject.context import ForwardState
from unipelt.inject.hooks import BoundChange, Channels, ModuleHook
from unipelt.inject.resolve import (
    Layer,
    ResolvedStack,
    by_head_shape,
    features,
    match_linears,
    normaliser,
    projection,
)
from unipelt.spec.compatibility import LINEARS


@dataclass
class HookPoint:
    """Where one change joins: the module, the side of it, and what Δ reads."""

    path: str
    label: str
    inputs: int
    outputs: int
    before: bool = False
    reads: str = "input"
    held: str | None = None
    source: bool = False
    part: Any = None
    tensor: str = ""
    """which tensor of the layer Δ reads, where others may read it too: `self` or `cross`, an attention block's input"""


@dataclass
class Build:
    """What attach puts into a model: modules of the mixture at work by parameter path, the owners of hooks by module path."""

    model: PreTrainedModel
    stacks: list[ResolvedStack]
    head: set[str]
    several: bool
    """whether a batch has rows of several runs"""
    number: int = -1
    """of the mixture at work"""
    runs: int = 0
    """its runs"""
    modules: dict[spec.Location, nn.Module] = field(default_factory=dict)
    before: dict[str, ModuleHook] = field(default_factory=dict)
    after: dict[str, ModuleHook] = field(default_factory=dict)
    prefixes: dict[str, PrefixEntry] = field(default_factory=dict)
    holds: dict[str, tuple[ForwardState, str]] = field(default_factory=dict)
    # (stack, mask): the masks over which some gate averages
    pooled: set[tuple[str, str]] = field(default_factory=set)
    members: dict[str, list[str]] = field(default_factory=dict)
    readers: dict[tuple[str, str], list[Any]] = field(default_factory=dict)
    """forms and gates that read one tensor, by layer and tensor, each as often as it is called"""

    def __post_init__(self):
        self.config: Any = self.model.base_model.config

    def mixture(self, mixture: spec.Mixture, runs: int) -> dict[spec.Location, nn.Module]:
        """Join one more mixture, of so many runs: its modules by location."""
        self.number, self.runs, self.modules, self.members = self.number + 1, runs, {}, {}
        for name, change in mixture.named():
            if isinstance(change.weight, spec.Gate) and change.weight.group:
                self.members.setdefault(change.weight.group, []).append(name)
        for name, change in mixture.named():
            depth = max(stack.layers[-1].index + 1 for stack in self.stacks)
            if change.layers is not None and (beyond := [i for i in change.layers if i >= depth]):
                raise SiteError(f"{name}: layers={beyond} of a base with {depth} layers; they count from 0")
            place = {"prefix": self.prefix, "bias": self.biases, "norm": self.norms}.get(change.form.name, self.map)
            place(name, change)
        return self.modules

    def products(self) -> None:
        """What reads one tensor becomes one matrix product, but LoRA alone, which stays bit for bit what peft's is.
        Not with mixtures side by side, which read rows of their own."""
        tensors = Counter(module for modules in self.readers.values() for module in set(modules))
        for modules in self.readers.values():
            alone = [module for module in modules if tensors[module] == 1]  # a central gate may read several
            if len(alone) > 1 and any(not isinstance(module, LowRank) for module in alone):
                product(alone)

    def reads(self, stack: ResolvedStack, layer: Layer | None, place: HookPoint, *modules: Any) -> None:
        """A form and its weight read the tensor of this place: the attention block's own input, or one that is theirs alone."""
        if stack.row.positions:  # the same linears read relative positions too
            return
        key = (layer.path, place.tensor) if layer and place.tensor else (place.path, f"{id(modules[0])}")
        self.readers.setdefault(key, []).extend(module for module in modules if reader(module) is not None)

    def map(self, name: str, change: spec.Change) -> None:
        """A form that maps x to Δ(x): bottleneck, Kronecker, low rank."""
        for site in change.sites:
            for stack, layer, place in self.places(site, change):
                self.refuse_positions(name, change, stack, place.path)
                form = MAPS[change.form.name](change.form, self.runs, place.inputs, place.outputs)
                location = spec.Location(stack.row.name, layer.index if layer else None, name, place.label)
                self.modules[location] = form
                weight, member = self.weight(change, stack, layer, place, location)
                delta = BoundChange(
                    location, form, weight, place.reads,
                    held=place.held, source=place.source, member=member, part=place.part, mixture=self.number,
                )  # fmt: skip
                self.hook_on(stack, place).deltas.append(delta)
                self.reads(stack, layer, place, form, weight)

    def changed(self, stack: ResolvedStack, change: spec.Change) -> list[Layer]:
        """The layers of a stack that a change is in."""
        return [layer for layer in stack.layers if change.layers is None or layer.index in change.layers]

    def places(self, site: str, change: spec.Change):
        if site.startswith(LINEARS):
            yield from self.linears(site.removeprefix(LINEARS), change)
            return
        for stack in self.stacks:
            for layer in self.changed(stack, change):
                if site in ("ffn", "layer"):
                    yield stack, layer, self.ffn(stack, layer, site, change.reads)
                else:
                    for kind, attention in stack.attentions():
                        yield stack, layer, self.attention(stack, layer, kind, attention, site, change)

    def linears(self, target: str, change: spec.Change):
        if target == "all-linear" and any(p.dim() == 3 for p in self.model.base_model.parameters()):
            logging.getLogger("unipelt").warning(
                "all-linear: the experts of %s are no linears; they stay as they are", self.config.model_type
            )
        known: dict[str, tuple[str, Attention, ResolvedStack, Layer]] = {}
        for stack in self.stacks:
            for layer in stack.layers:
                for kind, attention in stack.attentions():
                    for path in (attention.query, attention.key, attention.value):
                        known[f"{layer.path}.{path}"] = kind, attention, stack, layer
        for path in match_linears(self.stacks, self.model, target, self.head):
            stack = max((s for s in self.stacks if path.startswith(s.path)), key=lambda s: len(s.path))
            owner: Layer | None = next((found for s in self.stacks if (found := s.layer_of(path))), None)
            if owner is not None and change.layers is not None and owner.index not in change.layers:
                continue
            gate = change.weight if isinstance(change.weight, spec.Gate) else None
            if gate is not None and (owner is None or (gate.group and path not in known)):
                raise SiteError(
                    f"{path!r} does not read a stack's tokens as its gate must; gate another linear, or use a number"
                )
            source = (
                path in known
                and known[path][0] == "cross"
                and path.rsplit(".", 1)[-1] != known[path][1].query.rsplit(".", 1)[-1]
            )
            inputs, outputs = features(self.model.get_submodule(path))
            label = path.removeprefix(owner.path + ".") if owner else path
            reads = "output" if change.reads == "output" else "input"
            reads_size = outputs if reads == "output" else inputs
            yield stack, owner, HookPoint(path, label, reads_size, outputs, reads=reads, source=source)

    def attention(
        self, stack: ResolvedStack, layer: Layer, kind: str, attention: Attention, site: str, change: spec.Change
    ) -> HookPoint:
        cross = "" if kind == "self" else "cross_"
        if site in ("query", "key", "value"):
            path, inputs, outputs, part = projection(layer, attention, site, self.config)
            source = kind == "cross" and site != "query"
            reads = "output" if change.reads == "output" else "input"
            reads_size = outputs if reads == "output" else inputs
            own = inputs == features(layer.get(attention.out))[1]  # else it reads a compression of the block's input
            place, tensor = f"{layer.path}.{path}", kind if reads == "input" and not source and own else ""
            return HookPoint(
                place, cross + site, reads_size, outputs, reads=reads, source=source, part=part, tensor=tensor
            )
        inner, d_model = features(layer.get(attention.out))
        out, block = f"{layer.path}.{attention.out}", f"{layer.path}.{attention.module}"
        if change.reads == "input":
            self.holds[block] = stack.flow, kind
        if site == "heads":
            return HookPoint(out, cross + "heads", d_model, inner, before=True, held=kind, tensor=kind)
        if change.reads == "normed sum":
            if attention.norm is None:
                raise SiteError(
                    f"'normed sum' at attention: {self.config.model_type} has no LayerNorm over attention output and residual; "
                    "read 'output' instead, or put the change on the FFN"
                )
            return HookPoint(
                f"{layer.path}.{attention.norm}", cross + "attention", d_model, d_model, reads="normed sum"
            )
        held = kind if change.reads == "input" else None
        return HookPoint(out, cross + "attention", d_model, d_model, reads="output", held=held, tensor=held or "")

    def ffn(self, stack: ResolvedStack, layer: Layer, site: str, reads: str) -> HookPoint:
        row, d_model = stack.row, features(layer.get(stack.row.attention.out))[1]
        output, entry = f"{layer.path}.{row.ffn_output}", f"{layer.path}.{row.ffn_input}"
        if site == "layer":
            if reads == "input":
                self.holds[layer.path] = stack.flow, "layer"
            return HookPoint(
                layer.path, "layer", d_model, d_model, reads="output", held="layer" if reads == "input" else None
            )
        if reads == "normed sum":
            if row.ffn_norm is None:  # pre-LN: the sum is the layer's output, and nothing normalises it
                return HookPoint(layer.path, "ffn", d_model, d_model, reads="output")
            return HookPoint(f"{layer.path}.{row.ffn_norm}", "ffn", d_model, d_model, reads="normed sum")
        if reads == "residual" and row.ffn_residual is not None:
            self.holds[f"{layer.path}.{row.ffn_residual}"] = stack.flow, "residual"
            return HookPoint(output, "ffn", d_model, d_model, held="residual")
        if reads in ("input", "residual"):
            if entry == output:
                return HookPoint(output, "ffn", d_model, d_model)
            self.holds[entry] = stack.flow, "ffn"
            return HookPoint(output, "ffn", d_model, d_model, held="ffn")
        return HookPoint(output, "ffn", d_model, d_model, reads="output")

    def prefix(self, name: str, change: spec.Change) -> None:
        form: Any = change.form
        for stack in self.stacks:
            for kind, attention in stack.attentions():
                if not attention.prefix:
                    raise SiteError(
                        f"{name}: {self.config.model_type} computes its attention by itself, so no prefix can enter it; "
                        "use a mixture without a prefix, such as lora, adapter or bitfit"
                    )
                shapes = by_head_shape(self.changed(stack, change), attention, self.config)
                for group, (shape, layers) in enumerate(shapes):
                    path = spec.Location(stack.row.name, None, name, f"{kind}_{group}" if group else kind)
                    d_model = features(layers[0].get(attention.out))[1]
                    if form.mlp and form.function == "softmax":
                        table: nn.Module = PrefixMLP(
                            self.runs, len(layers), form.length, shape, d_model, form.mlp, form.init
                        )
                    else:
                        table = PrefixTable(self.runs, len(layers), form.length, shape, form.function)
                    self.modules[path] = table
                    for slot, layer in enumerate(layers):
                        label = "heads" if kind == "self" else "cross_heads"
                        place = HookPoint(f"{layer.path}.{attention.module}", label, d_model, 0, tensor=kind)
                        location = spec.Location(stack.row.name, layer.index, name, label)
                        weight, member = self.weight(change, stack, layer, place, location)
                        delta = BoundPrefix(
                            location, table, weight, table=f"{self.number}.{path}", layer=slot,
                            function=form.function, member=member, mixture=self.number,
                        )  # fmt: skip
                        self.prefixes.setdefault(place.path, PrefixEntry(stack.flow)).deltas.append(delta)
                        self.reads(stack, layer, place, weight)

    def biases(self, name: str, change: spec.Change) -> None:
        found = False
        for path, module in self.model.base_model.named_modules():
            bias = getattr(module, "bias", None)
            if not isinstance(bias, nn.Parameter) or bias.dim() != 1:
                continue
            full = next(p for p, m in self.model.named_modules() if m is module)
            layer = next((layer for stack in self.stacks if (layer := stack.layer_of(full))), None)
            if full in self.head or (change.layers is not None and (layer is None or layer.index not in change.layers)):
                continue
            stack = next((s for s in self.stacks if full.startswith(s.path + "." if s.path else "")), self.stacks[0])
            self.refuse_positions(name, change, stack, full)
            form = Bias(self.runs, len(bias))
            location = spec.Location(stack.row.name, layer.index if layer else None, name, path)
            self.modules[location] = form
            part = Channels() if isinstance(module, nn.modules.conv._ConvNd) else None
            place = HookPoint(full, path, len(bias), len(bias))
            delta = BoundChange(location, form, change.weight, "output", part=part, mixture=self.number)  # type: ignore[arg-type]
            self.hook_on(stack, place).deltas.append(delta)
            found = True
        if not found:
            raise SiteError(f"bitfit: {self.config.model_type} has no biases to tune; use lora or adapter")

    def norms(self, name: str, change: spec.Change) -> None:
        for stack in self.stacks:
            for layer in self.changed(stack, change):
                for path in stack.row.norms:
                    norm = layer.get(path) if layer.has(path) else None
                    scale: Any = getattr(norm, "weight", None)
                    if norm is None or scale is None:  # the first layer of ModernBERT, layers that differ
                        continue
                    form = Norm(self.runs, len(scale), normaliser(norm), getattr(norm, "bias", None) is not None)
                    location = spec.Location(stack.row.name, layer.index, name, path)
                    self.modules[location] = form
                    place = HookPoint(f"{layer.path}.{path}", path, len(scale), len(scale))
                    delta = BoundChange(location, form, change.weight, "input", mixture=self.number)  # type: ignore[arg-type]
                    self.hook_on(stack, place).deltas.append(delta)

    def weight(
        self, change: spec.Change, stack: ResolvedStack, layer: Layer | None, place: HookPoint, location: spec.Location
    ) -> tuple[float | nn.Module, int]:
        """The weight of one change at one place, and its column in a shared gate."""
        cross = "cross_" if location.is_cross else ""
        if isinstance(change.weight, spec.Learned):
            return self.modules.setdefault(
                location._replace(part=f"{cross}scale"), Learned(self.runs, change.weight.start)
            ), 0
        if not isinstance(change.weight, spec.Gate):
            return change.weight, 0
        assert layer is not None
        causal = stack.row.causal and not place.source
        pool: Callable = mean_of_all if change.weight.pool == "reference" else mean_of_real
        if change.weight.pool == "token" or (causal and change.weight.pool == "auto"):
            pool = each_token
        else:
            self.pooled.add((stack.row.name, "encoder_attention_mask" if place.source else "attention_mask"))
        if group := change.weight.group:
            members = self.members[group]
            path = location._replace(change=group, part=f"{cross}gate")
            gate: nn.Module = self.modules.setdefault(path, GroupGate(self.runs, place.inputs, pool, len(members)))
            if pool is not gate.pool:  # a cross-attention value reads the encoder's output, its query the decoder's
                path = path._replace(part=f"{cross}source_gate")
                gate = self.modules.setdefault(path, GroupGate(self.runs, place.inputs, pool, len(members)))
            return gate, members.index(location.change)
        label = f"{place.label}.gate" if len(change.sites) == 1 else f"{cross}{'source_' if place.source else ''}gate"
        return self.modules.setdefault(location._replace(part=label), Gate(self.runs, place.inputs, pool)), 0

    def refuse_positions(self, name: str, change: spec.Change, stack: ResolvedStack, path: str) -> None:
        """Raise SiteError where relative positions, which belong to no row of a batch, would have to find a run or a gate."""
        passed = any(path.endswith("." + module) for module in stack.row.positions)
        if (
            passed
            and (self.several or isinstance(change.weight, spec.Gate))
            and getattr(self.config, "relative_attention", True)
        ):
            raise SiteError(
                f"{name}: relative positions, which belong to no row of a batch, pass through {path!r} too, so it takes "
                "neither several runs nor a gate; use one run and a number, or change 'value' or the FFN"
            )

    def hook_on(self, stack: ResolvedStack, place: HookPoint) -> ModuleHook:
        side = self.before if place.before else self.after
        return side.setdefault(place.path, ModuleHook(place.path, stack.flow))
