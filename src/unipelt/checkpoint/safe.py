"""Reading what others wrote: JSON and tensors under fixed names. Nothing that a file names is followed, and no code in it runs."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from torch import Tensor

from unipelt.errors import CheckpointError


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError where it is missing, damaged or no object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent}: no {path.name} in it; expected {what}") from None
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged or not readable ({error})") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: a {type(data).__name__}, expected an object")
    return data


def read_tensors(folder: Path, safetensors: str, pickled: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, else of a pickled one, from which only tensors are taken."""
    path = next((folder / name for name in (safetensors, pickled) if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder}: neither {safetensors} nor {pickled} in it")
    try:
        if path.name == safetensors:
            return load_tensors(path.read_bytes())
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises anything; of a pickle weights_only has run nothing
        first = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
        raise CheckpointError(
            f"{path}: refused: truncated, or holds more than tensors ({first}); ask for a safetensors file"
        ) from None
    if not isinstance(data, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in data.items()):
        raise CheckpointError(f"{path}: expected tensors by name; got {type(data).__name__}")
    for name, value in data.items():  # a pickle may hold more kinds than safetensors
        if value.layout != torch.strided or value.is_meta or value.is_quantized or value.is_nested:
            raise CheckpointError(
                f"{path}: {name!r} is sparse, quantised, nested or without values; expected a plain tensor"
            )
    return data
