"""Runs one layer of a model again and again, with changes to what its modules read or give, and shows what comes of them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from unipelt.inject.architectures import Attention, Stack
from unipelt.inject.attention import eager_of
from unipelt.inject.own_softmax import OwnSoftmax, Watched
from unipelt.inject.resolve import Layer, ResolvedStack, find_stacks, head_shape, projection
from unipelt.inject.trace import CANNOT_RUN, attention_function, example_inputs, first_tensor, output_tensor

Edit = Callable[[Tensor], Tensor]


def layer_forwards(model: PreTrainedModel, entries: tuple[Stack, ...]) -> Iterator["LayerForward"]:
    """One layer of each kind of each stack."""
    for stack in find_stacks(model, entries):
        tried: set[tuple] = set()
        for layer in stack.layers:
            kind = kind_of(layer.module)
            if kind not in tried:
                tried.add(kind)
                yield LayerForward(model.base_model, stack, layer)


def kind_of(layer: nn.Module) -> tuple:
    """What layers that have the same entry have in common: their modules and the shapes of their parameters."""
    return tuple((path, type(m), tuple(p.shape for p in m.parameters(False))) for path, m in layer.named_modules())


@dataclass
class ForwardResult:
    """What one run of a layer showed: what modules read and gave, by their path in the layer, and calls of the attention."""

    reads: dict[str, Tensor] = field(default_factory=dict)
    gives: dict[str, Tensor] = field(default_factory=dict)
    attends: dict[nn.Module, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    inline: dict[nn.Module, Watched] = field(default_factory=dict)
    """of attention blocks that compute their own softmax"""


class LayerForward:
    """Runs one layer on what it reads in a forward of the base, with changes to what its modules read or give."""

    def __init__(self, base: Any, stack: ResolvedStack, layer: Layer):
        self.base, self.stack, self.layer, self.entry = base, stack, layer, stack.entry
        self.inputs = example_inputs(base)
        self.call: tuple[tuple, dict[str, Any]] | None = None
        self.has_mask = False
        calls: list[tuple[tuple, dict[str, Any]]] = []

        def keep(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            calls.append((args, kwargs))

        def look(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            masks = [value for name, value in self.inputs.items() if name.endswith("attention_mask")]
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            self.has_mask |= any(a.shape == m.shape and a.dtype == m.dtype for a in tensors for m in masks)

        handles = [
            layer.module.register_forward_pre_hook(keep, with_kwargs=True),
            stack.module.register_forward_pre_hook(look, with_kwargs=True),
        ]
        base_run = self.again()
        for handle in handles:
            handle.remove()
        self.call, self.plain = calls[0], base_run
        with suppress(*CANNOT_RUN):
            self.plain = self.again()
        if self.plain is base_run or not torch.equal(self.plain.gives[""], base_run.gives[""]):
            self.call, self.plain = None, base_run  # it depends on more than its arguments
        largest = base_run.gives[""].abs().max().clamp_min(1e-6)
        self.near = float(largest * {torch.float64: 1e-9, torch.float32: 1e-5}.get(base_run.gives[""].dtype, 2e-2))

    def again(
        self, before: Mapping[str, Edit] | None = None, after: Mapping[str, Edit] | None = None,
        inputs: dict[str, Tensor] | None = None,
    ) -> ForwardResult:  # fmt: skip
        """One run. before: changes to what a module reads; after: to what it gives; by path in the layer. inputs: of the whole base,
        which is run in place of the layer."""
        result = ForwardResult()

        def enter(path: str) -> Any:
            def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
                x = first_tensor(args, kwargs)
                if x is not None and before and path in before:
                    changed = before[path](x)
                    args = tuple(changed if a is x else a for a in args)
                    kwargs, x = {name: changed if a is x else a for name, a in kwargs.items()}, changed
                if x is not None:
                    result.reads.setdefault(path, x.clone())
                return args, kwargs

            return hook

        def leave(path: str) -> Any:
            def hook(module: nn.Module, args: tuple, output: Any) -> Any:
                y = output_tensor(output)
                if y is not None and after and path in after:
                    changed = after[path](y)
                    output = changed if y is output else type(output)(changed if a is y else a for a in output)
                    y = changed
                if y is not None:
                    result.gives.setdefault(path, y.clone())
                return output

            return hook

        def attend(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **kwargs: Any
        ):
            result.attends.setdefault(module, (query, key, value))
            return eager_of(module)(module, query, key, value, attention_mask, **kwargs)

        def watch(block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            x = first_tensor(args, kwargs)
            watching.append(OwnSoftmax(1 if x is None else len(x)))
            watching[-1].__enter__()

        def watched(block: nn.Module, args: tuple, output: Any) -> None:
            mode = watching.pop()
            mode.__exit__(None, None, None)
            if mode.complete:
                computed = result.inline[block] = mode.watched[0]
                result.attends.setdefault(block, (computed.query, computed.key, cast(Tensor, computed.value)))

        watching: list[OwnSoftmax] = []
        with ExitStack() as hooks:
            hooks.enter_context(attention_function(self.base, attend))
            for block in {self.layer.get(attention.module) for _, attention in self.entry.attentions()}:
                hooks.callback(block.register_forward_pre_hook(watch, with_kwargs=True).remove)
                hooks.callback(block.register_forward_hook(watched, always_call=True).remove)
            for path, module in self.layer.module.named_modules():
                for handle in (
                    module.register_forward_pre_hook(enter(path), with_kwargs=True),
                    module.register_forward_hook(leave(path)),
                ):
                    hooks.callback(handle.remove)
            if self.call is None or inputs is not None:
                self.base(**(inputs or self.inputs))
            else:
                self.layer.module(*self.call[0], **self.call[1])
        return result

    def noise(self, attention: Attention, which: str, factor: float = 1.0, token: int | None = None) -> dict[str, Edit]:
        """Something added to a projection's query, key or value, in all tokens or in one."""
        path, _, outputs, fused = projection(self.layer, attention, which, self.base.config)

        def change(y: Tensor) -> Tensor:
            shape = (*y.shape[:-1], outputs)
            added = factor * torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(y)
            if token is not None:
                at_token = torch.zeros_like(added)
                at_token[:, token] = added[:, token]
                added = at_token
            return y + added if fused is None else fused.add(y, added)

        return {path: change}

    def moved(self, a: Tensor | None, b: Tensor | None) -> bool:
        if a is None or b is None or not a.numel():
            return False
        return a.shape != b.shape or float((a - b).abs().max()) > self.near

    def sees_later_tokens(self) -> bool:
        """Whether another last token in the layer's input moves what it gives at earlier ones; of images each part sees all."""
        if self.base.main_input_name == "pixel_values" or self.plain.reads[""].dim() != 3:
            return True
        later = self.again(before={"": last_token_shaken}).gives[""]
        return self.moved(later[:, :-1], self.plain.gives[""][:, :-1])

    def softmax_of(self, attention: Attention) -> str | None:
        """How attention that calls no function makes its scores S of q kᵀ: see Attention.softmax; None where in no such way.

        Where the query is moved by Δ, S must move by s Δ kᵀ exactly, at every key that has a share; and S must not know how many
        keys there are, or a cache would move what a prefix weighs.
        """
        block = self.layer.get(attention.module)
        before, after = self.plain.inline.get(block), self.again(after=self.noise(attention, "query")).inline.get(block)
        if before is None or after is None:
            return None
        shape = (before.key.shape[1], before.key.shape[-1], cast(Tensor, before.value).shape[-1])
        if tuple(head_shape(self.layer, attention, self.base.config)) != shape:
            return None
        if before.scores is None or after.scores is None:
            return "fused"
        near = {torch.float64: 1e-6, torch.float32: 1e-4}.get(before.scores.dtype, 5e-2)  # GPT-J's √d is a float32
        unmasked = before.scores > before.scores.amax(dim=-1, keepdim=True) - 1e3
        moved = torch.where(unmasked, after.scores - before.scores, 0).double()
        by = torch.where(unmasked, (after.query - before.query) @ before.key.mT, 0).double()
        width = before.query.shape[-1]
        scales = {"scaled": width**-0.5, "plain": 1.0}
        kinds = [
            kind
            for kind, s in scales.items()
            if (moved - before.factor * s * by).abs().max() <= near * moved.abs().max()
        ]
        return kinds[0] if kinds and not self.counts_keys(attention, before, near) else None

    def counts_keys(self, attention: Attention, before: Watched, near: float) -> bool:
        """Whether the scores of the first layer differ with one token less, as those of MPT's ALiBi do."""
        scores = cast(Tensor, before.scores)
        if self.layer.index > 0 or attention is self.entry.cross or scores.shape[-1] != scores.shape[-2]:
            return False
        shorter = {name: value[:, :-1] if value.dim() == 2 else value for name, value in self.inputs.items()}
        computed = self.again(inputs=shorter).inline.get(self.layer.get(attention.module))
        if computed is None or computed.scores is None or computed.scores.shape[-1] != scores.shape[-1] - 1:
            return False
        expected = scores[..., :-1, :-1]
        unmasked = expected > expected.amax(dim=-1, keepdim=True) - 1e3
        return not bool(
            torch.where(unmasked, computed.scores - expected, 0).abs().max()
            <= 10 * near * expected[unmasked].abs().max()
        )

    def but_last(self, x: Tensor) -> Tensor:
        """Every token but the last of each row, also of [batch·seq, d]."""
        shape = self.plain.reads[""].shape
        x = x.view(*shape[:-1], -1) if len(shape) == 3 and x.numel() == shape.numel() else x
        return x[:, :-1] if x.dim() == 3 else x[:-1]


def last_token_shaken(x: Tensor) -> Tensor:
    """The same tensor with noise added to the last token of each row."""
    shaken = x.clone()
    last = shaken[:, -1] if shaken.dim() == 3 else shaken[-1]
    last += torch.randn(last.shape, generator=torch.Generator().manual_seed(6)).to(x)
    return shaken
