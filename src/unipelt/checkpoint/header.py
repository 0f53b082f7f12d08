"""The header of a safetensors file, read without torch."""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open

from unipelt.checkpoint.disk import refuse_special
from unipelt.errors import CheckpointError


def tensors_header(path: Path) -> dict[str, Any]:
    """By tensor its dtype, shape and data_offsets, and under `__metadata__` texts.

    Raises CheckpointError where there is none, or where safetensors finds that it says other things of the file than are true.
    """
    try:
        refuse_special(path)
        with safe_open(path, "np"), open(path, "rb") as file:
            return header_of(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged or not readable ({error})") from None


def header_of(file: BinaryIO) -> dict[str, Any]:
    """The header of a file that safetensors has accepted. Raises ValueError for a name that stands twice: safetensors takes one."""
    (length,) = struct.unpack("<Q", file.read(8))
    return json.loads(file.read(length), object_pairs_hook=_refuse_duplicates)


def values_hash(data: bytes) -> str:
    """The SHA-256 of what follows the header in the bytes of a safetensors file."""
    (length,) = struct.unpack_from("<Q", data)
    return hashlib.sha256(data[8 + length :]).hexdigest()


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a name stands twice in its header")
    return fields
