"""How a prefix enters the attention of a model: by a keyword that its modules hand on, or around the softmax that it takes."""

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from unipelt.inject.architectures import Attention, Stack
from unipelt.inject.layer_run import LayerRun, layer_runs
from unipelt.inject.own_softmax import Watched
from unipelt.inject.resolve import find_stacks, head_shape
from unipelt.inject.trace import KEYWORD, attention_function, kernel_of, prepared, takes_keywords


def with_keywords(model: PreTrainedModel, inputs: dict[str, Tensor], rows: tuple[Stack, ...]) -> tuple[Stack, ...]:
    """The rows with what arrives of keywords that are given to stacks and to attention blocks."""
    base: Any = model.base_model
    arrived: set[int] = set()
    handed: set[int] = set()

    def function(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **kwargs: Any
    ) -> Any:
        if kwargs.pop(KEYWORD, None) is not None:
            arrived.add(id(module))
        return kernel_of(module)(module, query, key, value, attention_mask, **kwargs)

    def at_block(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple:
        if KEYWORD in kwargs:
            handed.add(id(module))
        return args, {**kwargs, KEYWORD: True}

    def at_stack(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple:
        return args, {**kwargs, KEYWORD: True}

    stacks = find_stacks(model, rows)
    blocks = [
        {kind: [layer.get(attention.module) for layer in stack.layers] for kind, attention in stack.attentions()}
        for stack in stacks
    ]
    hooks = [(stack.module, at_stack) for stack in stacks if takes_keywords(stack.module)]
    hooks += [(m, at_block) for every in blocks for found in every.values() for m in found if takes_keywords(m)]
    handles = [m.register_forward_pre_hook(hook, with_kwargs=True) for m, hook in hooks]
    try:
        with prepared(base), attention_function(base, function), torch.no_grad():
            base(**inputs)
    except TypeError:
        handed.clear()
    finally:
        for handle in handles:
            handle.remove()
    fitted = []
    for row, every in zip(rows, blocks):
        keywords = all(id(m) in handed for found in every.values() for m in found)
        enters = {kind: all(id(m) in arrived for m in found) for kind, found in every.items()}
        cross = row.cross and replace(row.cross, prefix=row.cross.prefix and enters["cross"])
        attention = replace(row.attention, prefix=row.attention.prefix and enters["self"])
        fitted.append(replace(row, attention=attention, cross=cross, keywords=keywords))
    return tuple(fitted)


def with_softmax(model: PreTrainedModel, rows: tuple[Stack, ...]) -> tuple[Stack, ...]:
    """The rows with how attention that calls no function makes its scores, the same in all layers of a stack."""
    found: dict[tuple[str, str], set[str | None]] = {}
    base: Any = model.base_model
    with prepared(base), torch.no_grad():
        for run in layer_runs(model, rows) if not all(dispatches(row) for row in rows) else ():
            for kind, attention in run.blocks:
                if not attention.prefix:
                    found.setdefault((run.row.name, kind), set()).add(softmax_of(run, attention))

    def fit(row: Stack, kind: str, attention: Attention) -> Attention:
        kinds = found.get((row.name, kind), set())
        softmax = kinds.pop() if len(kinds) == 1 else None
        return replace(attention, softmax=softmax, prefix=attention.prefix or softmax is not None)

    rows = tuple(
        replace(row, attention=fit(row, "", row.attention), cross=row.cross and fit(row, "cross-", row.cross))
        for row in rows
    )
    return tuple(replace(row, keywords=row.keywords or not row.attention.prefix) for row in rows)


def dispatches(row: Stack) -> bool:
    return row.attention.prefix and (row.cross is None or row.cross.prefix)


def softmax_of(run: LayerRun, attention: Attention) -> str | None:
    """How attention that calls no function makes its scores S of q kᵀ: see Attention.softmax; None where in no such way.

    Where the query is moved by Δ, S must move by s Δ kᵀ exactly, at every key that has a share; and S must not know how many
    keys there are, or a cache would move what a prefix weighs.
    """
    block = run.layer.get(attention.module)
    before, after = run.plain.own.get(block), run.again(after=run.noise(attention, "query")).own.get(block)
    if before is None or after is None:
        return None
    shape = (before.key.shape[1], before.key.shape[-1], cast(Tensor, before.value).shape[-1])
    if tuple(head_shape(run.layer, attention, run.base.config)) != shape:
        return None
    if before.scores is None or after.scores is None:
        return "fused"
    near = {torch.float64: 1e-6, torch.float32: 1e-4}.get(before.scores.dtype, 5e-2)  # GPT-J's √d is a float32
    seen = before.scores > before.scores.amax(dim=-1, keepdim=True) - 1e3
    moved = torch.where(seen, after.scores - before.scores, 0).double()
    by = torch.where(seen, (after.query - before.query) @ before.key.mT, 0).double()
    width = before.query.shape[-1]
    scales = {"scaled": width**-0.5, "plain": 1.0}
    kinds = [
        kind for kind, s in scales.items() if (moved - before.factor * s * by).abs().max() <= near * moved.abs().max()
    ]
    return kinds[0] if kinds and not counts_keys(run, attention, before, near) else None


def counts_keys(run: LayerRun, attention: Attention, before: Watched, near: float) -> bool:
    """Whether the scores of the first layer differ with one token less, as those of MPT's ALiBi do."""
    scores = cast(Tensor, before.scores)
    if run.layer.index > 0 or attention is run.row.cross or scores.shape[-1] != scores.shape[-2]:
        return False
    own = run.with_one_token_less().own.get(run.layer.get(attention.module))
    if own is None or own.scores is None or own.scores.shape[-1] != scores.shape[-1] - 1:
        return False
    whole = scores[..., :-1, :-1]
    seen = whole > whole.amax(dim=-1, keepdim=True) - 1e3
    return not bool(torch.where(seen, own.scores - whole, 0).abs().max() <= 10 * near * whole[seen].abs().max())
