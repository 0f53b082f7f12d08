"""Every hook of an attached model, in the order in which they are registered."""

from unipelt.errors import SiteError
from unipelt.forms.constants import Bias, Norm
from unipelt.forms.gate import mean_of_prompt, mean_of_real
from unipelt.inject.attention import BoundPrefix
from unipelt.inject.context import PROMPT, ForwardState
from unipelt.inject.context_hooks import (
    AttentionHook,
    Checkpointed,
    InputCapture,
    LayerHook,
    ReplicaHook,
    StackHook,
)
from unipelt.inject.heads import Pooling
from unipelt.inject.hooks import BoundChange, HeadHook, ModuleHook
from unipelt.inject.plan import Base
from unipelt.inject.prompt import BoundPrompt, PromptHook, PromptOutput
from unipelt.inject.resolve import embedding_module, path_of
from unipelt.inject.state import NAME, AttachedState, Hook


def hooks_of(state: AttachedState, base: Base, pooling: str) -> list[Hook]:
    """The hooks that join changes and heads to a base. Raises SiteError for a pooling that the model has not."""
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
        own = StackHook(stack.module, forwards, averaged, state.kernels, passes_keywords, changes_first)
        hooks.append(Hook(stack.path, "pre with keywords", own.enter))
        for layer in stack.layers:
            inside = LayerHook(layer.module, forwards, averaged)
            hooks += [Hook(layer.path, "pre with keywords", inside.enter), Hook(layer.path, "always", inside.leave)]
            for _, attention in stack.entry.attentions():
                path = f"{layer.path}.{attention.module}"
                prefixes = [change for change in changes if isinstance(change, BoundPrefix) and change.path == path]
                block = AttentionHook(
                    layer.get(attention.module), forwards, averaged, prefixes, state.kernels, attention.softmax
                )
                hooks += [Hook(path, "pre with keywords", block.enter), Hook(path, "always", block.leave)]
    for captured in dict.fromkeys(change.point.captured for change in changes if change.point.captured):
        hooks.append(Hook(captured, "pre with keywords", InputCapture(forwards, captured).enter))
    hooks += [Hook(path, "pre", hook.before) for path, hook in module_hooks(forwards, changes, "before").items()]
    for path in state.parts[0].head_modules:
        hooks.append(Hook(path, "post", HeadHook([part.head_modules[path] for part in state.parts], forwards).after))
    if pooling != "model":
        hooks.append(pooling_hook(state, base, pooling))
    token_path = path_of(base.model, embedding_module(base.model, "input"))
    if token_path is not None:
        hooks.append(Hook(token_path, "post", Checkpointed(base.model, forwards).after))
    return hooks


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
    front = PromptHook(stack.module, state.forwards, bound, len(state.parts), decoder is not None)
    output = PromptOutput(front)
    firsts = {change.change.form.first for change in bound}  # type: ignore[union-attr]
    whole = path_of(base.model, base.model.base_model) or ""
    if len(firsts) > 1 or ("prompt" in firsts and (decoder is not None or stack.entry.causal)):
        raise SiteError(
            "a head that reads the prompt's first vector (first='prompt'): expected one encoder, and the same of all prompts"
        )
    hooks = [Hook(stack.path, "pre with keywords", front.enter)]
    if decoder is not None:
        hooks.append(Hook(decoder.path, "pre with keywords", output.before_decoder))
        return [*hooks, Hook(whole, "post with keywords", output.after_model)]
    if "prompt" in firsts:
        return [*hooks, Hook("", "post", output.after)]
    within = stack.entry.layers.partition(".*")[0].rpartition(".")[0]
    layers = ".".join(filter(None, (whole, within)))
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
        mine, pool = masks.setdefault(change.location.stack, set()), getattr(change.weight, "pool", None)
        if pool is mean_of_real:
            mine.add("encoder_attention_mask" if change.point.source else "attention_mask")
        elif pool is mean_of_prompt:
            mine.add(PROMPT)
    return masks
