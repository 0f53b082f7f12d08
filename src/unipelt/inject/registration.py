"""Every hook of an attached model, in the order in which they are registered."""

from transformers import PreTrainedModel

from unipelt.errors import SiteError
from unipelt.forms.constants import Bias, Norm
from unipelt.forms.gate import mean_of_prompt, mean_of_real
from unipelt.inject.attention import BoundPrefix
from unipelt.inject.context import PROMPT
from unipelt.inject.context_hooks import (
    AttentionHook,
    Checkpointed,
    InputCapture,
    KernelHook,
    LayerHook,
    ReplicaHook,
    StackHook,
)
from unipelt.inject.heads import HeadHook, HeadLinear, HeadNorm, Pooling
from unipelt.inject.hooks import BoundChange, ModuleHook
from unipelt.inject.plan import Base
from unipelt.inject.prompt import BoundPrompt, PromptHook, PromptOutput
from unipelt.inject.resolve import embedding_module
from unipelt.inject.state import NAME, AttachedState, Hook


def hooks_of(
    state: AttachedState, base: Base, changes: list[BoundChange], heads: list[dict[str, HeadLinear | HeadNorm]],
    pooling: str,
) -> list[Hook]:  # fmt: skip
    """The hooks that join changes and heads to a base. Raises SiteError for a pooling that the model has not."""
    forwards, masks, points = state.forwards, averaged_masks(changes), [change.point for change in changes]
    hooks = [Hook("", "pre", ReplicaHook(forwards, NAME).enter)]
    blocks = attention_hooks(state, base, changes, masks)
    captures = dict.fromkeys((point.captured_at, str(point.captured)) for point in points if point.captured_at)
    hooks += prompt_hooks(state, base, changes)
    for stack in base.stacks:
        if state.kernels is not None:
            hooks.append(Hook(stack.path, "pre", KernelHook(state.kernels, forwards).enter))
        averaged = masks.get(stack.row.name, set())
        passes_keywords = stack.row.attention.prefix and stack.row.keywords
        changes_first = stack.row.attention.norm is None and any(
            change.point.stack is stack and isinstance(change.form, Bias | Norm) for change in changes
        )
        own = StackHook(stack.module, forwards, averaged, passes_keywords, changes_first)
        hooks.append(Hook(stack.path, "pre with keywords", own.enter))
        for layer in stack.layers:
            inside = LayerHook(layer.module, forwards, averaged)
            hooks += [Hook(layer.path, "pre with keywords", inside.enter), Hook(layer.path, "always", inside.leave)]
            for _, attention in stack.attentions():
                path = f"{layer.path}.{attention.module}"
                hooks.append(Hook(path, "pre with keywords", blocks[path].enter))
                hooks.append(Hook(path, "always", blocks[path].leave))
    hooks += [Hook(path, "pre with keywords", InputCapture(forwards, name).enter) for path, name in captures]
    before: dict[str, ModuleHook] = {}
    after: dict[str, ModuleHook] = {}
    for change in changes:
        if change.point.side in ("before", "after"):
            side = before if change.point.side == "before" else after
            side.setdefault(change.path, ModuleHook(forwards)).changes.append(change)
    hooks += [Hook(path, "pre", hook.before) for path, hook in before.items()]
    changed = [Hook(path, "post", hook.after) for path, hook in after.items()]
    # a layer's context ends with the layer, so what changes the layer's own output comes first
    hooks = [*hooks[:1], *changed, *hooks[1:]]
    for path in heads[0]:
        hooks.append(Hook(path, "post", HeadHook([head[path] for head in heads], forwards).after))
    if pooling != "model":
        hooks.append(pooling_hook(state, base, pooling))
    token_path = embeddings_of(base.model)
    if token_path is not None:
        hooks.append(Hook(token_path, "post", Checkpointed(base.model, forwards).after))
    return hooks


def attention_hooks(
    state: AttachedState, base: Base, changes: list[BoundChange], masks: dict[str, set[str]]
) -> dict[str, AttentionHook]:
    """One hook for each attention block, with the prefixes that join it."""
    hooks: dict[str, AttentionHook] = {}
    read = {
        (point.layer.path, point.captured)
        for point in (change.point for change in changes)
        if point.layer is not None and point.captured and not point.captured_at
    }
    for stack in base.stacks:
        for layer in stack.layers:
            for kind, attention in stack.attentions():
                captures = kind if (layer.path, kind) in read else None
                hooks[f"{layer.path}.{attention.module}"] = AttentionHook(
                    layer.get(attention.module), state.forwards, masks.get(stack.row.name, set()), captures, state.kernels,
                    attention.softmax,
                )  # fmt: skip
    for change in changes:
        if isinstance(change, BoundPrefix):
            hooks[change.path].changes.append(change)
    return hooks


def prompt_hooks(state: AttachedState, base: Base, changes: list[BoundChange]) -> list[Hook]:
    """What puts soft prompts in front of an input, and takes them out of the outputs. Raises SiteError where they cannot stand
    side by side."""
    bound = [change for change in changes if isinstance(change, BoundPrompt)]
    if not bound:
        return []
    stack = bound[0].point.stack
    decoder = next((other for other in base.stacks if other.row.cross is not None), None)
    front = PromptHook(stack.module, state.forwards, bound, len(state.parts), decoder is not None)
    output = PromptOutput(front)
    firsts = {change.change.form.first for change in bound}  # type: ignore[union-attr]
    whole = next(path for path, module in base.model.named_modules() if module is base.model.base_model)
    if len(firsts) > 1 or ("prompt" in firsts and (decoder is not None or stack.row.causal)):
        raise SiteError(
            "a head that reads the prompt's first vector (first='prompt'): expected one encoder, and the same of all prompts"
        )
    hooks = [Hook(stack.path, "pre with keywords", front.enter)]
    if decoder is not None:
        hooks.append(Hook(decoder.path, "pre with keywords", output.before_decoder))
        return [*hooks, Hook(whole, "post with keywords", output.after_model)]
    if "prompt" in firsts:
        return [*hooks, Hook("", "post", output.after)]
    within = stack.row.layers.partition(".*")[0].rpartition(".")[0]
    layers = ".".join(filter(None, (whole, within)))
    return [*hooks, *(Hook(path, "post", output.after) for path in dict.fromkeys((layers, stack.path)))]


def pooling_hook(state: AttachedState, base: Base, pooling: str) -> Hook:
    """What gives the head another pooling than the model's own. Raises SiteError where no head pools."""
    model, stacks = base.model, base.stacks
    if len(stacks) != 1 or stacks[0].row.causal or model.base_model is model:
        raise SiteError(
            f"pooling={pooling!r}: {type(model).__name__} is not an encoder with a head that pools; use pooling='model'"
        )
    path = next(path for path, module in model.named_modules() if module is model.base_model)
    return Hook(path, "post with keywords", Pooling(pooling == "mean", model.base_model, state.forwards).after)


def embeddings_of(model: PreTrainedModel) -> str | None:
    """The path of a model's input embeddings; None where it has none, or names none."""
    found = embedding_module(model, "input")
    return next((path for path, module in model.named_modules() if module is found), None)


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
