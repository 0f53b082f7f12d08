"""What a run is asked to do, and what came out of it. Imports neither torch nor transformers: results are read fast."""

import json
import os
import struct
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from unipelt import spec
from unipelt.checkpoint.disk import write_whole
from unipelt.errors import CheckpointError, UserError, did_you_mean

RECORD, STATE, FORMAT = "run.json", "training.safetensors", 2
FULL = "full"
DONE = ("finished", "stopped early")  # statuses of a run that has a result
CHOICES: dict[str, tuple[str | None, ...]] = {
    "head": ("auto", "model", "cls", "mean"),
    "policy": ("train", "frozen", "paper"),
    "kind": (None, "classification", "regression"),
}
FLAGS = {  # of fields whose option has another name
    "policy": "--head-policy", "task": "--data", "tasks": "--data", "k": "--train-rows", "text": "--text-column",
    "pair": "--text-pair-column", "label": "--label-column", "group": "--group-column",
}  # fmt: skip
PATHS = ("model", "task", "data_dir", "validation", "test")  # fields that may name a file or folder
FILES = ("text", "pair", "label", "kind", "validation", "test", "group")  # fields that say how files are read
DRAWN = ("validation_rows", "stratify")  # fields that say how examples are drawn, beside k and the seed
SEEDS = 2**32  # fewer than the generators take: an epoch's seed is a million times the run's


def option_of(field: str) -> str:
    """The command line's option of a field."""
    return FLAGS.get(field, "--" + field.replace("_", "-"))


