"""The modules of a mixture, made for the hook points of its plan: forms, weights, and what binds them to the base."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from unipelt import spec
from unipelt.errors import SiteError
from unipelt.forms import MAPS
from unipelt.forms.constants import Bias, Norm
from unipelt.forms.dora import Dora
from unipelt.forms.gate import Gate, GroupGate, LearnedScale, each_token, mean_of_all, mean_of_prompt, mean_of_real
from unipelt.forms.prefix import PrefixMLP, PrefixTable
from unipelt.forms.prompt import Prompt
from unipelt.inject.attention import BoundPrefix
from unipelt.inject.hooks import BoundChange
from unipelt.inject.plan import Base, HookPoint, plan
from unipelt.inject.prompt import BoundPrompt
from unipelt.inject.resolve import FusedPart, Part, normaliser, unreadable
from unipelt.spec import Location


class FrozenLinear:
    """Gives the base's own weight `[outputs, inputs]` and bias of a linear, or of one part of a fused one."""

    def __init__(self, module: Any, part: Part | None, path: str, reader: str = "dora"):
        if not module.weight.is_meta and (found := unreadable(module)) is not None:
            raise SiteError(
                f"{reader} at {path!r}: its weight is {found}, which {reader} reads; load the base in floating point"
            )
        self.module, self.part = module, part

    def __call__(self) -> tuple[Float[Tensor, "outputs inputs"], Float[Tensor, " outputs"] | None]:
        weight = self.module.weight.detach()
        weight = weight.T if isinstance(self.module, Conv1D) else weight
        bias = None if self.module.bias is None else self.module.bias.detach()
        if isinstance(self.part, FusedPart):
            return self.part.rows(weight), None if bias is None else self.part.rows(bias)
        return weight, bias


class Vocabulary:
    """Gives the base's own embeddings of tokens."""

    def __init__(self, table: nn.Module):
        self.table = table

    def __call__(self, ids: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
        return self.table(ids.to(next(self.table.parameters()).device))


@dataclass
class BuiltMixture:
    """A mixture's modules by location, and its changes in tuple order, each at every point where it joins the base."""

    mixture: spec.Mixture
    runs: int
    number: int
    """which of the mixtures that are attached side by side it is"""
    modules: dict[Location, nn.Module] = field(default_factory=dict)
    changes: list[BoundChange] = field(default_factory=list)

    def add(self, change: spec.Change, point: HookPoint, base: Base) -> None:
        """Build one more change at one point."""
        form = self._form(change, point, base)
        weight, member = self._weight(change, point)
        kind = {"attention": BoundPrefix, "front": BoundPrompt}.get(point.side, BoundChange)
        bound = kind(change, point, form, weight, member=member, mixture=self.number)
        if isinstance(bound, BoundPrefix) and change.form.norm:  # type: ignore[union-attr]
            path, part = point.query or ("", None)
            bound.query = FrozenLinear(base.model.get_submodule(path), part, path, "prefix(norm=True)")
        self.changes.append(bound)

    def _form(self, change: spec.Change, point: HookPoint, base: Base) -> nn.Module:
        form: Any = change.form
        if point.table is not None:
            location, shape, layers, _ = point.table
            if location in self.modules:
                return self.modules[location]
            if form.mlp:
                prefix: nn.Module = PrefixMLP(self.runs, layers, form.length, shape, point.inputs, form.mlp, form.init)
            else:
                normed = point.inputs if form.norm else 0
                prefix = PrefixTable(self.runs, layers, form.length, shape, form.function, normed)
            return self.modules.setdefault(location, prefix)
        if form.name == "bias":
            made: nn.Module = Bias(self.runs, point.outputs)
        elif form.name == "norm":
            norm = base.model.get_submodule(point.path)
            made = Norm(self.runs, point.outputs, normaliser(norm), getattr(norm, "bias", None) is not None)
        elif form.name == "dora":
            frozen = FrozenLinear(base.model.get_submodule(point.path), point.part, point.path)
            made = Dora(self.runs, point.inputs, point.outputs, form.r, form.alpha, frozen)
        elif form.name == "prompt":
            table: Any = point.stack.module.get_input_embeddings()  # type: ignore[operator]
            embed = Vocabulary(table) if form.init == "vocabulary" else None
            made = Prompt(self.runs, form.length, point.outputs, table.num_embeddings, embed)
        else:
            made = MAPS[form.name](form, self.runs, point.inputs, point.outputs)
        return self.modules.setdefault(point.location, made)

    def _weight(self, change: spec.Change, point: HookPoint) -> tuple[float | nn.Module, int]:
        """The weight of a change at one point, and its column in a gate that a group shares."""
        weight, location = change.weight, point.location
        cross = "cross_" if location.is_cross else ""
        if isinstance(weight, spec.Learned):
            return self._shared(
                location._replace(part=f"{cross}scale"), lambda: LearnedScale(self.runs, weight.start)
            ), 0
        if not isinstance(weight, spec.Gate):
            return weight, 0
        pool, source = pool_of(weight, point), "source_" if point.source else ""
        if weight.group:
            members = self.mixture.members(weight.group)
            location = location._replace(change=weight.group)
            # a cross-attention's value reads the encoder's output, its query the decoder's stream, and each pools its own
            makers = (f"{cross}gate", f"{cross}source_gate")
            for part in makers:
                gate: Any = self._shared(
                    location._replace(part=part), lambda: GroupGate(self.runs, point.inputs, pool, len(members))
                )
                if gate.pool is pool:
                    break
            return gate, members.index(point.location.change)
        part = f"{location.part}.gate" if len(change.sites) == 1 else f"{cross}{source}gate"
        return self._shared(location._replace(part=part), lambda: Gate(self.runs, point.inputs, pool)), 0

    def _shared(self, location: Location, make: Callable[[], nn.Module]) -> nn.Module:
        if location not in self.modules:
            self.modules[location] = make()
        return self.modules[location]


def pool_of(gate: spec.Gate, point: HookPoint) -> Callable:
    """How a gate makes one value of its tokens' at a point."""
    if gate.pool == "reference":
        return mean_of_all
    row = point.stack.row
    if gate.pool == "prompt":
        if not row.causal or row.cross is not None:
            raise SiteError(
                f"Gate(pool='prompt') at {point.location}: a prompt is read by a decoder that stands alone, such as Llama's; "
                "expected pool='auto' for this base"
            )
        return mean_of_prompt
    causal = point.stack.row.causal and not point.source
    return each_token if gate.pool == "token" or (causal and gate.pool == "auto") else mean_of_real


def build(mixture: spec.Mixture, runs: int, number: int, base: Base) -> BuiltMixture:
    """The modules of a mixture for so many runs. Raises SiteError where the base has no place for a change."""
    built = BuiltMixture(mixture, runs, number)
    for name, change in mixture.named():
        for point in plan(name, change, base):
            built.add(change, point, base)
    return built
