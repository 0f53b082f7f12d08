"""What a mixture adds to a base: modules and changes, made for its hook points, and the hooks that apply them."""

from collections.abc import Callable
from functools import partial
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from unipelt import spec
from unipelt.errors import SiteError
from unipelt.forms import MAPS
from unipelt.forms.bottleneck import Bottleneck
from unipelt.forms.constants import Bias, Norm
from unipelt.forms.dora import Dora
from unipelt.forms.gate import (
    Gate,
    GroupGate,
    LearnedScale,
    ScoredGate,
    each_token,
    mean_of_all,
    mean_of_prompt,
    mean_of_real,
)
from unipelt.forms.low_rank import LowRank
from unipelt.forms.prefix import PrefixMLP, PrefixTable
from unipelt.forms.prompt import Prompt
from unipelt.forms.routed import JointLinears, RoutedLinear
from unipelt.inject.attention import BoundPrefix
from unipelt.inject.context import PROMPT, ForwardState
from unipelt.inject.context_hooks import AttentionHook, EmbeddingsHook, InputCapture, LayerHook, ReplicaHook, StackHook
from unipelt.inject.heads import build_head
from unipelt.inject.hook_points import Base, HookPoint, hook_points
from unipelt.inject.hooks import BoundChange, HeadHook, ModuleHook, Pooling
from unipelt.inject.prompt import BoundPrompt, PromptHook, PromptOutput
from unipelt.inject.resolve import Columns, FusedColumns, embedding_module, normaliser, path_of, weight_problem
from unipelt.inject.state import NAME, AttachedState, Hook, MixtureState
from unipelt.spec import Location
from unipelt.spec.location import HEAD


def frozen_linear(
    module: Any, columns: Columns | None
) -> tuple[Float[Tensor, "outputs inputs"], Float[Tensor, " outputs"] | None]:
    """The base's own weight and bias of a linear, or of its part in a fused one."""
    weight = module.weight.detach()
    weight = weight.T if isinstance(module, Conv1D) else weight
    bias = None if module.bias is None else module.bias.detach()
    if isinstance(columns, FusedColumns):
        return columns.rows(weight), None if bias is None else columns.rows(bias)
    return weight, bias