@dataclass(frozen=True, kw_only=True)
class RunKey:
    """What tells a run from the others of its study. Two keys that are equal are the same run."""

    task: str
    """a GLUE task, docstrings, a file, or a data set of the hub"""
    k: int | str
    """training examples, or all"""
    method: str
    """a preset with its options, or full"""
    seed: int
    lr: float | None
    """peak learning rate; None: the method's default"""

    @property
    def full(self) -> bool:
        """Whether the base itself is tuned."""
        return self.method.strip() == FULL

    @property
    def id(self) -> str:
        """`task/k/method/seed/lr`, the primary key of a study's store."""
        rate = f"{self.lr:g}" if self.lr is not None else "default"
        short = self.lr is None or float(rate) == self.lr
        return f"{self.task}/{self.k}/{self.method}/{self.seed}/{rate if short else self.lr}"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What a user asks of one run. Two configurations that are equal are the same run."""

    model: str = "minilm"
    """base model: minilm, a folder, or a name on the hub"""
    task: str
    """a GLUE task, docstrings (the built-in task), a CSV, JSONL or Parquet file, or a hub data set"""
    k: int | str = "all"
    """number of training examples, drawn by the seed; all: every example that is not held out"""
    method: str = spec.DEFAULT
    """a preset with its options, such as lora(r=16), or full"""
    seed: int = 0
    """draws the examples, their order, the initial values and dropout"""
    head: str = "auto"
    """what the head reads: model, cls or mean; auto: what the base declares"""
    policy: str = "train"
    """whether the head trains: train, frozen, or paper (the papers' own policy)"""
    data_dir: str | None = None
    """folder with GLUE as Parquet files (default: downloaded from the hub)"""
    text: str | None = None
    """column of the text, or of the first text of a pair (default: found)"""
    pair: str | None = None
    """column of the second text (default: found)"""
    label: str | None = None
    """column of the label (default: found)"""
    kind: str | None = None
    """classification or regression (default: found from the labels)"""
    validation: str | None = None
    """file with the validation examples, which select the checkpoint (default: taken from the training examples)"""
    test: str | None = None
    """file with the test examples (default: a fifth of the examples is held out)"""
    group: str | None = None
    """column whose examples stay in one split, such as the author of a text; an empty cell is a group of one"""
    validation_rows: int = 1000
    """most validation examples taken from the training examples, 10 at least; a --validation file is used whole"""
    stratify: bool = False
    """give each class its share of every split; groups are balanced where possible (the papers do not stratify)"""
    recipe: dict[str, Any] = field(default_factory=dict)
    """fields of the recipe that are given; the method's defaults fill the rest"""

    def __post_init__(self):
        for name, known in CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                raise UserError(f"{option_of(name)} {value}: {did_you_mean(str(value), [one for one in known if one])}")
        if not 0 <= self.seed < SEEDS:
            raise UserError(f"--seed {self.seed}: expected 0 to {SEEDS - 1}")

    @property
    def key(self) -> RunKey:
        return RunKey(task=self.task, k=self.k, method=self.method, seed=self.seed, lr=self.recipe.get("lr"))

    @property
    def full(self) -> bool:
        """Whether the base itself is tuned."""
        return self.key.full


DEFAULTS = {one.name: one.default for one in fields(RunConfig) if one.default is not MISSING}


@dataclass(kw_only=True)
class RunRecord:
    """One run from its plan to its result: the content of run.json, and one row of a study's store."""

    config: dict[str, Any] = field(default_factory=dict)
    """the RunConfig"""
    description: dict[str, Any] = field(default_factory=dict)
    """the task: name, kind, metric, labels, pair, columns"""
    status: str = "running"
    """running, finished, stopped early, or `failed: ` and the reason"""
    metric: str = ""
    """name of the task's metric, of which `validation` and `test` are values"""
    validation: float | None = None
    """best validation metric; it alone selects the epoch and the learning rate"""
    test: float | None = None
    """test metric of the parameters with the best validation metric"""
    validation_metrics: dict[str, float] | None = None
    test_metrics: dict[str, float] | None = None
    majority: float | None = None
    """test accuracy of always predicting the largest class of the training examples; None for a regression"""
    curve: list[dict[str, float]] | None = None
    """one entry per evaluation: epoch, step, loss, metrics"""
    gates: dict[str, dict[str, float]] | None = None
    """by path `stack.layer.change.place`: mean and sd of the gate over the test examples"""
    parameters: dict[str, int] | None = None
    """trainable parameters by change; `head` for the head"""
    rows: dict[str, Any] | None = None
    """number and fingerprint of the examples of train, validation and test"""
    labels: list[str] | None = None
    """class names; empty for a regression"""
    predictions: list[Any] | None = None
    """class index or value for each test example, in order"""
    targets: list[Any] | None = None
    """true class index or value of each test example, in order"""
    recipe: dict[str, Any] | None = None
    complete: bool = True
    """False where the training set is a subset of the published one, so that k = all is not the paper's"""
    steps: int | None = None
    seconds: float | None = None
    """this run's share of its fleet's time, evaluation included"""
    width: int | None = None
    """runs that were trained at once"""
    device: str | None = None
    versions: dict[str, str] | None = None
    format: int = FORMAT

    @property
    def done(self) -> bool:
        """Whether there is a result."""
        return self.status in DONE

    @property
    def failed(self) -> str:
        """Why the run failed; empty where it did not."""
        return self.status.removeprefix("failed: ") if self.status.startswith("failed: ") else ""

    @property
    def whole(self) -> bool:
        """Whether the base itself was tuned: the folder is a plain transformers model then."""
        return self.config["method"].strip() == FULL


def failed(reason: str) -> RunRecord:
    """The record of a run that could not be trained."""
    return RunRecord(status=f"failed: {reason}")


def write_record(folder: Path, record: RunRecord) -> None:
    write_whole(folder, {RECORD: json.dumps(asdict(record), indent=1).encode()})


def read_record(folder: Path, config: RunConfig | None = None) -> RunRecord | None:
    """Read a folder's record; an unfinished run has the curve and time of its last state. None where there is no run yet.

    Hidden files do not count as content: a kill may have left them.

    Raises CheckpointError where the folder holds something else, or another run than `config`.
    """
    path = folder / RECORD
    if not path.exists():
        if folder.is_dir() and any(not one.name.startswith(".") for one in folder.iterdir()):
            raise CheckpointError(
                f"--out {folder}: not empty, and holds no run; expected a new folder, or one that this command began"
            )
        return None
    try:
        record = as_record(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); remove {folder} to start again") from None
    if config is not None:
        ours = json.loads(json.dumps(asdict(config)))
        if other := other_option(record.config, ours):
            raise CheckpointError(f"--out {folder}: holds another run, with {other}; take another folder, or remove it")
    if not record.done and (state := last_state(folder)) is not None:
        record.seconds, record.curve = state["seconds"], state["progress"][0]["curve"]
    return record


def as_record(found: Any) -> RunRecord:
    """A RunRecord from JSON. Raises ValueError for another format, an unknown field or a value of a wrong type."""
    if not isinstance(found, dict):
        raise ValueError(f"holds a {type(found).__name__}, expected an object")
    if (form := found.get("format")) != FORMAT:
        raise ValueError(f"format {form!r}, this version reads format {FORMAT}")
    kinds = get_type_hints(RunRecord)
    for name, value in found.items():
        if name not in kinds:
            raise ValueError(f"has a field {name!r}, which is not known")
        if not fits(value, kinds[name]):
            raise ValueError(f"{name} is {json.dumps(value)[:80]}, expected {in_words(kinds[name])}")
    return RunRecord(**found)


def fits(value: Any, kind: Any) -> bool:
    """Whether a value read from JSON or TOML is of an annotated type: a whole number is a number, true is not one."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any or kind is None or kind is type(None):
        return kind is Any or value is None
    if origin is dict:
        return isinstance(value, dict) and all(fits(one, inner[1]) for one in value.values())
    if origin is UnionType:
        return any(fits(value, one) for one in inner)
    if inner:  # a list or a sequence
        return isinstance(value, list) and all(fits(one, inner[0]) for one in value)
    return type(value) is kind or (kind is float and type(value) is int)


def in_words(kind: Any) -> str:
    """An annotated type as a user would say it."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return " or ".join(in_words(one) for one in inner if one is not type(None))
    if origin is dict:
        return "a table"
    if inner:
        return f"a list, each {in_words(inner[0])}"
    return {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}.get(kind, "a value")


def other_option(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """`seed=0 and not 5` for the first option that differs, those of a recipe and of columns one by one; else empty."""
    held, asked = _options(theirs), _options(ours)
    for name in asked | held:
        if _resolved(name, held) != _resolved(name, asked):
            return f"{name}={_shown(held.get(name))} and not {_shown(asked.get(name))}"
    return ""


def _options(given: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in given.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return flat


def _resolved(name: str, given: dict[str, Any]) -> Any:
    """An option or its default; a path that exists is made absolute: reviews.csv is ./reviews.csv."""
    value = given.get(name, DEFAULTS.get(name))
    return os.path.realpath(value) if name in PATHS and value and os.path.exists(value) else value


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "its default" if value is None or value == "" else str(value)


def last_state(folder: Path) -> dict[str, Any] | None:
    """Steps, seconds and progress of an unfinished training; None before its first state."""
    path = folder / STATE
    try:
        return json.loads(tensors_header(path)["__metadata__"]["facts"]) if path.exists() else None
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); remove {folder} to start again") from None


def tensors_header(path: Path) -> dict[str, Any]:
    """Read the header of a safetensors file without torch."""
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            return json.loads(file.read(min(length, 100_000_000)))
    except (OSError, ValueError, struct.error) as error:
        raise CheckpointError(f"{path}: damaged or not readable ({error})") from None
