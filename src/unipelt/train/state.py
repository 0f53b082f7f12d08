"""What a training needs to go on from where it was, in one file that is replaced whole: a kill at any moment loses nothing."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unipelt.errors import CheckpointError
from unipelt.train.records import STATE


def save_state(folder: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write tensors, facts and the state of the random generators."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    new = folder / f".{STATE}.new"  # a folder: safetensors writes files of its own names, which a kill leaves there
    try:
        new.mkdir(parents=True, exist_ok=True)
        save_file(tensors, new / STATE, metadata={"facts": json.dumps(facts)})
        with open(new / STATE, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(new / STATE, folder / STATE)
        shutil.rmtree(new)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(new, ignore_errors=True)
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"{folder}: cannot write the training's state ({reason}); the last one is untouched, the same command goes on from it"
        ) from None


def load_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The last state, the random generators put back to it; None where there is none."""
    path = folder / STATE
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            facts = json.loads(file.metadata()["facts"])
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); remove {folder} to start again") from None
    torch.set_rng_state(tensors.pop("random.cpu"))
    cuda = tensors.pop("random.cuda", None)
    if cuda is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda)
    return tensors, facts
