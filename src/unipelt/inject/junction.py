"""Where changes join a module: one hook a module, which composes that module's changes in tuple order."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from unipelt.forms.gate import Gate, GroupGate
from unipelt.inject.flow import Context, Flow


class Blocks:
    """A part of a fused projection whose parts lie one behind the other: GPT-2, Phi-3, ModernBERT."""

    def __init__(self, sizes: tuple[int, int, int], index: int):
        self.sizes, self.index = sizes, index

    def take(self, y: Tensor) -> Tensor:
        return y.split(self.sizes, dim=-1)[self.index]

    def add(self, y: Tensor, delta: Tensor) -> Tensor:
        parts = list(y.split(self.sizes, dim=-1))
        parts[self.index] = parts[self.index] + delta
        return torch.cat(parts, dim=-1)

    def rows(self, weight: Tensor) -> Tensor:
        """This part's rows of the fused weight or bias, as a view."""
        return weight.split(self.sizes, dim=0)[self.index]


class Interleaved:
    """A part of a fused projection whose parts alternate head by head: GPT-NeoX."""

    def __init__(self, heads: int, index: int):
        self.heads, self.index = heads, index

    def take(self, y: Tensor) -> Tensor:
        return y.unflatten(-1, (self.heads, 3, -1))[..., self.index, :].flatten(-2)

    def add(self, y: Tensor, delta: Tensor) -> Tensor:
        parts = list(y.unflatten(-1, (self.heads, 3, -1)).unbind(dim=-2))
        parts[self.index] = parts[self.index] + delta.unflatten(-1, (self.heads, -1))
        return torch.stack(parts, dim=-2).flatten(-3)

    def rows(self, weight: Tensor) -> Tensor:
        return weight.unflatten(0, (self.heads, 3, -1))[:, self.index].flatten(0, 1)


class Channels:
    """A convolution's output, whose features are its second dimension."""

    def take(self, y: Tensor) -> Tensor:
        return y.movedim(1, -1)

    def add(self, y: Tensor, delta: Tensor) -> Tensor:
        return y + delta.movedim(-1, 1)


Part = Blocks | Interleaved | Channels


class Delta:
    """w · Δ(reads) of one change at one module. `weight` is a number, or a callable on (h, real tokens, route)."""

    def __init__(
        self, name: str, form: nn.Module, weight: float | Callable[..., Tensor], reads: str,
        *, held: str | None = None, source: bool = False, member: int = 0, part: Part | None = None,
    ):  # fmt: skip
        self.name, self.form, self.weight, self.reads = name, form, weight, reads
        self.held, self.source, self.member, self.part = held, source, member, part

    def of(self, x: Tensor, context: Context) -> Tensor:
        return self.weigh(self.form(x, context.route), x, context)

    def add_to(self, h: Tensor, x: Tensor, context: Context) -> Tensor:
        """h + w Δ(x), in one pass over h where w is a gate; a number or a learned scalar rounds as peft's α/r does"""
        if not isinstance(self.weight, Gate | GroupGate):
            return h + self.of(x, context)
        delta = self.form(x, context.route)
        return torch.addcmul(h, delta, self.gate(x, context).to(delta.dtype))

    def weigh(self, delta: Tensor, x: Tensor, context: Context) -> Tensor:
        if not callable(self.weight):
            return delta if self.weight == 1 else delta * self.weight
        return delta * self.gate(x, context).to(delta.dtype)

    def gate(self, x: Tensor, context: Context) -> Tensor:
        """The weight of each row or token, `[batch, 1 or seq, 1]`."""
        value = self.weight(x, context.source if self.source else context.real, context.route)  # type: ignore[operator]
        return value[..., self.member : self.member + 1]


class Junction:
    """The changes of one module: h ← h + w Δ for each, in tuple order; for `normed` changes LN(s) ← LN(s + w Δ(LN(s)))."""

    def __init__(self, path: str, flow: Flow):
        self.path, self.flow = path, flow
        self.deltas: list[Delta] = []

    def before(self, module: nn.Module, args: tuple) -> tuple:
        """A pre-hook: the changed representation is the module's input, as the heads are the output projection's."""
        h = self._rows(args[0])
        for delta in self.deltas:
            x = h if delta.held is None else self._rows(self.flow.held[delta.held])
            h = delta.add_to(h, x, self.flow.context)
        return (h.reshape(args[0].shape), *args[1:])

    def after(self, module: nn.Module, args: tuple, output: Any) -> Any:
        """A forward hook: the changed representation is the module's output."""
        y = output[0] if isinstance(output, tuple) else output
        x = self._rows(args[0]) if args else None
        changed = self._changed(module, x, self._rows(y), len(self.deltas))
        if changed.shape != y.shape:  # else no view: FSDP warns of layers that return one
            changed = changed.reshape(y.shape)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    def _changed(self, module: nn.Module, x: Any, y: Tensor, count: int) -> Tensor:
        """The module's output for x after its first `count` changes, y being what it is after none."""
        if count == 0:
            return y
        y, delta, context = self._changed(module, x, y, count - 1), self.deltas[count - 1], self.flow.context
        if delta.reads == "normed sum":
            s = delta.add_to(x, y, context)
            return self._changed(module, s, module.forward(s), count - 1)
        if delta.held is not None:
            return delta.add_to(y, self._rows(self.flow.held[delta.held]), context)
        if delta.part is not None:
            return delta.part.add(y, delta.of(x if delta.reads == "input" else delta.part.take(y), context))
        return delta.add_to(y, x if delta.reads == "input" else y, context)

    def _rows(self, x: Tensor) -> Tensor:
        """OPT flattens its FFN to [batch·seq, d]: back to rows, so that each finds its run and its gate."""
        batch = self.flow.context.batch
        if batch is None or x.dim() != 2 or x.shape[0] == batch or x.shape[0] % batch:
            return x
        return x.unflatten(0, (batch, -1))
