"""Our own checkpoint: a folder with one safetensors file, whose header describes the run in it, and a card.

Prefixes are without their MLPs unless a resumable checkpoint is asked for. As description and tensors are one file, a save that is killed
leaves the old run or the new one.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save as save_tensors
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unipelt import spec
from unipelt.checkpoint.bases import portable_name, vocabulary_size
from unipelt.checkpoint.card import card, card_file
from unipelt.checkpoint.description import KEY, Description, Head, TaskConfig
from unipelt.checkpoint.disk import TENSORS, read_file, write_whole
from unipelt.checkpoint.fingerprint import fingerprint, tokenizer_fingerprint
from unipelt.checkpoint.header import values_hash
from unipelt.errors import CheckpointError
from unipelt.inject.added_tokens import added_rows
from unipelt.inject.architectures import entries_to_json
from unipelt.inject.fixed_gates import with_prefix_tables
from unipelt.inject.state import MixtureState, attached_state, mixture_state, unmerged_weights


def save(
    model: PreTrainedModel,
    folder: str | os.PathLike,
    *,
    run: int | None = None,
    state: dict[str, Tensor] | None = None,
    base: str | None = None,
    task: Mapping[str, Any] | None = None,
    results: Mapping[str, Any] | None = None,
    recipe: Mapping[str, Any] | None = None,
    tokenizer: PreTrainedTokenizerBase | str | None = None,
    resumable: bool = False,
) -> Path:
    """Write one run of an attached model; of several, `run` says which.

    state: parameters of one run by name, to be written instead of those that the model holds. base: the name under which
    the base can be loaded again, its own if none is given. tokenizer: that of the training, or its fingerprint, so that no
    other is taken later; where tokens were added to it, its files are written too. Rows of added tokens in the embeddings
    are kept with the run, where the base's own config says how many tokens it has. resumable: keep the MLPs of
    prefixes, so that training can go on. A README.md that a person wrote or edited is kept. Raises CheckpointError where
    the run cannot be written.
    """
    parameter_context = nullcontext() if state is None else mixture_state(model).with_parameters(state)
    with parameter_context:
        attached, run = attached_state(model).locate_run(run if state is None else 0)
        if resumable:
            mixture, values = attached.mixture, {name: p.detach() for name, p in attached.named_parameters()}
        else:
            mixture, values = with_prefix_tables(attached)
        tensors = {name: value[run].contiguous().cpu() for name, value in values.items()}
        known = tokenizer if isinstance(tokenizer, str) else tokenizer_fingerprint(tokenizer) if tokenizer else ""
        description = describe_model(
            model, attached, mixture, base=base, task=task or {}, results=results or {}, recipe=recipe or {},
            tokenizer=known,
        )  # fmt: skip
        added = added_rows(model, description.base["tokens"])
        files = checkpoint_files(Path(folder), model, description, tensors, tensors | added)
    if added and tokenizer and not isinstance(tokenizer, str):
        files = files_of(tokenizer) | files
    write_whole(Path(folder), files)
    return Path(folder)


def files_of(*parts: Any) -> dict[str, bytes]:
    """The files that configs or tokenizers write of themselves, by name."""
    with tempfile.TemporaryDirectory() as temporary:
        for part in parts:
            part.save_pretrained(temporary)
        return {path.name: read_file(path) for path in sorted(Path(temporary).iterdir()) if path.is_file()}


def describe_model(
    model: PreTrainedModel, state: MixtureState, mixture: spec.Mixture, *, base: str | None = None, **fields: Any
) -> Description:
    """The description of a mixture that is attached to a model, without the hash of its tensors."""
    name, head = base or portable_name(model.config._name_or_path), head_of(state)
    with unmerged_weights(attached_state(model)):
        identity = fingerprint(model, head["modules"], name, vocabulary_size(name) if name else None)
    return Description(
        mixture=mixture.to_dict(), base=identity, head=head, sha256="", config=task_config(model),
        stacks=entries_to_json(state.options["stacks"]), **fields,
    )  # fmt: skip


def task_config(model: PreTrainedModel) -> TaskConfig:
    """The model's class, class names, problem type and generation settings, as JSON."""
    config = model.config
    task_settings: TaskConfig = {"architecture": type(model).__name__}
    names = getattr(config, "id2label", None) or {}
    if names and sorted(names) == list(range(len(names))):
        task_settings["id2label"] = [str(names[index]) for index in range(len(names))]
    if problem := getattr(config, "problem_type", None):
        task_settings["problem_type"] = problem
    if model.can_generate() and getattr(model, "generation_config", None) is not None:
        settings = model.generation_config.to_diff_dict()
        settings.pop("transformers_version", None)
        task_settings["generation"] = json.loads(json.dumps(settings, default=lambda _: None))
    return task_settings


def head_of(state: MixtureState) -> Head:
    """How the head of an attached mixture is tuned."""
    return {"policy": state.options["head"], "pooling": state.options["pooling"], "modules": list(state.head_modules)}


def checkpoint_files(
    folder: Path,
    model: PreTrainedModel,
    description: Description,
    tensors: dict[str, Tensor],
    stored: dict[str, Tensor],
) -> dict[str, bytes]:
    """The files of a checkpoint by name. tensors: of one run; stored: as the file has them.

    Raises CheckpointError for what could not be read again.
    """
    if problem := not_finite(tensors):
        raise CheckpointError(f"{folder}: nothing was written: {problem}")
    try:
        description.sha256 = values_hash(save_tensors(stored))
        data = save_tensors(stored, metadata={KEY: json.dumps(asdict(description))})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: nothing was written: task, results, recipe must be JSON ({error})") from None
    return {TENSORS: data} | card_file(folder, card(description, tensors, model))


def not_finite(values: dict[str, Tensor]) -> str | None:
    """Which tensor holds values that are not finite, in a few words; None: none does."""
    name = next((name for name, value in values.items() if not value.isfinite().all()), None)
    return name and f"{name!r} holds values that are not finite: its training has diverged; train again"
