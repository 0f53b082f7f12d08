"""What a checkpoint says of itself: JSON in the header of its file of tensors, read without torch."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict, get_type_hints

import unipelt
from unipelt import spec
from unipelt.checkpoint.disk import ADAPTER_CONFIG, TENSORS
from unipelt.checkpoint.header import tensors_header
from unipelt.checkpoint.json_types import check_fields
from unipelt.errors import CheckpointError, SpecError
from unipelt.inject.architectures import ARCHITECTURES, Stack, entries_from_json

FORMAT = 4
KEY = "unipelt"
"""of the JSON among the texts of the header"""

ProblemType = Literal["regression", "single_label_classification", "multi_label_classification"]


class BaseIdentity(TypedDict):
    """What tells a base from others: see `unipelt.checkpoint.fingerprint`."""

    name: str
    """under which it can be loaded again; empty: not known"""
    model_type: str
    fingerprint: str
    """of the names and shapes of its tensors"""
    tokens: int
    """that are its own"""
    values: list[str]
    """sums over each tensor of the base model"""
    outside: list[str]
    """the same, with the name, of tensors between the base model and the logits"""


class Head(TypedDict):
    """How the head was tuned: `head` and `pooling` as `attach` takes them, and the paths of its modules."""

    policy: str
    pooling: str
    modules: list[str]


class TaskConfig(TypedDict, total=False):
    """Settings of the task in the model's config: class of the model, class names, problem type and generation settings."""

    architecture: str
    id2label: list[str]
    problem_type: ProblemType
    generation: dict[str, Any]


class TaskFields(TypedDict, total=False):
    """What `Task.describe` gives: these fields where the kind has them, and those that only one kind has."""

    name: str
    kind: str
    metric: str
    labels: list[str]
    columns: dict[str, Any]
    temperature: float
    template: str | None


class RecipeFields(TypedDict, total=False):
    """The fields of a recipe; a load reads one of them."""

    max_length: int


@dataclass
class Description:
    """What a checkpoint says of itself."""

    mixture: dict[str, Any]
    base: BaseIdentity
    head: Head
    sha256: str
    """of the values in the file"""
    config: TaskConfig = field(default_factory=TaskConfig)
    task: TaskFields = field(default_factory=TaskFields)
    results: dict[str, Any] = field(default_factory=dict)
    recipe: RecipeFields = field(default_factory=RecipeFields)
    tokenizer: str = ""
    """fingerprint of the tokenizer; empty where it is not known"""
    format: int = FORMAT
    library: str = unipelt.__version__
    stacks: list[Any] = field(default_factory=list)
    """the entries of the base's architecture: a load never has to find them"""

    def __post_init__(self):
        try:
            check_fields(vars(self), get_type_hints(Description))
        except ValueError as error:
            raise CheckpointError(str(error)) from None
        self.entries()
        if self.recipe.get("max_length", 1) < 1:
            raise CheckpointError(f"recipe.max_length={self.recipe['max_length']}, expected a whole number from 1")

    def entries(self) -> tuple[Stack, ...] | None:
        """The entries of the base's architecture. Raises ValueError for what are none."""
        return entries_from_json(self.stacks) if self.stacks else None


def describe(folder: str | os.PathLike) -> Description:
    """What a checkpoint says of itself. Raises CheckpointError where it is missing, damaged, or of another version."""
    path = tensors_file(Path(folder))
    return parse_description(tensors_header(path), path)


def tensors_file(folder: Path) -> Path:
    """The file of a checkpoint. Raises CheckpointError where a folder has none."""
    if not (folder / TENSORS).exists():
        expected = "a folder that `unipelt train`, unipelt.save or save_pretrained of an attached model wrote"
        raise CheckpointError(f"{folder}: no {TENSORS} in it; expected {expected}{_hint(folder)}")
    return folder / TENSORS


def parse_description(header: dict[str, Any], path: Path) -> Description:
    """The checked description in the header of a safetensors file. Raises CheckpointError."""
    text = header.get("__metadata__", {}).get(KEY)
    if text is None:
        raise CheckpointError(f"{path}: does not say which mixture its tensors are of{_hint(path.parent)}")
    try:
        fields = json.loads(text)
        version = fields.get("format") if isinstance(fields, dict) else None
        if version != FORMAT:
            raise CheckpointError(f"format {version!r}, this version reads {FORMAT}; install the unipelt that wrote it")
        description = Description(**fields)
        spec.Mixture.from_dict(description.mixture)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
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


def _hint(folder: Path) -> str:
    """Which function reads another library's folder, or which folder inside this one is a run."""
    if not (folder / ADAPTER_CONFIG).is_file():
        inside = sorted(folder.glob(f"*/{TENSORS}"))
        return f"; {inside[0].parent} is one" if inside else ""
    peft = "peft_type" in (folder / ADAPTER_CONFIG).read_text(encoding="utf-8", errors="replace")
    reader = "load_peft" if peft else "load_adapterhub"
    return f"; this one is {'peft' if peft else 'AdapterHub'}'s: unipelt.{reader} reads it"
