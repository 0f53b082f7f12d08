"""The JSON of a checkpoint, read without torch: what a folder says it holds."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import unipelt
from unipelt import spec
from unipelt.errors import CheckpointError, SpecError

FORMAT = 2
CONFIG, TENSORS, CARD = "unipelt.json", "unipelt.safetensors", "README.md"
FOREIGN = "adapter_config.json"  # peft's and AdapterHub's: only to say who reads it

HEAD, BASE = ("policy", "pooling", "modules"), ("name", "model_type", "fingerprint", "values")


@dataclass
class Description:
    """What the JSON of a checkpoint says."""

    mixture: dict[str, Any]
    base: dict[str, Any]
    head: dict[str, Any]
    sha256: str
    """of the safetensors file"""
    task: dict[str, Any] = field(default_factory=dict)
    """name, kind, metric, label names, pair"""
    results: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT
    library: str = unipelt.__version__


def describe(folder: str | os.PathLike) -> Description:
    """Read a checkpoint's JSON. Raises CheckpointError where it is missing, damaged, or of another version."""
    path = Path(folder) / CONFIG
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder}: no {CONFIG} in it; expected a folder that `unipelt train` or unipelt.save wrote{_reader(folder)}"
        ) from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path}: damaged or not readable ({error})") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        got = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise CheckpointError(
            f"{path}: format {got!r}, this version reads format {FORMAT}; install the unipelt that wrote it"
        )
    try:
        description = Description(**data)
        spec.Mixture.from_dict(description.mixture)
        for facts, names in ((description.head, HEAD), (description.base, BASE)):
            for name in names:
                facts[name]
    except (TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: {error} is not as expected") from None
    except SpecError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return description


def _reader(folder: str | os.PathLike) -> str:
    """Which function reads another library's folder."""
    path = Path(folder) / FOREIGN
    if not path.is_file():
        return ""
    peft = '"peft_type"' in path.read_text(encoding="utf-8", errors="replace")
    return (
        f"; this one is {'peft' if peft else 'AdapterHub'}'s: unipelt.load_{'peft' if peft else 'adapterhub'} reads it"
    )
