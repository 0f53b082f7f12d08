"""The entry of an architecture that the table lacks, found by running the model on a few tokens.

1. One forward under hooks (trace.py), in which every product with weights is cut off from what it was computed from, so that a
   gradient tells what reaches what through additions, norms and views alone.
2. Query, key and value are what the attention function is given, or the operands around a softmax. The linears that they reach
   are their projections; the gradient in a linear's output says which columns, and so how a fused projection is laid out.
   `out` is the first linear that the attention's result reaches.
3. A layer is the innermost module of a numbered list that holds an attention and an FFN, and whose input reaches its output.
4. Of the modules that reach the layer's output, hold none of the attention and are not reached by the layer's input except
   through weights, the heaviest is the FFN. Its entry is the first module on the way that reads what the layer's input reaches.
5. A norm is what it does: blind to the scale of its input, one weight a feature. Over a sub-layer's output and the stream, and
   reaching the layer's output, it is that sub-layer's norm (post-LN); else the first module that reads the stream before the
   FFN is where its residual branches off.
6. A cross-attention's key is not reached by the layer's input. Causal: a layer that is run again with another last token gives
   the same at all tokens before it.
7. Keywords given to a stack and to its attention blocks say whether a context and a prefix arrive. Where none does, a prefix may
   still enter around the block's own softmax.
8. The checks of verify.py decide: an entry that fails one is refused.
"""

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from unipelt.errors import SiteError
from unipelt.inject.architectures import Attention, Stack, entries_for
from unipelt.inject.attention import eager_of
from unipelt.inject.layer_entry import LayerEntry
from unipelt.inject.layer_run import kind_of, layer_forwards
from unipelt.inject.resolve import ResolvedStack, find_stacks
from unipelt.inject.trace import (
    TRACE,
    Attending,
    Call,
    NotFound,
    Trace,
    attention_function,
    example_inputs,
    frozen_eval,
    reached,
    takes_keywords,
)
from unipelt.inject.verify import failed_checks


def entries_of(model: PreTrainedModel, entries: tuple[Stack, ...] | None, search: bool) -> tuple[Stack, ...] | None:
    """The entries to use for a model: those given, None for those of the table, or else those that running it gives."""
    known = entries is not None or not search or entries_for(model.base_model.config) is not None
    return entries if known else discover(model)


def discover(model: PreTrainedModel) -> tuple[Stack, ...]:
    """The entry of a model. Raises SiteError that says what was seen, what was not, and what still works."""
    base: Any = model.base_model
    name = base.config.model_type
    try:
        refuse_untraceable(model)
        inputs = example_inputs(base)
        trace = Trace(base, inputs)
        entries = stacks_of(base, trace)
        refuse_layers_that_did_not_run(model, trace, entries, inputs)
        entries = with_order_of_tokens(model, entries)
        entries = with_keywords(model, inputs, entries)
        entries = with_softmax(model, entries)
        if broken := next(failed_checks(model, entries), None):
            raise NotFound(f"an entry was found, but it is not right ({broken})")
    except NotFound as error:
        raise SiteError(
            f"model_type={name!r} has no entry in the table of architectures, and none was found by running it: {error}. "
            "Give attach(…, stacks=(Stack(…),)), see docs/how-to-new-architecture.md; plain full fine-tuning needs no entry"
        ) from None
    parts = [f"{entry.name} of {entry.layers or 'the base'}.*" for entry in entries]
    if not all(entry.attention.prefix for entry in entries):
        parts.append("no prefix can enter its attention")
    if idle := idle_lists(base, trace):
        parts.append(f"{', '.join(idle)} did not run on {' and '.join(inputs)} alone and stay as they are")
    logging.getLogger("unipelt").warning("%s: found by running it: %s", name, "; ".join(parts))
    return entries


def refuse_untraceable(model: PreTrainedModel) -> None:
    """Raise NotFound for a model that cannot be traced."""
    base = model.base_model
    if any(t.is_meta for t in (*base.parameters(), *base.buffers())):
        raise NotFound("its weights are on the meta device, so it cannot run; load them first")
    if any(
        hasattr(p, "device_mesh") or "FSDP" in type(m).__name__ for m in base.modules() for p in m.parameters(False)
    ):
        raise NotFound("it is sharded over several devices; attach before sharding")
    if any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in base.modules()):
        raise NotFound("a part of it is compiled; attach to the plain model, then compile it")
    if not any(p.is_floating_point() and p.dtype.itemsize > 1 for p in base.parameters()):
        raise NotFound("all its weights are quantised, so gradients cannot be followed")
    if not type(base).__module__.startswith("transformers."):
        raise NotFound(f"{type(base).__name__} is code from outside transformers, which is not traced")


