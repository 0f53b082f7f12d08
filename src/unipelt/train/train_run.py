"""One run from a task to a checkpoint: what `unipelt train` does. It is resumed by asking for the same again."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel

from unipelt import data, spec
from unipelt.checkpoint.bases import load_tokenizer, name_classes, quiet
from unipelt.checkpoint.folder import save
from unipelt.errors import CheckpointError, UserError
from unipelt.train.lock import alone_in
from unipelt.train.records import FULL, STATE, Outcome, Request, Result, last_state, read_outcome, write_outcome
from unipelt.train.runner import DatasetCache, PreparedRun, train_together
from unipelt.train.setup import device_of


def tune(
    request: Request, folder: Path, *, device: str = "auto", tell: Callable[[str], None] = print, watch: Any = None
) -> Outcome:
    """Train one run into a folder, or go on with it; a finished run is only read. Raises UserError."""
    with alone_in(folder):
        return _tune(request, folder, device, tell, watch)


def _tune(request: Request, folder: Path, device: str, tell: Callable[[str], None], watch: Any) -> Outcome:
    if request.method.strip() != FULL:
        spec.mixture(request.method)  # a misspelt one is said before anything is loaded
    target, corpus = device_of(device), DatasetCache()
    before = read_outcome(folder, request)
    if before is not None and before.status.startswith("failed"):
        (folder / STATE).unlink(missing_ok=True)
        raise UserError(f"{folder}: {before.status}; its command goes with another --out")
    splits = corpus.splits(request)
    task = splits.task
    if before is not None and (before.rows, before.task["labels"]) != (splits.prints, list(task.labels)):
        raise CheckpointError(
            f"--out {folder}: its run was started on other rows of {request.task!r}; take another folder, or remove it"
        )
    if before is not None and before.done:
        (folder / STATE).unlink(missing_ok=True)  # a kill may have come before its removal
        tell(f"{folder}: already finished, nothing trained")
        return before
    for note in (describe_columns(request, task), *splits.notes):
        tell(note)
    tell("rows: " + ", ".join(f"{len(rows):,} {part}" for part, rows in splits.parts.items()))
    outcome: Outcome

    def began(member: PreparedRun) -> None:
        tell("recipe: " + ", ".join(f"{name}={value}" for name, value in asdict(member.recipe).items()))
        write_outcome(folder, outcome_of(request, member.finished))
        if (state := last_state(folder)) is not None:
            step, each = state["progress"][0]["step"], -(-len(splits.train) // member.recipe.batch_size)
            epoch = min(step // each + 1, member.recipe.epochs)
            tell(
                f"goes on after step {step} of {each * member.recipe.epochs}, in epoch {epoch} of {member.recipe.epochs}"
            )

    def ended(model: PreTrainedModel, places: list[int], results: list[Result]) -> None:
        nonlocal outcome
        outcome = outcome_of(request, results[0])
        if outcome.done:
            keep(model, request, outcome, folder)
        write_outcome(folder, outcome)

    train_together(
        [request], width=1, began=began, ended=ended, corpus=corpus, device=target, folder=folder, watch=watch
    )
    (folder / STATE).unlink(missing_ok=True)
    if not outcome.done:
        raise UserError(outcome.status.removeprefix("failed: "))
    return outcome


def outcome_of(request: Request, finished: Result) -> Outcome:
    """What a folder's record says of a run."""
    return Outcome(
        request=asdict(request), recipe=finished.recipe or {}, rows=finished.rows or {}, parameters=finished.parameters or {},
        task=finished.asked, status=finished.status, validation=finished.validation_metrics or {}, test=finished.test_metrics or {},
        majority=finished.majority, curve=finished.curve or [], seconds=finished.seconds or 0.0,
    )  # fmt: skip


def describe_columns(request: Request, task: data.Task) -> str:
    """Which columns were taken for what, and what is asked of them."""
    columns, labels = task.columns, ", ".join(task.labels)
    assert columns is not None, "every task that has a name knows its columns"
    texts = f"texts {columns.text!r} and {columns.pair!r}" if columns.pair else f"text {columns.text!r}"
    asked = f"{len(task.labels)} classes: {labels[:200]}{'…' * (len(labels) > 200)}" if labels else "regression"
    return f"{request.task}: {texts}, label {columns.label!r}; {asked}"


def keep(model: PreTrainedModel, request: Request, outcome: Outcome, folder: Path, run: int = 0) -> None:
    """Write the best parameters as a checkpoint; a whole model as a plain transformers one."""
    task = outcome.task
    if not outcome.whole:
        results = {
            f"{part} {task['metric']}": getattr(outcome, part)[task["metric"]] for part in ("validation", "test")
        }
        save(model, folder, run=run, base=request.model, task=task, results=results, recipe=outcome.recipe)
        return
    name_classes(model, task["labels"] or ["value"])
    try:
        with quiet():
            model.save_pretrained(folder)
            load_tokenizer(request.model).save_pretrained(folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"{folder}: cannot write the model ({reason}); its training is kept, the same command goes on from it"
        ) from None
