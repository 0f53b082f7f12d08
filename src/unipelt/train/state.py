"""The state from which a training resumes: one file that is replaced whole, so that a kill at any moment loses nothing."""

import json
import os
import shutil
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import mkdtemp

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unipelt.errors import CheckpointError
from unipelt.train.progress import STATE, Loop


def save_state(folder: Path, tensors: dict[str, Tensor], loop: Loop) -> None:
    """Write tensors, loop and the state of the random generators.

    They are written into a folder of a new name, then put in place; what a kill leaves there, `clear_state` removes.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    beside = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        beside = Path(mkdtemp(prefix=f".{STATE}.", dir=folder))  # safetensors writes temporary files beside its own
        save_file(tensors, beside / STATE, metadata={"facts": json.dumps(asdict(loop))})
        with open(beside / STATE, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(beside / STATE, folder / STATE)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"{folder}: cannot write the training's state ({reason}); the last state is untouched, the same command resumes from it"
        ) from None
    finally:
        if beside is not None:
            shutil.rmtree(beside, ignore_errors=True)


def load_state(folder: Path) -> tuple[dict[str, Tensor], Loop] | None:
    """The last state, with the random generators set to it; None where there is none.

    Raises CheckpointError where the file is damaged.
    """
    path = folder / STATE
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            loop = Loop.from_json((file.metadata() or {})["facts"])
        torch.set_rng_state(tensors.pop("random.cpu"))
        cuda = tensors.pop("random.cuda", None)
        if cuda is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(cuda)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); remove {folder} to start again") from None
    return tensors, loop


def clear_state(folder: Path) -> None:
    """Remove the state and what kills have left of others; for the process that has the folder's lock."""
    (folder / STATE).unlink(missing_ok=True)
    for left in folder.glob(f".{STATE}.*"):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            with suppress(OSError):
                left.unlink()
