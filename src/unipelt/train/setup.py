"""A base, ready to be trained: what is attached to it, what its head is, and where it stands."""

from collections.abc import Sequence
from itertools import chain
from math import sqrt
from statistics import fmean, pstdev
from typing import Any

import torch
from transformers import PreTrainedModel

from unipelt import data, spec
from unipelt.checkpoint.bases import declared_pooling
from unipelt.errors import UserError
from unipelt.inject.attach import attach
from unipelt.inject.heads import find_head, output_of
from unipelt.inject.record import trainable_parameters
from unipelt.inject.state import AttachedState, attached_state
from unipelt.train.records import FULL, Request

ORDINARY = 10.0  # largest size of a target, and the inverse of the least spread, that is trained as it stands


def prepare(
    model: PreTrainedModel, methods: Sequence[str], request: Request, seeds: Sequence[Sequence[int]]
) -> list[dict[str, int]]:
    """Attach the methods side by side, one run a seed of each, or make the whole model trainable.

    Returns the trainable numbers of one run by change, for each method.
    """
    if methods[0].strip() == FULL:
        return [{FULL: sum(p.numel() for p in model.requires_grad_(True).parameters())}]
    pooling = declared_pooling(request.model) if request.head == "auto" else request.head
    mixtures = [spec.mixture(method) for method in methods]
    attach(
        model, mixtures, runs=[*map(len, seeds)], seeds=[*chain(*seeds)], head=request.policy, pooling=pooling,
        fresh_head=True, head_modules=head_of(model),
    )  # fmt: skip
    counts = [trainable_parameters(part) for part in attached_state(model).parts]
    for mixture, count in zip(mixtures, counts):
        if not sum(count.values()):
            raise UserError(
                f"--head-policy {request.policy}: {mixture.name!r} then has nothing to train; expected train"
            )
    return counts


def unit_of(model: PreTrainedModel | AttachedState, task: data.Task, train: data.Examples) -> tuple[float, float]:
    """(mean, standard deviation) of a regression's training targets: what the head can be put back into after training.

    Targets of ordinary size, such as STS-B's 0 to 5, stay as they are: so the papers train.
    """
    output, targets = output_of(model), list[Any](train.labels or [])
    if (
        task.kind != "regression"
        or output is None
        or (max(map(abs, targets)) <= ORDINARY and pstdev(targets) >= 1 / ORDINARY)
    ):
        return 0.0, 1.0
    mean = fmean(targets) if output.bias is not None else 0.0
    return mean, sqrt(fmean((target - mean) ** 2 for target in targets)) or 1.0


def head_of(model: PreTrainedModel) -> list[str]:
    """What was not in the base's checkpoint, and what stands outside the base: a head that another task has left there."""
    new, inside = find_head(model), {id(p) for p in model.base_model.parameters()}
    return [
        path
        for path, module in model.named_modules()
        if path in new or any(id(p) not in inside for p in module.parameters(recurse=False))
    ]


def device_of(name: str) -> torch.device:
    """auto: the GPU when there is one. Raises UserError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(
            f"--device {name}: not on this machine; expected auto, cpu"
            + (" or cuda" if torch.cuda.is_available() else "")
        ) from None
    return device
