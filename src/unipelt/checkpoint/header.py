"""The header of a safetensors file, read without torch."""

import json
import struct
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from unipelt.errors import CheckpointError


def tensors_header(path: Path) -> dict[str, Any]:
    """By tensor its dtype, shape and data_offsets, and under `__metadata__` texts.

    Raises CheckpointError where there is none, or where safetensors finds that it says other things of the file than are true.
    """
    try:
        with safe_open(path, "np"), open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            return json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged or not readable ({error})") from None