def refuse_layers_that_did_not_run(
    model: PreTrainedModel, trace: Trace, entries: tuple[Stack, ...], inputs: dict[str, Tensor]
) -> None:
    """Raise NotFound where a layer that the entry fits is skipped, such as one that reads images alone."""
    ran = {call.module for call in trace.calls}
    skipped = [layer.path for stack in find_stacks(model, entries) for layer in stack.layers if layer.module not in ran]
    if skipped:
        raise NotFound(f"its layer {skipped[0]} did not run on {' and '.join(inputs)} alone, so nothing is known of it")


def idle_lists(base: nn.Module, trace: Trace) -> list[str]:
    """The outermost lists of layers of which none ran, such as a vision tower's in a forward of text."""
    ran = {call.module for call in trace.calls}
    return [path for path, layers in lists_of(base) if not any(m in ran for m in layers.modules())]


def lists_of(base: nn.Module) -> list[tuple[str, nn.Module]]:
    """The outermost numbered lists of modules."""
    lists: list[tuple[str, nn.Module]] = []
    for path, module in base.named_modules():
        numbers = [name for name, _ in module.named_children()]
        if numbers and all(n.isdigit() for n in numbers) and not any(path.startswith(f"{p}.") for p, _ in lists):
            lists.append((path, module))
    return lists


def stacks_of(base: PreTrainedModel, trace: Trace) -> tuple[Stack, ...]:
    """The layers by the list that they are in, one entry per list."""
    find_softmax_attention(trace)
    if trace.without_linears:
        raise NotFound(f"the attention of {trace.without_linears[0]!r} has queries or keys of no linear module")
    if not trace.attending:
        layers = ", ".join(f"{path}.0" for path, _ in lists_of(base)) or "no numbered list of modules"
        raise NotFound(
            "nothing in it attends: no attention function is called, and no softmax stands between two products "
            f"(its layers: {layers})"
        )
    layer_entries: dict[str, tuple[dict[str, Any], Call]] = {}
    kinds: dict[tuple, dict[str, Any]] = {}
    for attending in trace.attending:
        reasons = []
        for call in numbered(trace, attending):
            if call.path in layer_entries:
                break
            try:
                kind = kind_of(call.module)
                if kind not in kinds:  # layers with the same modules have the same entry
                    kinds[kind] = LayerEntry(trace, call).entry()
                layer_entries[call.path] = kinds[kind], call
                break
            except NotFound as error:
                reasons.append(f"{call.path}: {error}")
        else:
            why = reasons[0] if reasons else "no module of a numbered list holds it"
            raise NotFound(f"no layer was found around its attention {attending.path!r} ({why})")
    lists: dict[str, list[tuple[dict[str, Any], Call]]] = {}
    for path, layer in layer_entries.items():
        lists.setdefault(".".join("*" if part.isdigit() else part for part in path.split(".")[:-1]), []).append(layer)
    return tuple(stack_entry(trace, layers, members) for layers, members in lists.items())


def with_order_of_tokens(model: PreTrainedModel, entries: tuple[Stack, ...]) -> tuple[Stack, ...]:
    """The entries with `causal` as measured, and `name` set from it. Raises NotFound for more than an encoder and a decoder."""
    base: Any = model.base_model
    causal: dict[str, set[bool]] = {entry.layers: set() for entry in entries}
    with frozen_eval(base), torch.no_grad():
        for run in layer_forwards(model, entries):
            causal[run.entry.layers].add(not run.sees_later_tokens())
    named: list[Stack] = []
    for entry in entries:
        if len(causal[entry.layers]) > 1:
            raise NotFound(f"some layers of {entry.layers} see later tokens, and some do not")
        for order in causal[entry.layers]:
            named.append(replace(entry, causal=order, name="decoder" if order or entry.cross else "encoder"))
    if len({entry.name for entry in named}) < len(entries):
        listed = ", ".join(entry.layers for entry in entries)
        raise NotFound(f"it has {len(entries)} lists of layers that attend: {listed}; expected an encoder, a decoder")
    return tuple(sorted(named, key=lambda entry: entry.name == "decoder"))


