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


class StopForward(Exception):
    """Ends a forward once the states are there."""


class FrozenLayers:
    """The layers of a model below its lowest change. While `giving`, dropout in and before them is off, in training too."""

    def __init__(self, model: nn.Module, layers: Sequence[nn.Module]):
        self.layers = list(layers)
        self.dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout)]
        self.dropouts_run: dict[nn.Module, None] = {}
        """the dropout that a forward runs before these layers or in them"""
        self.tuple_of: dict[int, int] = {}
        """by layer: the length of the tuple that it returns, where it returns one"""
        self.embeddings: nn.Module | None = None
        """the module outside of the layers whose output is the first layer's input"""
        within = {module for layer in self.layers for module in layer.modules()}
        self.outside = [module for module in model.modules() if module not in within]
        """where that module is looked for, by the first forward"""

    @contextmanager
    def stopped(self) -> Iterator[list[Tensor]]:
        """Inside the block a forward ends after these layers; the list gets what the last one gave, `[batch, seq, hidden]`."""
        states: list[Tensor] = []
        outputs: dict[nn.Module, Any] = {}

        def enter(layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            x = args[0] if args else kwargs.get("hidden_states")
            same = [module for module, output in outputs.items() if output is x]
            self.embeddings, self.outside = same[-1] if same else None, []  # the outermost ends last

        def note(number: int, layer: nn.Module, args: tuple, output: Any) -> None:
            if isinstance(output, tuple):
                if any(extra is not None for extra in output[1:]):
                    raise SiteError("a layer gives more than hidden states")
                self.tuple_of[number] = len(output)
                (output, *_) = output
            if number == len(self.layers) - 1:
                states.append(output)
                raise StopForward

        handles = [
            layer.register_forward_hook(lambda *called, number=number: note(number, *called))
            for number, layer in enumerate(self.layers)
        ]
        if self.outside:
            handles.append(self.layers[0].register_forward_pre_hook(enter, with_kwargs=True))
        for module in self.outside:
            handles.append(module.register_forward_hook(lambda m, _, output: outputs.update({m: output})))
        for dropout in self.dropouts:
            handles.append(dropout.register_forward_hook(lambda module, *called: self.dropouts_run.setdefault(module)))
        try:
            with suppress(StopForward):
                yield states
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def giving(self, states: Float[Tensor, "batch seq hidden"]) -> Iterator[None]:
        """Inside the block these layers, and the embeddings in front of them, compute nothing and give these states."""

        def give(number: int) -> Callable[..., Any]:
            length = self.tuple_of.get(number)
            output = states if length is None else (states, *[None] * (length - 1))
            return lambda *args, **kwargs: output

        skipped = [*self.layers] if self.embeddings is None else [*self.layers, self.embeddings]
        before = [vars(module).get("forward") for module in skipped]
        trains = [dropout for dropout in self.dropouts_run if dropout.training]
        try:
            for dropout in trains:
                dropout.training = False
            for number, layer in enumerate(self.layers):
                layer.forward = give(number)  # type: ignore[method-assign]
            if self.embeddings is not None:
                self.embeddings.forward = lambda *args, **kwargs: states  # type: ignore[method-assign]
            yield
        finally:
            for dropout in trains:
                dropout.training = True
            for module, forward in zip(skipped, before):
                if forward is None:
                    vars(module).pop("forward", None)
                else:
                    module.forward = forward


def frozen_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers of an attached model below its lowest change; none where it has an encoder and a decoder."""
    attached = mixture_state(model)
    stacks = find_stacks(model, attached.options["stacks"])
    if len(stacks) != 1:
        return []
    lowest = min((change.location.layer or 0 for change in attached.changes), default=attached.depth)
    layers = [layer.module for layer in stacks[0].layers if layer.index < lowest]
    return layers if len({id(layer) for layer in layers}) == len(layers) else []
