"""One forward of a model, with or without gradients."""

from contextlib import nullcontext
from functools import cache
from inspect import signature

import torch
from torch import Tensor
from transformers import PreTrainedModel

from unipelt.inject.frozen import FrozenLayers
from unipelt.inject.state import NAME, prompt
from unipelt.tasks.batches import POSITIONS, PROMPT
from unipelt.tasks.language_model import at_positions
from unipelt.train.precision import autocast

STATES = "frozen_states"  # of a batch's inputs: what its frozen layers give, `[batch, seq, hidden]`
CPU_ROWS = 32  # a forward, without gradients: more do not fit into a CPU's caches
GPU_TOKENS, GPU_ROWS = 65_536, 512  # a forward on a GPU: so many tokens, and so many rows at least
LEAST_ROWS = 8  # of each run


def rows_each(device: torch.device, runs: int, longest: int) -> int:
    """How many rows of each run a forward without gradients takes. longest: tokens of the longest."""
    whole = CPU_ROWS if device.type == "cpu" else max(GPU_ROWS, GPU_TOKENS // longest)
    return max(LEAST_ROWS, whole // runs)


def logits_of(
    model: PreTrainedModel, inputs: dict[str, Tensor], precision: str = "auto", frozen: FrozenLayers | None = None
) -> Tensor:
    """Logits in float32 at least; nothing is kept for a next token, which a decoder would copy all keys and values for.

    Inputs under POSITIONS, PROMPT and STATES are no arguments of the model: where logits are read, what was asked, and what the
    frozen layers give.
    """
    uncached = {"use_cache": False} if _can_cache(type(model)) else {}  # type: ignore[arg-type]  # a class is hashable
    positions, mask, states = (inputs.get(name) for name in (POSITIONS, PROMPT, STATES))
    inputs = {name: value for name, value in inputs.items() if name not in (POSITIONS, PROMPT, STATES)}
    asked = nullcontext() if mask is None or not hasattr(model, NAME) else prompt(model, mask)
    read = nullcontext() if positions is None else at_positions(model, positions)
    begun = nullcontext() if states is None or frozen is None else frozen.giving(states)
    with autocast(model.device, precision), asked, read, begun:
        logits = model(**inputs, **uncached).logits
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@cache
def _can_cache(kind: type[PreTrainedModel]) -> bool:
    return "use_cache" in signature(kind.forward).parameters
