"""Hooks of attention blocks: they read the forward's context, capture the block's input and bring prefixes into its attention."""

from typing import Any

from torch import Tensor, nn

from unipelt.inject.attention import PREFIXES, BoundPrefix, Calls, Kernels
from unipelt.inject.context import KEYWORD, Context, ForwardState
from unipelt.inject.context_hooks import LayerHook
from unipelt.inject.own_softmax import OwnSoftmax


class AttentionHook:
    """Attention hooks: the pre-hook reads the forward's context, captures the block's input and adds its prefixes to the call."""

    def __init__(
        self, attention: nn.Module, forwards: ForwardState, averaged: set[str], captures: str | None,
        kernels: Kernels | None, softmax: str | None = None,
    ):  # fmt: skip
        """captures: the name under which the block's input is captured, if a later module reads it; softmax: of its row."""
        self.forwards, self.captures, self.kernels, self.softmax = forwards, captures, kernels, softmax
        self.own_context = LayerHook(attention, forwards, averaged)
        self.changes: list[BoundPrefix] = []

    def enter(self, attention: nn.Module, args: tuple, kwargs: dict[str, Any]):
        thread = self.forwards.thread
        if KEYWORD in kwargs:
            thread.context = kwargs[KEYWORD]
            kwargs = {name: value for name, value in kwargs.items() if name != KEYWORD}
        elif thread.context is None:
            self.own_context.enter(attention, args, kwargs)
            thread.alone = True
        context = thread.context
        x = args[0] if args else kwargs["hidden_states"]
        if self.captures is not None:
            thread.captured[self.captures] = x
        if self.changes and context is not None and not context.off:
            calls = self._calls(x, context.on(x.device))
            if self.softmax is not None:
                watching = OwnSoftmax(len(x), calls, self.softmax)
                watching.__enter__()
                thread.watching.append((attention, watching))
                return args, kwargs
            if self.kernels is not None:
                self.kernels.wrap()
            kwargs = {**kwargs, PREFIXES: calls}
        return args, kwargs

    def leave(self, attention: nn.Module, args: tuple, output: Any) -> None:
        """Also after a forward that has failed, whose output is None."""
        if self.forwards.thread.watching and self.forwards.thread.watching[-1][0] is attention:
            _, watching = self.forwards.thread.watching.pop()
            watching.__exit__(None, None, None)
            if output is not None:
                watching.refuse_incomplete(type(attention).__name__)
        if self.forwards.thread.alone:
            self.own_context.leave(attention, args, output)

    def _calls(self, x: Tensor, context: Context) -> Calls:
        calls = []
        for part in context.per_mixture or (context,):
            own = x if part.rows is None else x[part.rows]
            calls.append((part.rows, tuple(c.call(own, part) for c in self.changes if c.takes_part(part))))
        return calls
