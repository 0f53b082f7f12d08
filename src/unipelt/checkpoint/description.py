"""The JSON of a checkpoint, read without torch: what a folder says it holds."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import unipelt
from unipelt import spec
from unipelt.errors import CheckpointError, SpecError
from unipelt.inject.architectures import ARCHITECTURES, Stack, rows_from_json

FORMAT = 2
CONFIG, TENSORS, CARD = "unipelt.json", "unipelt.safetensors", "README.md"
FOREIGN = "adapter_config.json"  # peft's and AdapterHub's: only to say who reads it

KINDS: dict[str, Any] = {  # of what stands in the JSON; base and head have all of it
    "mixture": dict,
    "base": {"name": str, "model_type": str, "fingerprint": str, "values": str},
    "head": {"policy": str, "pooling": str, "modules": [str]},
    "sha256": str,
    "task": {"name": str, "kind": str, "metric": str, "labels": [str], "columns": dict},
    "results": dict,
    "recipe": {"max_length": int},
    "library": str,
    "sites": list,
}


@dataclass
class Description:
    """What the JSON of a checkpoint says."""

    mixture: dict[str, Any]
    base: dict[str, Any]
    head: dict[str, Any]
    sha256: str
    """of the safetensors file"""
    task: dict[str, Any] = field(default_factory=dict)
    """kind, name, metric, label names, columns"""
    results: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT
    library: str = unipelt.__version__
    sites: list[Any] = field(default_factory=list)
    """the rows of the base's architecture: a load never has to find them"""

    def __post_init__(self):
        for problem in _problems("", vars(self), KINDS):
            raise CheckpointError(problem)
        for name in ("base", "head"):
            for key in KINDS[name].keys() - vars(self)[name].keys():
                raise CheckpointError(f"{name} has no {key!r}")
        self.rows()
        if self.recipe.get("max_length", 1) < 1:
            raise CheckpointError(f"recipe.max_length={self.recipe['max_length']}, expected a whole number from 1")

    def rows(self) -> tuple[Stack, ...] | None:
        """The rows of the base's architecture. Raises ValueError for what are none."""
        return rows_from_json(self.sites) if self.sites else None


def describe(folder: str | os.PathLike) -> Description:
    """Read a checkpoint's JSON. Raises CheckpointError where it is missing, damaged, or of another version."""
    path = Path(folder) / CONFIG
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder}: no {CONFIG} in it; expected a folder that `unipelt train` or unipelt.save wrote{_reader(folder)}"
        ) from None
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged or not readable ({error})") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        got = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise CheckpointError(
            f"{path}: format {got!r}, this version reads format {FORMAT}; install the unipelt that wrote it"
        )
    try:
        description = Description(**data)
        spec.Mixture.from_dict(description.mixture)
        [float(value) for value in description.base["values"].split()]
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error} is not as expected") from None
    except (SpecError, CheckpointError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    return description


def equations(mixture: spec.Mixture, model_type: str) -> dict[str, str]:
    """The equation of each change, by its name, as a base of this type computes it."""
    stacks = ARCHITECTURES.get(model_type)
    pre_norm = None if stacks is None else stacks[0].ffn_norm is None
    return {
        name: spec.equation(change.form, change.sites[0], change.reads, change.weight, pre_norm)
        for name, change in mixture.named()
    }


def _problems(place: str, value: Any, kind: Any) -> Iterator[str]:
    """Each value that is not of its kind: a type, a list of one, or an object with such values where it has them."""
    if isinstance(kind, dict) and isinstance(value, dict):
        for key in kind.keys() & value.keys():
            yield from _problems(f"{place}.{key}".strip("."), value[key], kind[key])
    elif isinstance(kind, list) and isinstance(value, list):
        for one in value:
            yield from _problems(f"{place}[]", one, kind[0])
    else:
        expected = kind if isinstance(kind, type) else type(kind)
        if type(value) is not expected:
            yield f"{place} is of type {type(value).__name__}, expected {expected.__name__}"


def _reader(folder: str | os.PathLike) -> str:
    """Which function reads another library's folder, or which folder inside this one is a run."""
    path = Path(folder) / FOREIGN
    if not path.is_file():
        inside = sorted(Path(folder).glob(f"*/{CONFIG}"))
        return f"; {inside[0].parent} is one" if inside else ""
    peft = '"peft_type"' in path.read_text(encoding="utf-8", errors="replace")
    return (
        f"; this one is {'peft' if peft else 'AdapterHub'}'s: unipelt.load_{'peft' if peft else 'adapterhub'} reads it"
    )
