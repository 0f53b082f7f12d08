"""The layers of a base below the lowest change: a forward may take what they give from elsewhere."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from unipelt.errors import SiteError
from unipelt.inject.resolve import find_stacks
from unipelt.inject.state import mixture_state


class Computed(Exception):
    """Ends a forward once the states are there."""


class FrozenLayers:
    """The layers of a model below its lowest change. model: whose dropout before them is off in training too."""

    def __init__(self, model: nn.Module, layers: Sequence[nn.Module]):
        self.layers = list(layers)
        self.dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout)]
        self.before: dict[nn.Module, None] = {}
        """the dropout that a forward runs before these layers or in them"""
        self.tuple_of: dict[int, int] = {}
        """by layer: the length of the tuple that it returns, where it returns one"""

    @contextmanager
    def stopped(self) -> Iterator[list[Tensor]]:
        """Inside the block a forward ends behind these layers; the list gets what the last one gave, `[batch, seq, hidden]`."""
        states: list[Tensor] = []

        def note(number: int, layer: nn.Module, args: tuple, output: Any) -> None:
            if isinstance(output, tuple):
                if any(one is not None for one in output[1:]):
                    raise SiteError("a layer gives more than hidden states")
                self.tuple_of[number] = len(output)
                (output, *_) = output
            if number == len(self.layers) - 1:
                states.append(output)
                raise Computed

        handles = [
            layer.register_forward_hook(lambda *called, number=number: note(number, *called))
            for number, layer in enumerate(self.layers)
        ]
        for dropout in self.dropouts:
            handles.append(dropout.register_forward_hook(lambda module, *called: self.before.setdefault(module)))
        try:
            with suppress(Computed):
                yield states
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def giving(self, states: Float[Tensor, "batch seq hidden"]) -> Iterator[None]:
        """Inside the block these layers compute nothing and give these states."""

        def give(number: int) -> Callable[..., Any]:
            length = self.tuple_of.get(number)
            given = states if length is None else (states, *[None] * (length - 1))
            return lambda *args, **kwargs: given

        before = [vars(layer).get("forward") for layer in self.layers]
        trains = [dropout for dropout in self.before if dropout.training]
        try:
            for dropout in trains:
                dropout.training = False
            for number, layer in enumerate(self.layers):
                layer.forward = give(number)  # type: ignore[method-assign]
            yield
        finally:
            for dropout in trains:
                dropout.training = True
            for layer, forward in zip(self.layers, before):
                if forward is None:
                    vars(layer).pop("forward", None)
                else:
                    layer.forward = forward


def frozen_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers of an attached model below its lowest change; none where it has an encoder and a decoder."""
    tuned = mixture_state(model)
    stacks = find_stacks(model, tuned.options["stacks"])
    if len(stacks) != 1:
        return []
    lowest = min((at.layer or 0 for at in tuned.change_locations()), default=tuned.depth)
    layers = [layer.module for layer in stacks[0].layers if layer.index < lowest]
    return layers if len({id(layer) for layer in layers}) == len(layers) else []
