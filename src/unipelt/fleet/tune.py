"""One run from a task to a checkpoint: what `unipelt train` does. It is resumed by asking for the same again."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unipelt import data, spec
from unipelt.checkpoint.bases import MINILM, declared_pooling, load_base, load_tokenizer, quiet
from unipelt.checkpoint.folder import save, write_whole
from unipelt.errors import CheckpointError, UserError
from unipelt.fleet.encode import encode
from unipelt.fleet.loop import Fleet, Plan, decisions
from unipelt.fleet.recipe import default_recipe
from unipelt.fleet.state import STATE
from unipelt.inject.attach import attach
from unipelt.inject.record import trainable_parameters

RECORD, FORMAT = "run.json", 1
FULL = "full"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user asks for; two requests that are equal are the same run."""

    model: str = MINILM
    """base model: minilm, a folder, or a name on the hub"""
    task: str
    """a GLUE task, docstrings (the built-in task), a CSV, JSONL or Parquet file, or a hub data set"""
    k: int | str = "all"
    """training rows, drawn by the seed; all: every row"""
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
    test: str | None = None
    """file with the test rows; none given: a fifth of the rows is held out"""
    recipe: dict[str, Any] = field(default_factory=dict)
    """what is given of the recipe; the rest is the method's default"""


@dataclass
class Outcome:
    """What came out, as run.json keeps it."""

    request: dict[str, Any]
    recipe: dict[str, Any]
    rows: dict[str, Any]
    """numbers of rows and the fingerprint of the training rows"""
    parameters: dict[str, int]
    task: dict[str, Any]
    """name, kind, metric, labels, pair"""
    status: str = "running"
    dev: dict[str, float] = field(default_factory=dict)
    test: dict[str, float] = field(default_factory=dict)
    majority: float | None = None
    """test accuracy of always naming the largest class of the training rows"""
    curve: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    format: int = FORMAT


def tune(
    request: Request, folder: Path, *, device: str = "auto", tell: Callable[[str], None] = print, watch: Any = None
) -> Outcome:
    """Train one run into a folder, or go on with it; a finished run is only read. Raises UserError."""
    method = request.method if request.method.strip() == FULL else spec.mixture(request.method)
    target = device_of(device)
    before = read_outcome(folder, request)
    if before is not None and before.status != "running":
        return before

    dataset = data.load(
        request.task, data_dir=request.data_dir, text=request.text, pair=request.pair, label=request.label,
        kind=request.kind, test=request.test,
    )  # fmt: skip
    splits = data.split(dataset, request.k if request.k == "all" else int(request.k), request.seed)
    for note in splits.notes:
        tell(note)
    task = splits.task
    classes = 1 if task.kind == "regression" else len(task.labels)
    model, tokenizer = load_base(request.model, classes=classes, seed=request.seed), load_tokenizer(request.model)
    model.config.pad_token_id = tokenizer.pad_token_id
    recipe = default_recipe(request.method, model.config.hidden_size, len(splits.train), **request.recipe)
    parameters = prepare(model, method, request)
    model.to(target)
    tell("recipe: " + ", ".join(f"{name}={value}" for name, value in asdict(recipe).items()))

    torch.manual_seed(request.seed)  # dropout
    plan = Plan(
        task=task, recipe=recipe, seed=request.seed,
        train=encode(tokenizer, splits.train, recipe.max_length), dev=encode(tokenizer, splits.dev, recipe.max_length),
    )  # fmt: skip
    outcome = Outcome(
        request=asdict(request), recipe=asdict(recipe), parameters=parameters,
        task={"name": task.name, "kind": task.kind, "metric": task.metric, "labels": list(task.labels), "pair": task.pair},
        rows={"train": len(splits.train), "dev": len(splits.dev), "test": len(splits.test), "fingerprint": splits.train.fingerprint()},
    )  # fmt: skip
    if before is not None and before.rows["fingerprint"] != outcome.rows["fingerprint"]:
        raise CheckpointError(
            f"{folder}: its run was started on other rows of {request.task!r}; take another --out, or remove the folder"
        )
    write_outcome(folder, outcome)

    fleet = Fleet(model, [plan], tokenizer, folder=folder, **({"watch": watch} if watch else {}))
    fleet.train()
    progress = fleet.progress[0]
    if progress.ended not in ("finished", "stopped early"):
        outcome.status, outcome.curve = "failed: " + progress.ended, progress.curve
        write_outcome(folder, outcome)
        (folder / STATE).unlink(missing_ok=True)
        raise UserError(progress.ended)
    logits = fleet.predict([encode(tokenizer, splits.test, recipe.max_length)])[0]
    outcome.test = data.score(task, decisions(task, logits), splits.test.labels)
    outcome.dev = {
        k: v for k, v in max(progress.curve, key=lambda row: row[task.metric]).items() if k not in ("step", "loss")
    }
    outcome.curve, outcome.seconds, outcome.status = progress.curve, fleet.seconds, progress.ended
    if task.kind == "classification":
        largest = max(set(splits.train.labels), key=splits.train.labels.count)  # type: ignore[arg-type, type-var]
        outcome.majority = splits.test.labels.count(largest) / len(splits.test)  # type: ignore[union-attr, arg-type]
    keep(model, tokenizer, method, request, outcome, task, folder)
    write_outcome(folder, outcome)
    (folder / STATE).unlink(missing_ok=True)
    return outcome


