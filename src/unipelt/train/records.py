"""What a user asks of a run, and what came out, as run.json keeps it. Knows no torch: results are read in no time."""

import json
import os
import struct
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from unipelt import spec
from unipelt.checkpoint.disk import write_whole
from unipelt.errors import CheckpointError, UserError, did_you_mean

RECORD, STATE, FORMAT = "run.json", "training.safetensors", 1
FULL = "full"
DONE = ("finished", "stopped early")  # how a run ends that has a result
CHOICES: dict[str, tuple[str | None, ...]] = {
    "head": ("auto", "model", "cls", "mean"),
    "policy": ("train", "frozen", "paper"),
    "kind": (None, "classification", "regression"),
}
FLAGS = {  # of fields whose option has another name
    "policy": "--head-policy", "task": "--data", "tasks": "--data", "k": "--train-rows", "text": "--text-column",
    "pair": "--text-pair-column", "label": "--label-column", "group": "--group-column",
}  # fmt: skip
PLACES = ("model", "task", "data_dir", "validation", "test")  # fields that may name a file or folder
FILES = ("text", "pair", "label", "kind", "validation", "test", "group")  # fields that say how files are read
DRAWN = ("validation_rows", "stratify")  # fields that say how rows are drawn, beside k and the seed
SEEDS = 2**32  # fewer than the generators take: an epoch's seed is a million times the run's


