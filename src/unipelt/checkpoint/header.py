"""The header of a safetensors file, read without torch and checked against the file, which may come from others."""

import json
import os
import struct
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

from unipelt.errors import CheckpointError

BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4,
    "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""of a number, by safetensors' name of its type"""
LONGEST = 100_000_000
"""bytes of the longest header that safetensors reads"""


def tensors_header(path: Path) -> dict[str, Any]:
    """By tensor its dtype, shape and data_offsets, and under `__metadata__` texts.

    Raises CheckpointError where there is none, or it says other things of the file than are true.
    """
    try:
        with open(path, "rb") as file:
            return _read(file, os.fstat(file.fileno()).st_size)
    except (OSError, ValueError, struct.error, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged or not readable ({error})") from None


def check_header(data: bytes, path: Path) -> None:
    """Raise CheckpointError where the header of a file of these bytes is not true of them."""
    try:
        _read(BytesIO(data), len(data))
    except (ValueError, struct.error, RecursionError) as error:
        raise CheckpointError(f"{path}: truncated, damaged or not a safetensors file ({error})") from None


def _read(file: BinaryIO, size: int) -> dict[str, Any]:
    (length,) = struct.unpack("<Q", file.read(8))
    header = json.loads(file.read(min(length, LONGEST)), object_pairs_hook=_once)
    if not isinstance(header, dict):
        raise ValueError("its header is not an object")
    places = [_place(name, entry) for name, entry in header.items() if name != "__metadata__"]
    if [*(start for start, _ in sorted(places)), size - 8 - length] != [0, *(end for _, end in sorted(places))]:
        raise ValueError(f"its tensors do not fill its {size - 8 - length} bytes one after another")
    return header


def _place(name: str, entry: Any) -> tuple[int, int]:
    """Where a tensor begins and ends."""
    given: dict[str, Any] = entry if isinstance(entry, dict) else {}
    kind, shape, ends = given.get("dtype"), given.get("shape"), given.get("data_offsets")
    if not _sizes(shape) or not _sizes(ends) or len(ends) != 2:
        raise ValueError(f"its header does not say where {name[:80]!r} is")
    begin, end = ends
    if not isinstance(kind, str) or end - begin != prod(shape) * BYTES.get(kind, -1):
        raise ValueError(f"its header gives {name[:80]!r} {end - begin} bytes for {kind} of shape {shape[:8]}")
    return begin, end


def _sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(one) is int and one >= 0 for one in value)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object in which no name occurs twice. Raises ValueError if one does."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in its header")
    return found
