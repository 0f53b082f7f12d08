"""Reading tensors that others wrote: nothing that a file names is followed, and no code in it runs."""

from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from unipelt.checkpoint.disk import read_file
from unipelt.checkpoint.header import header_of
from unipelt.errors import CheckpointError


def read_tensors(folder: Path, safetensors: str, pickled: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, else of a pickled one, from which only tensors are taken. Raises CheckpointError."""
    path = next((folder / name for name in (safetensors, pickled) if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder}: neither {safetensors} nor {pickled} in it; expected a saved adapter")
    try:
        data = read_file(path)
        if path.name == safetensors:
            return parse_safetensors(data, path)[0]
        tensors = torch.load(BytesIO(data), map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file raises anything; of a pickle weights_only has run nothing
        first = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
        raise CheckpointError(
            f"{path}: refused: truncated, or holds more than tensors ({first}); ask for a safetensors file"
        ) from None
    if not isinstance(tensors, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in tensors.items()
    ):
        raise CheckpointError(f"{path}: expected tensors by name; got {type(tensors).__name__}")
    for name, value in tensors.items():  # a pickle may hold more kinds than safetensors
        if value.layout != torch.strided or value.is_meta or value.is_quantized or value.is_nested:
            raise CheckpointError(
                f"{path}: {name!r} is sparse, quantised, nested or without values; expected a plain tensor"
            )
        held = value.untyped_storage().nbytes() // value.element_size()
        if value.numel() > held:  # strides of 0 make a huge tensor of a small file
            raise CheckpointError(f"{path}: {name!r} has {value.numel():,} values, of which the file holds {held:,}")
    return tensors


def parse_safetensors(data: bytes, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors in the bytes of a safetensors file, and its header. Raises CheckpointError."""
    try:
        return load_tensors(data), header_of(BytesIO(data))
    except (SafetensorError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise CheckpointError(f"{path}: truncated, damaged or not a safetensors file ({error})") from None
