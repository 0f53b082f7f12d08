"""One run's parameters by name: what a mixture must have on a base, what is wrong with those of a file, and copying them."""

import torch
from jaxtyping import Shaped
from torch import Tensor
from transformers import PreTrainedModel

from unipelt import spec
from unipelt.errors import CheckpointError
from unipelt.inject.architectures import Stack
from unipelt.inject.attach import detach
from unipelt.inject.build import build
from unipelt.inject.discover import entries_of
from unipelt.inject.heads import find_head
from unipelt.inject.plan import Base
from unipelt.inject.resolve import find_stacks
from unipelt.inject.state import mixture_state

READ = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""dtypes from which a tuned parameter is read; whole numbers, complex ones and 8 bits cannot hold one"""


def fill(model: PreTrainedModel, values: dict[str, Shaped[Tensor, "..."]], what: str) -> PreTrainedModel:
    """Copy one run's parameters, by name, into an attached model. Raises CheckpointError and detaches where they do not fit."""
    own = dict(mixture_state(model).named_parameters())
    if problem := mismatch({name: parameter[0] for name, parameter in own.items()}, values):
        detach(model)
        raise CheckpointError(f"{what}: {problem}")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter[0].copy_(values[name])
    return model


def expected_shapes(
    model: PreTrainedModel, mixture: spec.Mixture, head_modules: list[str], stacks: tuple[Stack, ...] | None
) -> dict[str, Shaped[Tensor, "..."]]:
    """The parameters that one run of a mixture has on a base, without values: no memory is taken, whatever a file asks for."""
    resolved, modules = find_stacks(model, entries_of(model, stacks, True)), frozenset(find_head(model))
    with torch.device("meta"):
        state = build(mixture, 1, 0, Base(model, resolved, modules, several=False), head_modules=head_modules)
    return {name: parameter[0] for name, parameter in state.named_parameters()}


def mismatch(own: dict[str, Shaped[Tensor, "..."]], values: dict[str, Shaped[Tensor, "..."]]) -> str | None:
    """What is wrong with these values for these parameters, in a few words; None: they fit."""
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


def not_finite(values: dict[str, Shaped[Tensor, "..."]]) -> str | None:
    """Which tensor holds values that are not finite, in a few words; None: none does."""
    name = next((name for name, value in values.items() if not value.isfinite().all()), None)
    return name and f"{name!r} holds values that are not finite: its training has diverged; train again"
