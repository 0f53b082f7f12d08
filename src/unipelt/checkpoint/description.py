"""The JSON file that describes a checkpoint, read without torch."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import unipelt
from unipelt import spec
from unipelt.checkpoint.disk import CONFIG, FOREIGN, TENSORS, WEIGHTS, read_json
from unipelt.errors import CheckpointError, SpecError
from unipelt.inject.architectures import ARCHITECTURES, Stack, rows_from_json

FORMAT = 2
FILES = (TENSORS, WEIGHTS)
"""where a checkpoint's tensors may be"""

TYPES: dict[str, Any] = {  # of the values in the JSON; base and head have all of theirs, the others what applies
    "mixture": dict,
    "base": {
        "name": str,
        "model_type": str,
        "fingerprint": str,
        "tokens": int,
        "values": [str],
        "outside": [str],
    },
    "head": {"policy": str, "pooling": str, "modules": [str]},
    "tensors": str,
    "sha256": str,
    "config": {
        "architecture": str,
        "id2label": [str],
        "problem_type": str,
        "generation": dict,
    },
    "task": {"name": str, "kind": str, "metric": str, "labels": [str], "columns": dict, "temperature": float},
    "results": dict,
    "recipe": {"max_length": int},
    "tokenizer": str,
    "library": str,
    "stacks": list,
}


@dataclass
class Description:
    """The content of the JSON file of a checkpoint."""

    mixture: dict[str, Any]
    base: dict[str, Any]
    """name, model_type and fingerprint of the base, and how many tokens are its own"""
    head: dict[str, Any]
    """policy, pooling and the paths of the tuned modules"""
    sha256: str
    """of the tensors: their names, shapes and bytes"""
    tensors: str = TENSORS
    """name of the file that holds them"""
    config: dict[str, Any] = field(default_factory=dict)
    """settings of the task in the model's config: class of the model, class names, problem type and generation settings"""
    task: dict[str, Any] = field(default_factory=dict)
    """name, kind, metric and label names"""
    results: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    tokenizer: str = ""
    """fingerprint of the tokenizer; empty where it is not known"""
    format: int = FORMAT
    library: str = unipelt.__version__
    stacks: list[Any] = field(default_factory=list)
    """the rows of the base's architecture: a load never has to find them"""

    def __post_init__(self):
        for problem in _problems("", vars(self), TYPES):
            raise CheckpointError(problem)
        for name in ("base", "head"):
            for key in TYPES[name].keys() - vars(self)[name].keys():
                raise CheckpointError(f"{name} has no {key!r}")
        self.rows()
        if self.tensors not in FILES:
            raise CheckpointError(f"tensors={self.tensors!r}, expected {' or '.join(FILES)}")
        if self.recipe.get("max_length", 1) < 1:
            raise CheckpointError(f"recipe.max_length={self.recipe['max_length']}, expected a whole number from 1")

    def rows(self) -> tuple[Stack, ...] | None:
        """The rows of the base's architecture. Raises ValueError for what are none."""
        return rows_from_json(self.stacks) if self.stacks else None


def describe(folder: str | os.PathLike) -> Description:
    """Read a checkpoint's JSON. Raises CheckpointError where it is missing, damaged, or of another version."""
    path = Path(folder) / CONFIG
    expected = "a folder that `unipelt train`, unipelt.save or save_pretrained of an attached model wrote"
    if not path.exists():
        expected += _hint(path.parent)
    return parse_description(read_json(path, expected), path)


def parse_description(data: dict[str, Any], path: Path) -> Description:
    """The checked description in a JSON object. Raises CheckpointError."""
    if data.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: format {data.get('format')!r}, this version reads format {FORMAT}; install the unipelt that wrote it"
        )
    try:
        description = Description(**data)
        spec.Mixture.from_dict(description.mixture)
    except (TypeError, ValueError, OverflowError) as error:
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


def _problems(name: str, value: Any, expected: Any) -> Iterator[str]:
    """Each value of another type than expected: a type, a list of one type, or an object with typed values."""
    if isinstance(expected, dict) and isinstance(value, dict):
        for key in expected.keys() & value.keys():
            yield from _problems(f"{name}.{key}".strip("."), value[key], expected[key])
    elif isinstance(expected, list) and isinstance(value, list):
        for one in value:
            yield from _problems(f"{name}[]", one, expected[0])
    else:
        kind = expected if isinstance(expected, type) else type(expected)
        if type(value) is not kind:
            yield f"{name} is of type {type(value).__name__}, expected {kind.__name__}"


def _hint(folder: Path) -> str:
    """Which function reads another library's folder, or which folder inside this one is a run."""
    if not (folder / FOREIGN).is_file():
        inside = sorted(folder.glob(f"*/{CONFIG}"))
        return f"; {inside[0].parent} is one" if inside else ""
    peft = "peft_type" in (folder / FOREIGN).read_text(encoding="utf-8", errors="replace")
    reader = "load_peft" if peft else "load_adapterhub"
    return f"; this one is {'peft' if peft else 'AdapterHub'}'s: unipelt.{reader} reads it"
