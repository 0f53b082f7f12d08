"""AdapterDrop: Rücklé et al. 2021, arXiv:2010.11918, §3: a trained model without the changes of its lowest layers."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel

from unipelt.errors import SpecError
from unipelt.inject.compiled import refuse_compiled, reset_dynamo
from unipelt.inject.resolve import find_stacks
from unipelt.inject.state import attached_state


@contextmanager
def dropped(model: PreTrainedModel, layers: int) -> Iterator[PreTrainedModel]:
    """Inside the block no change joins in the lowest `layers` layers of each stack; they cost nothing, forward or backward.

    For inference, or around each step of a training with a number drawn anew: AdapterDrop's robust variant. Backward belongs
    inside the block. What torch.compile made of the model is compiled anew at both ends of it; a model that `compile` has
    compiled runs as it is inside.

    Raises SpecError for a number of layers that the base has not.
    """
    tuned = attached_state(model)
    stacks = find_stacks(model, tuned.parts[0].options["sites"], tuned.runs)
    depth = max(stack.layers[-1].index + 1 for stack in stacks)
    if isinstance(layers, bool) or not isinstance(layers, int) or not 0 <= layers <= depth:
        raise SpecError(f"layers={layers!r}: expected a whole number from 0 to {depth}, the layers of the base")
    refuse_compiled(model)
    low = tuple(layer.path + "." for stack in stacks for layer in stack.layers if layer.index < layers)
    before = tuned.without

    def leave_out(paths: tuple[str, ...]) -> None:
        with tuned.changing(model):
            tuned.without = paths
        reset_dynamo()

    try:
        leave_out(before + low)
        yield model
    finally:
        leave_out(before)
