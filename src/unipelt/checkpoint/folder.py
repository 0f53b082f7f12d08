"""Our own checkpoint: a folder with one JSON that describes it, one safetensors with one run's parameters, and a card.

Prefixes are without their MLPs unless a resumable checkpoint is asked for. The safetensors file repeats the JSON in its header: where a
save was killed between the two, or is under way, what the tensors say of themselves is read.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jaxtyping import Shaped
from safetensors.torch import save as save_tensors
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unipelt import spec
from unipelt.checkpoint.bases import portable_name, vocabulary_size
from unipelt.checkpoint.card import card, card_file
from unipelt.checkpoint.description import Description, Head, describe, parse_description
from unipelt.checkpoint.disk import CONFIG, WEIGHTS, read_file, resolve, write_whole
from unipelt.checkpoint.fill import not_finite
from unipelt.checkpoint.fingerprint import fingerprint, tokenizer_fingerprint
from unipelt.checkpoint.model_config import task_config
from unipelt.checkpoint.safe import metadata_of, parse_safetensors
from unipelt.errors import CheckpointError
from unipelt.inject.added_tokens import added_rows, take_added
from unipelt.inject.architectures import entries_to_json
from unipelt.inject.fixed_gates import with_prefix_tables
from unipelt.inject.state import NAME, MixtureState, attached_state, mixture_state, unmerged_weights


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
    if state is not None:
        with mixture_state(model).with_parameters(state):
            return save(
                model, folder, run=0, base=base, task=task, results=results, recipe=recipe, tokenizer=tokenizer,
                resumable=resumable,
            )  # fmt: skip
    tuned, run = attached_state(model).locate_run(run)
    if resumable:
        mixture, state = tuned.mixture, {name: p.detach() for name, p in tuned.named_parameters()}
    else:
        mixture, state = with_prefix_tables(tuned)
    tensors = {name: value[run].contiguous().cpu() for name, value in state.items()}
    folder = Path(folder)
    known = tokenizer if isinstance(tokenizer, str) else tokenizer_fingerprint(tokenizer) if tokenizer else ""
    description = describe_model(
        model, tuned, mixture, base=base, task=task or {}, results=results or {}, recipe=recipe or {}, tokenizer=known
    )
    added = added_rows(model, description.base["tokens"])
    files = checkpoint_files(folder, model, description, tensors, tensors | added)
    if added and tokenizer and not isinstance(tokenizer, str):
        files = files_of(tokenizer) | files
    write_whole(folder, files)
    return folder


def files_of(*parts: Any) -> dict[str, bytes]:
    """The files that configs or tokenizers write of themselves, by name."""
    with tempfile.TemporaryDirectory() as temporary:
        for part in parts:
            part.save_pretrained(temporary)
        return {path.name: read_file(path) for path in sorted(Path(temporary).iterdir()) if path.is_file()}


def describe_model(
    model: PreTrainedModel, tuned: MixtureState, mixture: spec.Mixture, *, base: str | None = None, **fields: Any
) -> Description:
    """The description of a mixture that is attached to a model, without the hash of its tensors."""
    name, head = base or portable_name(model.config._name_or_path), head_of(tuned)
    with unmerged_weights(attached_state(model)):
        identity = fingerprint(model, head["modules"], name, vocabulary_size(name) if name else None)
    return Description(
        mixture=mixture.to_dict(), base=identity, head=head, sha256="", config=task_config(model),
        stacks=entries_to_json(tuned.options["stacks"]), **fields,
    )  # fmt: skip


def head_of(tuned: MixtureState) -> Head:
    """How the head of an attached mixture is tuned."""
    return {"policy": tuned.options["head"], "pooling": tuned.options["pooling"], "modules": list(tuned.head_modules)}


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
        _, sha256 = metadata_of(save_tensors(stored))
        inside = json.dumps(asdict(replace(description, sha256=sha256)))
        data = save_tensors(stored, metadata={NAME: inside})
        description = replace(description, sha256=hashlib.sha256(data).hexdigest())
        text = json.dumps(asdict(description), indent=1)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: nothing was written: task, results and recipe must be JSON ({error})"
        ) from None
    files = {description.tensors: data, CONFIG: text.encode()}
    return files | card_file(folder, card(description, tensors, model))


@dataclass(frozen=True)
class SavedRun:
    """One run as a folder holds it."""

    folder: Path
    description: Description
    mixture: spec.Mixture
    tensors: dict[str, Shaped[Tensor, "..."]]
    added: dict[str, Shaped[Tensor, "token ..."]]
    """rows of tokens that were added to the base"""


def read_run(folder: str | os.PathLike) -> SavedRun:
    """What a checkpoint's folder, or a hub repository, holds. Nothing is written. Raises CheckpointError."""
    folder = resolve(folder)
    description = describe(folder)
    path = folder / description.tensors
    try:
        data = read_file(path)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
    if hashlib.sha256(data).hexdigest() != description.sha256:
        description = _own_description(data, path)
    tensors = parse_safetensors(data, path)
    if description.tensors == WEIGHTS:  # as transformers' Trainer reads them: the run axis in front
        tensors = {name.removeprefix(f"{NAME}."): value[0] for name, value in tensors.items() if value.dim()}
    added = take_added(tensors)
    return SavedRun(folder, description, spec.Mixture.from_dict(description.mixture), tensors, added)


def _own_description(data: bytes, path: Path) -> Description:
    """The description in the header of a safetensors file, for a folder whose JSON file belongs to another save."""
    texts, sha256 = metadata_of(data)
    try:
        own = json.loads(texts.get(NAME, ""))
    except (ValueError, TypeError, RecursionError):
        own = None
    if not isinstance(own, dict) or own.get("sha256") != sha256 or own.get("tensors") != path.name:
        raise CheckpointError(
            f"{path}: its {len(data)} bytes are not those that {CONFIG} names: truncated, or of another checkpoint"
        )
    return parse_description(own, path)
