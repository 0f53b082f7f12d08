"""What a file holds goes into what has just been attached: all of it, or the base is plain again."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from unipelt.errors import CheckpointError
from unipelt.inject.attach import detach
from unipelt.inject.state import mixture_state

READ = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""what a tuned parameter is read from; the rest cannot hold one: whole numbers, complex ones, 8 bits"""


def fill(model: PreTrainedModel, values: dict[str, Tensor], place: Path, problem: str | None = None) -> PreTrainedModel:
    """Copy one run's parameters, by path, into an attached model.

    Raises CheckpointError where there is a problem, or they do not fit; nothing is attached then.
    """
    own = dict(mixture_state(model).named_parameters())
    problem = problem or mismatch({name: p[0] for name, p in own.items()}, values)
    if problem:
        detach(model)
        raise CheckpointError(f"{place}: {problem}")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter[0].copy_(values[name])
    return model


def mismatch(own: dict[str, Tensor], values: dict[str, Tensor]) -> str | None:
    """What is wrong with these values for these parameters, in a few words."""
    missing, unknown = sorted(own.keys() - values.keys()), sorted(values.keys() - own.keys())
    if missing:
        return f"has no {missing[0]!r}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
    if unknown:
        return f"holds {unknown[0]!r}, which its mixture does not have"
    for name, parameter in own.items():
        if parameter.shape != values[name].shape:
            return f"{name!r} is {tuple(values[name].shape)}, expected {tuple(parameter.shape)}"
        if values[name].dtype not in READ:
            return f"{name!r} is of {values[name].dtype}, expected one of {', '.join(map(str, READ))}"
    return not_finite({name: value.to(own[name].dtype) for name, value in values.items()})


def not_finite(values: dict[str, Tensor]) -> str | None:
    name = next((name for name, value in values.items() if not value.isfinite().all()), None)
    return name and f"{name!r} holds values that are not finite: its training has diverged; train again"
