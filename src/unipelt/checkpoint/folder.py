"""Our own checkpoint: a folder of one JSON that says what it is, one safetensors with one run's parameters, and a card.

Prefixes are folded unless a resumable checkpoint is asked for. Each file is written beside its old one and then put in
its place, so an interrupted save leaves the old checkpoint whole.
"""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor
from transformers import PreTrainedModel

from unipelt import spec
from unipelt.checkpoint.bases import name_classes, portable_name
from unipelt.checkpoint.card import card
from unipelt.checkpoint.description import CARD, CONFIG, TENSORS, Description, describe
from unipelt.checkpoint.disk import resolve, settle, write_whole
from unipelt.checkpoint.fill import fill, not_finite
from unipelt.checkpoint.fingerprint import check_base, fingerprint
from unipelt.errors import CheckpointError
from unipelt.inject.architectures import Stack, rows_for, rows_to_json
from unipelt.inject.attach import attach
from unipelt.inject.fixed_gates import folded
from unipelt.inject.state import attached_state, mixture_state, own_weights


def save(
    model: PreTrainedModel,
    folder: str | os.PathLike,
    *,
    run: int | None = None,
    state: dict[str, Tensor] | None = None,
    base: str | None = None,
    task: dict[str, Any] | None = None,
    results: dict[str, Any] | None = None,
    recipe: dict[str, Any] | None = None,
    resumable: bool = False,
) -> Path:
    """Write one run of an attached model; of several, `run` says which. resumable: keep the prefix MLPs, so that training
    can go on.

    state: parameters of one run by name, to be written instead of those that the model holds. base: the name under which
    the base can be loaded again, its own if none is given.
    """
    if state is not None:
        with mixture_state(model).holding(state):
            return save(model, folder, run=0, base=base, task=task, results=results, recipe=recipe, resumable=resumable)
    tuned, run = attached_state(model).one_run(run)
    if resumable:
        mixture, state = tuned.mixture, {name: p.detach() for name, p in tuned.named_parameters()}
    else:
        mixture, state = folded(tuned)
    tensors = {name: value[run].contiguous().cpu() for name, value in state.items()}
    if problem := not_finite(tensors):
        raise CheckpointError(f"{folder}: nothing was written: {problem}")
    data = save_tensors(tensors, metadata={"format": "pt"})
    with own_weights(attached_state(model)):
        prints = fingerprint(model, tuned.head_modules())
    description = Description(
        mixture=mixture.to_dict(),
        base={"name": base or portable_name(model.config._name_or_path), **prints},
        head={"policy": tuned.options["head"], "pooling": tuned.options["pooling"], "modules": tuned.head_modules()},
        sha256=hashlib.sha256(data).hexdigest(),
        task=task or {},
        results=results or {},
        recipe=recipe or {},
        sites=rows_to_json(tuned.options["sites"]),
    )
    folder = Path(folder)
    try:
        text = json.dumps(asdict(description), indent=1)
    except TypeError as error:
        raise CheckpointError(
            f"{folder}: nothing was written: task, results and recipe must be JSON ({error})"
        ) from None
    write_whole(folder, {TENSORS: data, CONFIG: text.encode(), CARD: card(description, tensors, model).encode()})
    return folder


def load(
    model: PreTrainedModel, folder: str | os.PathLike, *, sites: tuple[Stack, ...] | None = None
) -> PreTrainedModel:
    """Attach what a checkpoint holds to its base, and name its classes. A hub repository id loads like a folder. sites: as
    `attach` takes them.

    Raises CheckpointError for another base, version, key or shape, and for a damaged file; the base is then as it was.
    """
    folder = resolve(folder)
    settle(folder, (TENSORS, CONFIG, CARD))
    description = describe(folder)
    tensors = read_tensors(folder, description)
    check_base(model, description, folder)
    mixture = spec.Mixture.from_dict(description.mixture)
    most = max((value.numel() for value in tensors.values()), default=0)
    for name, change in mixture.named():
        for setting, size in asdict(change.form).items():
            if type(size) is int and size > most:  # before room is made for it
                raise CheckpointError(f"{folder / CONFIG}: {name} has {setting}={size}, more than {TENSORS} holds")
    head = description.head
    attach(
        model,
        mixture,
        head=head["policy"],
        pooling=head["pooling"],
        head_modules=head["modules"],
        sites=sites or rows_for(model.base_model.config) or description.rows(),
    )
    fill(model, tensors, folder / TENSORS)
    labels = description.task.get("labels") or []
    if len(labels) == getattr(model.config, "num_labels", 0):
        name_classes(model, labels)
    return model


def read_tensors(folder: Path, description: Description) -> dict[str, Tensor]:
    path = folder / TENSORS
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
    if hashlib.sha256(data).hexdigest() != description.sha256:
        raise CheckpointError(
            f"{path}: its {len(data)} bytes are not those that {CONFIG} names: truncated, or of another checkpoint"
        )
    try:
        return load_tensors(data)
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error})") from None
