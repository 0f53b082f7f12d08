"""The state from which a training resumes: one file that is replaced whole, so that a kill at any moment loses nothing."""

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import mkdtemp

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unipelt.errors import CheckpointError, UserError
from unipelt.train.records import RunRecord
from unipelt.train.run_folder import STATE, LoopState, damaged_error


def save_state(folder: Path, tensors: dict[str, Tensor], loop: LoopState) -> None:
    """Write tensors, loop and the state of the random generators.

    They are written into a folder of a new name, then put in place; what a kill leaves there, `clear_state` removes.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    new_folder = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        new_folder = Path(mkdtemp(prefix=f".{STATE}.", dir=folder))  # safetensors writes temporary files beside its own
        records = [asdict(record) for record in loop.records]
        metadata = {"loop": json.dumps({"plan_indices": loop.plan_indices, "records": records})}
        save_file(tensors, new_folder / STATE, metadata=metadata)
        with open(new_folder / STATE, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(new_folder / STATE, folder / STATE)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"{folder}: cannot write the training's state ({reason}); the last state is untouched, the same command resumes from it"
        ) from None
    finally:
        if new_folder is not None:
            shutil.rmtree(new_folder, ignore_errors=True)


def restore_state(
    folder: Path, records: Sequence[RunRecord], names: Sequence[str], columns: int
) -> tuple[dict[str, Tensor], LoopState] | None:
    """The last state of the training of these runs; sets the random generators to it. names: of tensors `[run, columns]`.

    None where there is none, or where it is one of other plans, of fewer epochs, say: the next state replaces it.

    Raises CheckpointError where the state is damaged, or is that of another base, tokenizer or method.
    """
    path = folder / STATE
    if not path.exists():
        return None
    tensors, loop = _read(path)
    saved_identity = loop.records[0].identity or {}
    for name, value in (records[0].identity or {}).items():
        if saved_identity.get(name) != value:
            raise CheckpointError(
                f"{folder}: its training began with another {name}; put that back, or remove {folder / STATE} to start again"
            )
    saved, current = ([(run.key, run.recipe, run.examples) for run in runs] for runs in (loop.records, records))
    if saved != current:
        return None
    if any(name not in tensors or tensors[name].shape != (len(loop.plan_indices), columns) for name in names):
        raise CheckpointError(
            f"{folder}: its training's state is of another base or method; remove {folder / STATE} to start again"
        )
    try:
        torch.set_rng_state(tensors.pop("random.cpu"))
        cuda = tensors.pop("random.cuda", None)
        if cuda is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(cuda)
    except (KeyError, TypeError, RuntimeError) as error:
        raise damaged_error(path, error) from None
    return tensors, loop


def _read(path: Path) -> tuple[dict[str, Tensor], LoopState]:
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, LoopState.from_json((file.metadata() or {})["loop"])
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError, UserError) as error:
        raise damaged_error(path, error) from None


def clear_state(folder: Path) -> None:
    """Remove the state and what kills have left of others; for the process that has the folder's lock."""
    (folder / STATE).unlink(missing_ok=True)
    for leftover in folder.glob(f".{STATE}.*"):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            with suppress(OSError):
                leftover.unlink()
