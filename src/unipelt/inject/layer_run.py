"""Runs one layer of a model again and again, with changes to what its modules read or give, and shows what comes of them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from unipelt.inject.architectures import Attention, Stack
from unipelt.inject.own_softmax import OwnSoftmax, Watched
from unipelt.inject.resolve import Layer, ResolvedStack, find_stacks, projection
from unipelt.inject.trace import attention_function, example_inputs, first_tensor, kernel_of, output_tensor

Change = Callable[[Tensor], Tensor]


def layer_runs(model: PreTrainedModel, rows: tuple[Stack, ...]) -> Iterator["LayerRun"]:
    """One layer of each kind of each stack."""
    for stack in find_stacks(model, rows):
        tried: set[tuple] = set()
        for layer in stack.layers:
            kind = kind_of(layer.module)
            if kind not in tried:
                tried.add(kind)
                yield LayerRun(model.base_model, stack, layer)


def kind_of(layer: nn.Module) -> tuple:
    """What layers that have the same row have in common: their modules and the shapes of their parameters."""
    return tuple((path, type(m), tuple(p.shape for p in m.parameters(False))) for path, m in layer.named_modules())


@dataclass
class Seen:
    """What one run of a layer showed: what modules read and gave, by their path in the layer, and calls of the attention."""

    reads: dict[str, Tensor] = field(default_factory=dict)
    gives: dict[str, Tensor] = field(default_factory=dict)
    attends: dict[nn.Module, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    own: dict[nn.Module, Watched] = field(default_factory=dict)
    """of attention that calls no function"""


class LayerRun:
    """Runs one layer on what it reads in a forward of the base, with changes to what its modules read or give."""

    def __init__(self, base: Any, stack: ResolvedStack, layer: Layer):
        self.base, self.stack, self.layer, self.row = base, stack, layer, stack.row
        self.inputs = example_inputs(base)
        self.blocks = [("", stack.row.attention), *([("cross-", stack.row.cross)] if stack.row.cross else [])]
        self.call: tuple[tuple, dict[str, Any]] | None = None
        self.has_mask = False
        calls: list[tuple[tuple, dict[str, Any]]] = []

        def keep(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            calls.append((args, kwargs))

        def look(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            masks = [value for name, value in self.inputs.items() if name.endswith("attention_mask")]
            given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            self.has_mask |= any(a.shape == m.shape and a.dtype == m.dtype for a in given for m in masks)

        handles = [
            layer.module.register_forward_pre_hook(keep, with_kwargs=True),
            stack.module.register_forward_pre_hook(look, with_kwargs=True),
        ]
        whole = self.again()
        for handle in handles:
            handle.remove()
        self.call = calls[0]
        self.plain = self.run_alone() or whole
        same = torch.equal(self.plain.gives[""], whole.gives[""])
        if not same:  # it depends on more than its arguments
            self.call, self.plain = None, whole
        largest = whole.gives[""].abs().max().clamp_min(1e-6)
        self.near = float(largest * {torch.float64: 1e-9, torch.float32: 1e-5}.get(whole.gives[""].dtype, 2e-2))

    def run_alone(self) -> Seen | None:
        try:
            return self.again()
        except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError):
            self.call = None
            return None

    def with_one_token_less(self) -> Seen:
        """A forward of the whole base without the last token of each row."""
        call, inputs = self.call, self.inputs
        try:
            self.call, self.inputs = None, {name: t[:, :-1] if t.dim() == 2 else t for name, t in inputs.items()}
            return self.again()
        finally:
            self.call, self.inputs = call, inputs

    def again(self, before: Mapping[str, Change] | None = None, after: Mapping[str, Change] | None = None) -> Seen:
        """One run. before: changes to what a module reads; after: to what it gives; by path in the layer."""
        seen = Seen()

        def enter(path: str) -> Any:
            def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
                x = first_tensor(args, kwargs)
                if x is not None and before and path in before:
                    changed = before[path](x)
                    args = tuple(changed if a is x else a for a in args)
                    kwargs, x = {name: changed if a is x else a for name, a in kwargs.items()}, changed
                if x is not None:
                    seen.reads.setdefault(path, x.clone())
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
                    seen.gives.setdefault(path, y.clone())
                return output

            return hook

        def attend(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **kwargs: Any
        ):
            seen.attends.setdefault(module, (query, key, value))
            return kernel_of(module)(module, query, key, value, attention_mask, **kwargs)

        def watch(block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            x = first_tensor(args, kwargs)
            watching.append(OwnSoftmax(1 if x is None else len(x)))
            watching[-1].__enter__()

        def watched(block: nn.Module, args: tuple, output: Any) -> None:
            mode = watching.pop()
            mode.__exit__(None, None, None)
            if mode.complete:
                own = seen.own[block] = mode.watched[0]
                seen.attends.setdefault(block, (own.query, own.key, cast(Tensor, own.value)))

        watching: list[OwnSoftmax] = []
        with ExitStack() as hooks:
            hooks.enter_context(attention_function(self.base, attend))
            for block in {self.layer.get(attention.module) for _, attention in self.blocks}:
                hooks.callback(block.register_forward_pre_hook(watch, with_kwargs=True).remove)
                hooks.callback(block.register_forward_hook(watched, always_call=True).remove)
            for path, module in self.layer.module.named_modules():
                for handle in (
                    module.register_forward_pre_hook(enter(path), with_kwargs=True),
                    module.register_forward_hook(leave(path)),
                ):
                    hooks.callback(handle.remove)
            if self.call is None:
                self.base(**self.inputs)
            else:
                self.layer.module(*self.call[0], **self.call[1])
        return seen

    def noise(
        self, attention: Attention, part: str, factor: float = 1.0, token: int | None = None
    ) -> dict[str, Change]:
        """Something added to a projection's query, key or value, in all tokens or in one."""
        path, _, outputs, fused = projection(self.layer, attention, part, self.base.config)

        def change(y: Tensor) -> Tensor:
            shape = (*y.shape[:-1], outputs)
            added = factor * torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(y)
            if token is not None:
                one = torch.zeros_like(added)
                one[:, token] = added[:, token]
                added = one
            return y + added if fused is None else fused.add(y, added)

        return {path: change}

    def moved(self, a: Tensor | None, b: Tensor | None) -> bool:
        if a is None or b is None or not a.numel():
            return False
        return a.shape != b.shape or float((a - b).abs().max()) > self.near

    def but_last(self, x: Tensor) -> Tensor:
        """Every token but the last of each row, also of [batch·seq, d]."""
        shape = self.plain.reads[""].shape
        x = x.view(*shape[:-1], -1) if len(shape) == 3 and x.numel() == shape.numel() else x
        return x[:, :-1] if x.dim() == 3 else x[:-1]