def embeddings(table: nn.Module, ids: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
    """The base's own embeddings of tokens."""
    return table(ids.to(next(table.parameters()).device))


class MixtureBuilder:
    """A mixture's modules by location, and its changes in tuple order, each at every point where it joins the base."""

    def __init__(self, mixture: spec.Mixture, runs: int, number: int):
        """number: which of the mixtures that are attached side by side it is."""
        self.mixture, self.runs, self.number = mixture, runs, number
        self.modules: dict[Location, nn.Module] = {}
        self.changes: list[BoundChange] = []

    def add(self, change: spec.Change, point: HookPoint, base: Base) -> None:
        """Build one more change at one point."""
        form = self._form(change, point, base)
        weight, member = self._weight(change, point)
        kind = {"attention": BoundPrefix, "front": BoundPrompt}.get(point.side, BoundChange)
        bound = kind(change, point, form, weight, member=member, mixture=self.number)
        if isinstance(bound, BoundPrefix) and change.form.norm:  # type: ignore[union-attr]
            bound.query = self._frozen(base, point.query, point.columns, "prefix(norm=True)")
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
            module: nn.Module = Bias(self.runs, point.outputs)
        elif form.name == "norm":
            norm = base.model.get_submodule(point.path)
            module = Norm(self.runs, point.outputs, normaliser(norm), getattr(norm, "bias", None) is not None)
        elif form.name == "dora":
            frozen = self._frozen(base, point.path, point.columns, "dora")
            module = Dora(self.runs, point.inputs, point.outputs, form.r, form.alpha, frozen)
        elif form.name == "prompt":
            token_table: Any = point.stack.module.get_input_embeddings()  # type: ignore[operator]
            embed = partial(embeddings, token_table) if form.init == "vocabulary" else None
            module = Prompt(self.runs, form.length, point.outputs, token_table.num_embeddings, embed)
        else:
            module = MAPS[form.name](form, self.runs, point.inputs, point.outputs)
        return self.modules.setdefault(point.location, module)

    def _frozen(self, base: Base, path: str, columns: Columns | None, reader: str) -> partial[Any]:
        """A function that returns a linear's weight and bias. Raises SiteError if they are not floating point. reader: of them."""
        module: Any = base.model.get_submodule(path)
        if not module.weight.is_meta and (weight := weight_problem(module)) is not None:
            raise SiteError(
                f"{reader} at {path!r}: its weight is {weight}; expected floating point; load the base unquantised"
            )
        return partial(frozen_linear, module, columns)

    def _weight(self, change: spec.Change, point: HookPoint) -> tuple[float | nn.Module, int]:
        """The weight of a change at one point, and its column in a gate that a group shares."""
        weight, location = change.weight, point.location
        cross, source = "cross_" if location.is_cross else "", "source_" if point.source else ""

        def shared(part: str, make: Callable[..., nn.Module], *settings: Any) -> nn.Module:
            """The module of the layer that has this part in its location, made by the first change that asks for it."""
            part_location = location._replace(part=part)
            if part_location not in self.modules:
                self.modules[part_location] = make(self.runs, *settings)
            return self.modules[part_location]

        if isinstance(weight, spec.Learned):
            return shared(f"{cross}scale", LearnedScale, weight.start), 0
        if not isinstance(weight, spec.Gate):
            return weight, 0
        pool = pool_of(weight, point)
        if weight.group:
            members, location = self.mixture.members(weight.group), location._replace(change=weight.group)
            gate = shared(f"{cross}{source}gate", GroupGate, point.inputs, pool, len(members))
            return gate, members.index(point.location.change)
        part = f"{location.part}.gate" if len(change.sites) == 1 else f"{cross}{source}gate"
        return shared(part, Gate, point.inputs, pool), 0


def pool_of(gate: spec.Gate, point: HookPoint) -> Callable:
    """The function that pools a gate's scores over tokens. Raises SiteError for pool='prompt' but in a decoder alone."""
    if gate.pool == "reference":
        return mean_of_all
    entry = point.stack.entry
    if gate.pool == "prompt":
        if not entry.causal or entry.cross is not None:
            raise SiteError(
                f"Gate(pool='prompt') at {point.location}: a prompt is read by a decoder that stands alone, such as Llama's; "
                "expected pool='auto' for this base"
            )
        return mean_of_prompt
    causal = point.stack.entry.causal and not point.source
    return each_token if gate.pool == "token" or (causal and gate.pool == "auto") else mean_of_real


def build(
    mixture: spec.Mixture, runs: int, number: int, base: Base, *, options: dict[str, Any] | None = None,
    fresh_head: bool = False, head_modules: list[str] | None = None,
) -> MixtureState:  # fmt: skip
    """The modules and changes of a mixture, and a head, for this many runs. Raises SiteError where the base lacks a site."""
    builder = MixtureBuilder(mixture, runs, number)
    for name, change in mixture.named():
        for point in hook_points(name, change, base):
            builder.add(change, point, base)
    state = MixtureState(mixture, runs, options or {}, fresh_head)
    state.changes, state.head_modules = builder.changes, build_head(base.model, head_modules, runs)
    head = {Location("", None, HEAD, path): module for path, module in state.head_modules.items()}
    for location, module in {**builder.modules, **head}.items():
        state.add_at(location, module)
    return state


def hooks_of(state: AttachedState, base: Base, pooling: str) -> list[Hook]:
    """The hooks that join changes and heads to a base. Raises SiteError for a pooling or for prompts that the base lacks."""
    forwards, changes = state.forwards, state.all_changes()
    masks = averaged_masks(changes)
    hooks = [Hook("", "pre", ReplicaHook(forwards, NAME).enter)]
    # a layer's context ends with the layer, so what changes the layer's own output comes first
    hooks += [Hook(path, "post", hook.after) for path, hook in module_hooks(forwards, changes, "after").items()]
    hooks += prompt_hooks(state, base, changes)
    for stack in base.stacks:
        averaged = masks.get(stack.entry.name, set())
        passes_keywords = stack.entry.attention.prefix and stack.entry.keywords
        changes_first = stack.entry.attention.norm is None and any(
            change.point.stack is stack and isinstance(change.form, Bias | Norm) for change in changes
        )
        stack_hook = StackHook(stack.module, forwards, averaged, state.kernels, passes_keywords, changes_first)
        hooks.append(Hook(stack.path, "pre with keywords", stack_hook.enter))
        for layer in stack.layers:
            inside = LayerHook(layer.module, forwards, averaged)
            hooks += [Hook(layer.path, "pre with keywords", inside.enter), Hook(layer.path, "always", inside.leave)]
            for which, attention in stack.entry.attentions():
                path = f"{layer.path}.{attention.module}"
                prefixes = [change for change in changes if isinstance(change, BoundPrefix) and change.path == path]
                inputs = (attention.query,) if which == "cross" else (attention.query, attention.key, attention.value)
                paths = {path, *(f"{layer.path}.{projection}" for projection in inputs)}
                joint = joint_linears(changes, paths) if len(state.mixtures) == 1 else None
                block = AttentionHook(
                    layer.get(attention.module), forwards, averaged, prefixes, state.kernels, attention.softmax, joint
                )
                hooks += [Hook(path, "pre with keywords", block.enter), Hook(path, "always", block.leave)]
    for captured in dict.fromkeys(change.point.captured for change in changes if change.point.captured):
        hooks.append(Hook(captured, "pre with keywords", InputCapture(forwards, captured).enter))
    hooks += [Hook(path, "pre", hook.before) for path, hook in module_hooks(forwards, changes, "before").items()]
    for path in state.mixtures[0].head_modules:
        hooks.append(
            Hook(path, "post", HeadHook([attached.head_modules[path] for attached in state.mixtures], forwards).after)
        )
    if pooling != "model":
        hooks.append(pooling_hook(state, base, pooling))
    token_path = path_of(base.model, embedding_module(base.model, "input"))
    if token_path is not None:
        hooks.append(Hook(token_path, "post", EmbeddingsHook(base.model, forwards).after))
    return hooks


def joint_linears(changes: list[BoundChange], paths: set[str]) -> JointLinears | None:
    """The linears of gates and forms that read what an attention block reads, if there is a gate among several.

    paths: of the block, for its prefixes, and of its projections, for what changes their outputs. Without gates each is computed
    by itself, so that LoRA gives what it gives in peft, bit for bit.
    """
    scores: list[RoutedLinear] = []
    downs: list[RoutedLinear] = []
    for change in changes:
        form: Any = change.form
        if change.path not in paths or change.point.side == "before" or change.point.reads != "input":
            continue
        if isinstance(change.weight, ScoredGate) and change.weight.pool is not mean_of_prompt:
            scores.append(change.weight.score)
        if isinstance(form, Bottleneck) or (isinstance(form, LowRank) and isinstance(form.dropout, nn.Identity)):
            downs.append(form.down)
    linears = list(dict.fromkeys([*scores, *downs]))  # changes of a group share a gate
    alike = len({linear.weight.shape[-1] for linear in linears}) == 1  # a latent query reads fewer features
    return JointLinears(linears) if scores and alike and len(linears) > 1 else None


def module_hooks(forwards: ForwardState, changes: list[BoundChange], side: str) -> dict[str, ModuleHook]:
    """By path, what applies the changes of each module's input (`before`) or output (`after`)."""
    hooks: dict[str, ModuleHook] = {}
    for change in changes:
        if change.point.side == side:
            hooks.setdefault(change.path, ModuleHook(forwards)).changes.append(change)
    return hooks


def prompt_hooks(state: AttachedState, base: Base, changes: list[BoundChange]) -> list[Hook]:
    """What puts soft prompts in front of an input, and takes them out of the outputs. Raises SiteError where they cannot stand
    side by side."""
    bound = [change for change in changes if isinstance(change, BoundPrompt)]
    if not bound:
        return []
    stack = bound[0].point.stack
    decoder = next((other for other in base.stacks if other.entry.cross is not None), None)
    front = PromptHook(stack.module, state.forwards, bound, len(state.mixtures), decoder is not None)
    output = PromptOutput(front)
    firsts = {change.change.form.first for change in bound}  # type: ignore[union-attr]
    base_path = path_of(base.model, base.model.base_model) or ""
    if len(firsts) > 1 or ("prompt" in firsts and (decoder is not None or stack.entry.causal)):
        raise SiteError(
            "a head that reads the prompt's first vector (first='prompt'): expected one encoder, and the same of all prompts"
        )
    hooks = [Hook(stack.path, "pre with keywords", front.enter)]
    if decoder is not None:
        hooks.append(Hook(decoder.path, "pre with keywords", output.before_decoder))
        return [*hooks, Hook(base_path, "post with keywords", output.after_model)]
    if "prompt" in firsts:
        return [*hooks, Hook("", "post", output.after)]
    within = stack.entry.layers.partition(".*")[0].rpartition(".")[0]
    layers = ".".join(filter(None, (base_path, within)))
    return [*hooks, *(Hook(path, "post", output.after) for path in dict.fromkeys((layers, stack.path)))]


def pooling_hook(state: AttachedState, base: Base, pooling: str) -> Hook:
    """What gives the head another pooling than the model's own. Raises SiteError where no head pools."""
    model, stacks = base.model, base.stacks
    if len(stacks) != 1 or stacks[0].entry.causal or model.base_model is model:
        raise SiteError(
            f"pooling={pooling!r}: {type(model).__name__} is not an encoder with a head that pools; use pooling='model'"
        )
    path = path_of(model, model.base_model) or ""
    return Hook(path, "post with keywords", Pooling(pooling == "mean", model.base_model, state.forwards).after)


def averaged_masks(changes: list[BoundChange]) -> dict[str, set[str]]:
    """By stack, the names of the masks over which some gate averages, and PROMPT where one averages over the prompt."""
    masks: dict[str, set[str]] = {}
    for change in changes:
        names, pool = masks.setdefault(change.location.stack, set()), getattr(change.weight, "pool", None)
        if pool is mean_of_real:
            names.add("encoder_attention_mask" if change.point.source else "attention_mask")
        elif pool is mean_of_prompt:
            names.add(PROMPT)
    return masks