def with_keywords(model: PreTrainedModel, inputs: dict[str, Tensor], entries: tuple[Stack, ...]) -> tuple[Stack, ...]:
    """The entries with `keywords` and `prefix` set: whether a keyword given to a stack reaches its attention blocks, and one given
    to a block its attention function."""
    base: Any = model.base_model
    arrived: set[nn.Module] = set()
    handed: set[nn.Module] = set()

    def function(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **kwargs: Any
    ) -> Any:
        if kwargs.pop(TRACE, None) is not None:
            arrived.add(module)
        return eager_of(module)(module, query, key, value, attention_mask, **kwargs)

    def give(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple:
        if TRACE in kwargs:
            handed.add(module)
        return args, {**kwargs, TRACE: True}

    stacks = find_stacks(model, entries)
    receivers = {stack.module for stack in stacks}.union(*(blocks_of(stack) for stack in stacks))
    with ExitStack() as hooks:
        for module in receivers:
            if takes_keywords(module):
                hooks.callback(module.register_forward_pre_hook(give, with_kwargs=True).remove)
        try:
            with frozen_eval(base), attention_function(base, function), torch.no_grad():
                base(**inputs)
        except TypeError:
            handed.clear()

    def fitted(stack: ResolvedStack) -> Stack:
        def with_prefix(attention: Attention) -> Attention:
            enters = all(layer.get(attention.module) in arrived for layer in stack.layers)
            return replace(attention, prefix=attention.prefix and enters)

        return stack.entry.with_attentions(with_prefix, keywords=blocks_of(stack) <= handed)

    return tuple(fitted(stack) for stack in stacks)


def blocks_of(stack: ResolvedStack) -> set[nn.Module]:
    """The modules that attend."""
    return {layer.get(attention.module) for _, attention in stack.entry.attentions() for layer in stack.layers}


def with_softmax(model: PreTrainedModel, entries: tuple[Stack, ...]) -> tuple[Stack, ...]:
    """The entries with how attention that calls no function makes its scores, the same in all layers of a stack."""
    base: Any = model.base_model
    if all(attention.prefix for entry in entries for _, attention in entry.attentions()):
        return entries
    softmax_kinds: dict[tuple[str, Attention], set[str | None]] = {}
    with frozen_eval(base), torch.no_grad():
        for run in layer_forwards(model, entries):
            for _, attention in run.entry.attentions():
                if not attention.prefix:
                    softmax_kinds.setdefault((run.entry.layers, attention), set()).add(run.softmax_of(attention))

    def fitted(entry: Stack) -> Stack:
        def with_kind(attention: Attention) -> Attention:
            kinds = softmax_kinds.get((entry.layers, attention), set())
            (softmax,) = kinds if len(kinds) == 1 else {None}
            return replace(attention, softmax=softmax, prefix=attention.prefix or softmax is not None)

        entry = entry.with_attentions(with_kind)
        return replace(entry, keywords=entry.keywords or not entry.attention.prefix)

    return tuple(fitted(entry) for entry in entries)


def numbered(trace: Trace, attending: Attending) -> Iterator[Call]:
    """The calls of modules of numbered lists that hold an attention, innermost first."""
    calls = [c for c in trace.calls if c.holds(attending.time) and c.path.rsplit(".", 1)[-1].isdigit()]
    yield from sorted(calls, key=lambda call: -call.start)


def stack_entry(trace: Trace, layers: str, members: list[tuple[dict[str, Any], Call]]) -> Stack:
    """One entry for all layers of a list, still without a name. Raises NotFound where they have unlike parts."""
    first, call = max(members, key=lambda member: len(member[0]["norms"]))
    for entry, other in members:
        unlike = [name for name in first if name not in ("norms", "ffn_residual") and entry[name] != first[name]]
        if unlike:
            raise NotFound(f"its layers {call.path} and {other.path} differ in {', '.join(unlike)}")
    norms = tuple(dict.fromkeys(norm for entry in (first, *(entry for entry, _ in members)) for norm in entry["norms"]))
    outer = [c for c in trace.calls if c.holds(call.start) and call.path.startswith(f"{c.path}." if c.path else "")]
    owners = [c for c in outer if c.has_mask and not any(c.x is x for x in (*c.args, c.kwargs.get("hidden_states", 0)))]
    owner = max((c.path for c in owners), key=len, default="")
    return Stack(name="", module=owner, layers=layers, causal=False, **first | {"norms": norms})


def find_softmax_attention(trace: Trace) -> None:
    """Append to trace.attending each attention that computes its own softmax: a product of query and key, a softmax, a product
    with the value."""
    linears = [p for p in trace.weighted if p.module is not None]
    gives = [p.gives for p in linears]
    for softmax in trace.softmaxes:
        before = [p for p in trace.products if p.time < softmax.time and len(p.reads) > 1]
        after = [p for p in trace.products if p.time > softmax.time]
        scores = [p for p, hit in zip(before, reached(softmax.reads[0], [p.gives for p in before])) if hit]
        using = next((p for p in after for edge in p.reads if reached(edge, [softmax.gives])[0]), None)
        if not scores or using is None:
            continue
        scores = [p for p in scores if all(any(reached(edge, gives)) for edge in p.reads[:2])] or scores
        query, key = scores[0].reads[:2]
        value = next((edge for edge in using.reads if not reached(edge, [softmax.gives])[0]), None)
        sources = [p for edge in (query, key) for p, hit in zip(linears, reached(edge, gives)) if hit]
        owners = [c for c in trace.calls if c.holds(softmax.time) and all(c.holds(p.time) for p in sources) and c.reads]
        if value is not None and owners and sources:
            trace.attending.append(Attending(owners[-1].path, using.time, query, key, value, using.gives, False))
        else:
            trace.without_linears.append(softmax.path)
    trace.attending.sort(key=lambda attending: attending.time)