def option_of(field: str) -> str:
    """The command line's option of a field."""
    return FLAGS.get(field, "--" + field.replace("_", "-"))


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user asks for; two requests that are equal are the same run."""

    model: str = "minilm"
    """base model: minilm, a folder, or a name on the hub"""
    task: str
    """a GLUE task, docstrings (the built-in task), a CSV, JSONL or Parquet file, or a hub data set"""
    k: int | str = "all"
    """training rows, drawn by the seed; all: every row but those that choose the checkpoint"""
    method: str = spec.DEFAULT
    """a preset with its options, such as lora(r=16), or full"""
    seed: int = 0
    """draws the rows, their order, the initial values and dropout"""
    head: str = "auto"
    """what the head reads: model, cls or mean; auto: what the base declares"""
    policy: str = "train"
    """the head itself: train, frozen, or paper (the papers' own policy)"""
    data_dir: str | None = None
    """folder with GLUE as parquet files; none given: the hub"""
    text: str | None = None
    """column of the text, or of the first text of a pair"""
    pair: str | None = None
    """column of the second text"""
    label: str | None = None
    """column of the label"""
    kind: str | None = None
    """classification or regression; none given: found"""
    validation: str | None = None
    """file with the rows that choose the checkpoint; none given: taken from the training rows"""
    test: str | None = None
    """file with the test rows; none given: a fifth of the rows is held out"""
    group: str | None = None
    """column of what no split may part, such as the author of a text; where it is empty a row is alone"""
    validation_rows: int = 1000
    """rows that choose the checkpoint, at most; 10 or more, the papers have 1,000; of a file of their own all do"""
    stratify: bool = False
    """draw the rows so that each class has its share of them, groups as far as they can be; the papers do not"""
    recipe: dict[str, Any] = field(default_factory=dict)
    """what is given of the recipe; the rest is the method's default"""

    def __post_init__(self):
        for name, known in CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                raise UserError(f"{option_of(name)} {value}: {did_you_mean(str(value), [one for one in known if one])}")
        if not 0 <= self.seed < SEEDS:
            raise UserError(f"--seed {self.seed}: expected 0 to {SEEDS - 1}")


DEFAULTS = {one.name: one.default for one in fields(Request) if one.default is not MISSING}


@dataclass
class Outcome:
    """What came out, as run.json keeps it."""

    request: dict[str, Any]
    recipe: dict[str, Any]
    rows: dict[str, Any]
    """number and fingerprint of the rows of train, validation and test"""
    parameters: dict[str, int]
    task: dict[str, Any]
    """name, kind, metric, labels, pair, columns"""
    status: str = "running"
    """running, finished, stopped early, or `failed: ` and the reason"""
    validation: dict[str, float] = field(default_factory=dict)
    test: dict[str, float] = field(default_factory=dict)
    majority: float | None = None
    """test accuracy of always naming the largest class of the training rows"""
    curve: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    format: int = FORMAT

    @property
    def done(self) -> bool:
        """Whether there is a result."""
        return self.status in DONE

    @property
    def whole(self) -> bool:
        """Whether the base itself was tuned: the folder is a plain transformers model then."""
        return self.request["method"].strip() == FULL


@dataclass(kw_only=True)
class Result:
    """What came out of one of several runs."""

    status: str
    """finished, stopped early, or `failed: ` and the reason"""
    metric: str
    """the task's own metric: what `validation` and `test` are"""
    asked: dict[str, Any] = field(default_factory=dict)
    """name, kind, metric, labels, pair and columns of the task"""
    validation: float | None = None
    """best validation metric: it alone chose the epoch, and chooses the learning rate"""
    test: float | None = None
    """test metric of the parameters with the best validation metric"""
    validation_metrics: dict[str, float] | None = None
    test_metrics: dict[str, float] | None = None
    majority: float | None = None
    """test accuracy of always naming the largest class of the training rows; None for a regression"""
    curve: list[dict[str, float]] | None = None
    """one row an evaluation: epoch, step, loss, metrics"""
    gates: dict[str, dict[str, float]] | None = None
    """by path `stack.layer.change.place`: mean and sd of the gate over test rows"""
    parameters: dict[str, int] | None = None
    """trainable numbers by change; `head` for the head"""
    rows: dict[str, Any] | None = None
    """number and fingerprint of the rows of train, validation and test"""
    labels: list[str] | None = None
    """class names; empty for a regression"""
    predictions: list[Any] | None = None
    """class index or value for each test row, in order"""
    targets: list[Any] | None = None
    """the test rows' own labels, in order"""
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


def write_outcome(folder: Path, outcome: Outcome) -> None:
    write_whole(folder, {RECORD: json.dumps(asdict(outcome), indent=1).encode()})


def read_outcome(folder: Path, request: Request | None = None) -> Outcome | None:
    """The record of a folder, of an unfinished run as its last state has it; None where there is nothing yet.

    Raises CheckpointError where it holds something else. Hidden files are nothing: a kill may have left them.
    """
    path = folder / RECORD
    if not path.exists():
        if folder.is_dir() and any(not one.name.startswith(".") for one in folder.iterdir()):
            raise CheckpointError(
                f"--out {folder}: not empty, and holds no run; expected a new folder, or one that this command began"
            )
        return None
    try:
        outcome = Outcome(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, OSError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); remove {folder} to start anew") from None
    if outcome.format != FORMAT:
        raise CheckpointError(f"{path}: format {outcome.format!r}, this version reads format {FORMAT}")
    if request is not None:
        theirs, ours = outcome.request, json.loads(json.dumps(asdict(request)))
        if other := other_option(theirs, ours):
            raise CheckpointError(f"--out {folder}: holds another run, with {other}; take another folder, or remove it")
    if not outcome.done and (state := last_state(folder)) is not None:
        outcome.seconds, outcome.curve = state["seconds"], state["progress"][0]["curve"]
    return outcome


def other_option(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """`seed=0 and not 5` for the first option that is another, those of a recipe and of columns one by one; empty: none is."""
    held, asked = _options(theirs), _options(ours)
    for name in asked | held:
        if _settled(name, held) != _settled(name, asked):
            return f"{name}={_words(held.get(name))} and not {_words(asked.get(name))}"
    return ""


def _options(given: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in given.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return flat


def _settled(name: str, given: dict[str, Any]) -> Any:
    """An option, its default where that is not said; one way to write each place: reviews.csv is ./reviews.csv."""
    value = given.get(name, DEFAULTS.get(name))
    return os.path.realpath(value) if name in PLACES and value and os.path.exists(value) else value


def _words(value: Any) -> str:
    """An option's value as a user would say it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "its default" if value is None or value == "" else str(value)


def last_state(folder: Path) -> dict[str, Any] | None:
    """Step, seconds and progress of a training that is not finished; None before its first state."""
    path = folder / STATE
    try:
        return json.loads(tensors_header(path)["__metadata__"]["facts"]) if path.exists() else None
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); remove {folder} to start anew") from None


def tensors_header(path: Path) -> dict[str, Any]:
    """What a safetensors file holds, by its first bytes: no torch for that."""
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            return json.loads(file.read(min(length, 100_000_000)))
    except (OSError, ValueError, struct.error) as error:
        raise CheckpointError(f"{path}: damaged or not readable ({error})") from None
