"""One run's parameters by name: what a mixture must have on a base, and what is wrong with those of a file."""

import torch
from jaxtyping import Shaped
from torch import Tensor
from transformers import PreTrainedModel

from unipelt import spec
from unipelt.inject.architectures import Stack
from unipelt.inject.build import build
from unipelt.inject.discover import entries_of
from unipelt.inject.heads import find_head
from unipelt.inject.hook_points import Base
from unipelt.inject.hooks import BoundChange
from unipelt.inject.resolve import find_stacks
from unipelt.spec.location import HEAD

READ = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""dtypes from which a tuned parameter is read; whole numbers, complex ones and 8 bits cannot hold one"""


def without_values(
    model: PreTrainedModel, mixture: spec.Mixture, head_modules: list[str], stacks: tuple[Stack, ...] | None
) -> tuple[dict[str, Shaped[Tensor, "..."]], list[BoundChange]]:
    """The parameters that one run of a mixture has on a base, and its changes at their modules.

    Both are without values: no memory is taken, whatever a file asks for.
    """
    resolved, modules = find_stacks(model, entries_of(model, stacks, True)), frozenset(find_head(model))
    with torch.device("meta"):
        state = build(mixture, 1, 0, Base(model, resolved, modules, several=False), head_modules=head_modules)
    return {name: parameter[0] for name, parameter in state.named_parameters()}, state.changes


def mismatch(own: dict[str, Shaped[Tensor, "..."]], values: dict[str, Shaped[Tensor, "..."]]) -> str | None:
    """What is wrong with these values for these parameters, in a few words; None: they fit."""
    missing, unknown = sorted(own.keys() - values.keys()), sorted(values.keys() - own.keys())
    if missing:
        return f"has no {missing[0]!r}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
    if unknown:
        return f"holds {unknown[0]!r}, which its mixture does not have"
    for name, parameter in own.items():
        if parameter.shape != values[name].shape:
            labels = "; load a base with as many labels" if name.startswith(f"{HEAD}.") else ""
            return f"{name!r} is {tuple(values[name].shape)}, expected {tuple(parameter.shape)}{labels}"
        if values[name].dtype not in READ:
            return f"{name!r} is of {values[name].dtype}, expected one of {', '.join(map(str, READ))}"
    return not_finite({name: value.to(own[name].dtype) for name, value in values.items()})


def not_finite(values: dict[str, Shaped[Tensor, "..."]]) -> str | None:
    """Which tensor holds values that are not finite, in a few words; None: none does."""
    name = next((name for name, value in values.items() if not value.isfinite().all()), None)
    return name and f"{name!r} holds values that are not finite: its training has diverged; train again"
