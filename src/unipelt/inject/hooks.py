"""Where changes join a module: one hook a module, which composes that module's changes in tuple order."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unipelt.forms.gate import Scored
from unipelt.forms.low_rank import LowRank
from unipelt.inject.context import Context, ForwardState
from unipelt.spec import Location


class FusedPart:
    """A part of a fused projection: its output has `groups` equal groups, each with parts of these sizes in one order."""

    def __init__(self, groups: int, sizes: Sequence[int], index: int):
        self.groups, self.sizes, self.index = groups, list(sizes), index

    def take(self, y: Tensor) -> Tensor:
        return y.unflatten(-1, (self.groups, -1)).split(self.sizes, dim=-1)[self.index].flatten(-2)

    def add(self, y: Tensor, delta: Tensor) -> Tensor:
        parts = list(y.unflatten(-1, (self.groups, -1)).split(self.sizes, dim=-1))
        parts[self.index] = parts[self.index] + delta.unflatten(-1, (self.groups, -1))
        return torch.cat(parts, dim=-1).flatten(-2)

    def rows(self, weight: Tensor) -> Tensor:
        """This part's rows of the fused weight or bias; a view where there is one group."""
        return weight.unflatten(0, (self.groups, -1)).split(self.sizes, dim=1)[self.index].flatten(0, 1)


class Channels:
    """A convolution's output, whose features are its second dimension."""

    def take(self, y: Tensor) -> Tensor:
        return y.movedim(1, -1)

    def add(self, y: Tensor, delta: Tensor) -> Tensor:
        return y + delta.movedim(-1, 1)


Part = FusedPart | Channels


class BoundChange:
    """w · Δ(reads) of one change at one module. `weight` is a number, or a callable on (h, shares, route)."""

    def __init__(
        self, location: Location, form: nn.Module, weight: float | Callable[..., Tensor], reads: str,
        *, held: str | None = None, source: bool = False, member: int = 0, part: Part | None = None, mixture: int = 0,
    ):  # fmt: skip
        self.location, self.form, self.weight, self.reads = location, form, weight, reads
        self.held, self.source, self.member, self.part, self.mixture = held, source, member, part, mixture

    def of(self, x: Tensor, context: Context) -> Tensor:
        return self.weigh(self.form(x, context.route), x, context)

    def add_to(self, h: Tensor, x: Tensor, context: Context) -> Tensor:
        """h + w Δ(x), in one pass over h where w is a gate; a number or a learned scalar rounds as peft's α/r does"""
        if not isinstance(self.weight, Scored):
            return h + self.of(x, context)
        if isinstance(self.form, LowRank):
            return self.form.onto(h, x, self.gate(x, context), context.route)
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


class ModuleHook:
    """The changes of one module: h ← h + w Δ for each, in tuple order; for `normed` changes LN(s) ← LN(s + w Δ(LN(s))).

    Of mixtures side by side, each changes its own rows.
    """

    def __init__(self, path: str, flow: ForwardState):
        self.path, self.flow = path, flow
        self.deltas: list[BoundChange] = []

    def before(self, module: nn.Module, args: tuple) -> tuple:
        """A pre-hook: the changed representation is the module's input, as the heads are the output projection's."""

        def changed(context: Context, h: Tensor) -> Tensor:
            for delta in self._of(context):
                h = delta.add_to(h, self._held(delta, context, h), context)
            return h

        return (self.flow.context.each(changed, self._rows(args[0])).reshape(args[0].shape), *args[1:])

    def after(self, module: nn.Module, args: tuple, output: Any) -> Any:
        """A forward hook: the changed representation is the module's output."""
        y = output[0] if isinstance(output, tuple) else output
        x = self._rows(args[0]) if args else None

        def change(context: Context, x: Any, y: Tensor) -> Tensor:
            return self._changed(module, x, y, self._of(context), context)

        rows = self._rows(y)
        if x is not None and rows.dim() == 2 and x.dim() == 3 and len(rows) == x.shape[0] * x.shape[1]:
            rows = rows.unflatten(0, x.shape[:2])  # a sparse FFN that gives [batch·seq, d] for [batch, seq, d]
        changed = self.flow.context.each(change, x, rows)
        if changed.shape != y.shape:  # else no view: FSDP warns of layers that return one
            changed = changed.reshape(y.shape)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    def _changed(self, module: nn.Module, x: Any, y: Tensor, deltas: list[BoundChange], context: Context) -> Tensor:
        """The module's output for x after these changes, y being what it is after none."""
        if not deltas:
            return y
        *earlier, delta = deltas
        y = self._changed(module, x, y, earlier, context)
        if delta.reads == "normed sum":
            s = delta.add_to(x, y, context)
            return self._changed(module, s, module.forward(s), earlier, context)
        read = self._held(delta, context, x if delta.reads == "input" else y)
        if delta.part is not None:
            return delta.part.add(y, delta.of(read if delta.reads == "input" else delta.part.take(y), context))
        return delta.add_to(y, read, context)

    def _of(self, context: Context) -> list[BoundChange]:
        return [delta for delta in self.deltas if delta.mixture == context.mixture]

    def _held(self, delta: BoundChange, context: Context, other: Tensor) -> Tensor:
        """What an earlier module of the layer has kept for a change, or, where it asks for nothing kept, the other."""
        if delta.held is None:
            return other
        held = self._rows(self.flow.held[delta.held])
        return held if context.mine is None else held[context.mine]

    def _rows(self, x: Tensor) -> Tensor:
        """OPT flattens its FFN to [batch·seq, d]: back to rows, so that each finds its run and its gate."""
        batch = self.flow.context.batch
        if batch is None or x.dim() != 2 or x.shape[0] == batch or x.shape[0] % batch:
            return x
        return x.unflatten(0, (batch, -1))