def prepare(model: nn.Module, method: str | spec.Mixture, request: Request) -> dict[str, int]:
    """Attach the mixture, or make the whole model trainable; returns trainable parameters by change."""
    if isinstance(method, str):
        return {FULL: sum(p.numel() for p in model.requires_grad_(True).parameters())}
    pooling = declared_pooling(request.model) if request.head == "auto" else request.head
    attach(model, method, seeds=[request.seed], head=request.policy, pooling=pooling, fresh_head=True)
    return trainable_parameters(model)


def keep(
    model: nn.Module,
    tokenizer: Any,
    method: str | spec.Mixture,
    request: Request,
    outcome: Outcome,
    task: data.Task,
    folder: Path,
) -> None:
    """Write the best parameters as a checkpoint; a whole model as a plain transformers one."""
    if isinstance(method, str):
        model.config.id2label = dict(enumerate(task.labels)) or {0: "value"}
        model.config.label2id = {label: index for index, label in model.config.id2label.items()}
        with quiet():
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return
    results = {f"dev {task.metric}": outcome.dev[task.metric], f"test {task.metric}": outcome.test[task.metric]}
    save(model, folder, base=request.model, task=outcome.task, results=results, recipe=outcome.recipe)


def device_of(name: str) -> torch.device:
    """auto: the GPU when there is one. Raises UserError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(
            f"--device {name}: not on this machine; expected auto, cpu"
            + (" or cuda" if torch.cuda.is_available() else "")
        ) from None
    return device


def write_outcome(folder: Path, outcome: Outcome) -> None:
    write_whole(folder, {RECORD: json.dumps(asdict(outcome), indent=1).encode()})


def read_outcome(folder: Path, request: Request | None = None) -> Outcome | None:
    """The record of a folder; None where there is nothing yet. Raises CheckpointError where it holds something else."""
    path = folder / RECORD
    if not path.exists():
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / f".{RECORD}.new").exists()):
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
    if request is not None and outcome.request != json.loads(json.dumps(asdict(request))):
        theirs, ours = outcome.request, asdict(request)
        name = next((key for key in ours if theirs.get(key) != ours[key]), "format")
        raise CheckpointError(
            f"--out {folder}: holds another run, with {name}={theirs.get(name)!r} and not {ours.get(name)!r}; take another folder, or remove it"
        )
    return outcome
