"""One run from a task to a checkpoint: what `unipelt train` does. It is resumed by asking for the same again."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from unipelt import data, spec
from unipelt.checkpoint.bases import declared_pooling, load_base, load_tokenizer, quiet
from unipelt.checkpoint.folder import save
from unipelt.errors import CheckpointError, UserError
from unipelt.fleet.encode import encode, most_tokens
from unipelt.fleet.lock import alone_in
from unipelt.fleet.loop import Fleet, Plan, decisions
from unipelt.fleet.outcome import FULL, STATE, Outcome, Request, last_state, read_outcome, write_outcome
from unipelt.fleet.recipe import default_recipe
from unipelt.inject.attach import attach
from unipelt.inject.heads import find_head
from unipelt.inject.record import trainable_parameters


def tune(
    request: Request, folder: Path, *, device: str = "auto", tell: Callable[[str], None] = print, watch: Any = None
) -> Outcome:
    """Train one run into a folder, or go on with it; a finished run is only read. Raises UserError."""
    with alone_in(folder):
        return _tune(request, folder, device, tell, watch)


def _tune(request: Request, folder: Path, device: str, tell: Callable[[str], None], watch: Any) -> Outcome:
    method = request.method if request.method.strip() == FULL else spec.mixture(request.method)
    target = device_of(device)
    before = read_outcome(folder, request)
    if before is not None and before.status.startswith("failed"):
        (folder / STATE).unlink(missing_ok=True)
        raise UserError(f"{folder}: {before.status}; its command goes with another --out")
    dataset = data.load(
        request.task, data_dir=request.data_dir, text=request.text, pair=request.pair, label=request.label,
        kind=request.kind, test=request.test,  # type: ignore[arg-type]
    )  # fmt: skip
    splits = data.split(dataset, "all" if request.k == "all" else int(request.k), request.seed)
    task, rows = splits.task, {"train": splits.train, "dev": splits.dev, "test": splits.test}
    prints = {name: {"number": len(part), "fingerprint": part.fingerprint()} for name, part in rows.items()}
    if before is not None and (before.rows, before.task["labels"]) != (prints, list(task.labels)):
        raise CheckpointError(
            f"--out {folder}: its run was started on other rows of {request.task!r}; take another folder, or remove it"
        )
    if before is not None and before.done:
        (folder / STATE).unlink(missing_ok=True)  # a kill may have come before its removal
        tell(f"{folder}: already finished, nothing trained")
        return before
    for note in (what_was_read(request, task), *splits.notes):
        tell(note)
    classes = 1 if task.kind == "regression" else len(task.labels)
    model, tokenizer = load_base(request.model, classes=classes, seed=request.seed), load_tokenizer(request.model)
    model.config.pad_token_id = tokenizer.pad_token_id
    recipe = default_recipe(request.method, model.config.hidden_size, len(splits.train), **request.recipe)
    parameters = prepare(model, method, request)
    model.to(target)
    tell("recipe: " + ", ".join(f"{name}={value}" for name, value in asdict(recipe).items()))

    longest = most_tokens(model, recipe.max_length)
    encoded = {name: encode(tokenizer, part, longest) for name, part in rows.items()}
    outcome = Outcome(
        request=asdict(request), recipe=asdict(recipe), parameters=parameters,
        task=asdict(task) | {"labels": list(task.labels)}, rows=prints,
    )  # fmt: skip
    write_outcome(folder, outcome)

    torch.manual_seed(request.seed)  # dropout
    plan = Plan(task=task, recipe=recipe, seed=request.seed, train=encoded["train"], dev=encoded["dev"])
    state = last_state(folder)
    if state is not None:
        epoch = min(state["step"] // plan.steps_per_epoch + 1, recipe.epochs)
        tell(f"goes on after step {state['step']} of {plan.steps}, in epoch {epoch} of {recipe.epochs}")
    fleet = Fleet(model, [plan], tokenizer, folder=folder, **({"watch": watch} if watch else {}))
    fleet.train()
    progress = fleet.progress[0]
    outcome.curve, outcome.seconds = progress.curve, fleet.seconds
    if progress.ended not in ("finished", "stopped early"):
        outcome.status = "failed: " + progress.ended
        write_outcome(folder, outcome)
        (folder / STATE).unlink(missing_ok=True)
        raise UserError(progress.ended)
    logits = fleet.predict([encoded["test"]])[0]
    outcome.test = data.score(task, decisions(task, logits), splits.test.labels)  # type: ignore[arg-type]
    best = max(progress.curve, key=lambda row: row[task.metric])
    outcome.dev = {name: value for name, value in best.items() if name not in ("step", "loss")}
    outcome.status = progress.ended
    if task.kind == "classification":
        largest = max(set(splits.train.labels), key=splits.train.labels.count)  # type: ignore[arg-type, type-var, union-attr]
        outcome.majority = splits.test.labels.count(largest) / len(splits.test)  # type: ignore[union-attr, arg-type]
    keep(model, tokenizer, request, outcome, folder)
    write_outcome(folder, outcome)
    (folder / STATE).unlink(missing_ok=True)
    return outcome


def what_was_read(request: Request, task: data.Task) -> str:
    """Which columns were taken for what, and what is asked of them."""
    columns, labels = task.columns, ", ".join(task.labels)
    assert columns is not None, "every task that has a name knows its columns"
    texts = f"texts {columns.text!r} and {columns.pair!r}" if columns.pair else f"text {columns.text!r}"
    asked = f"{len(task.labels)} classes: {labels[:200]}{'…' * (len(labels) > 200)}" if labels else "regression"
    return f"{request.task}: {texts}, label {columns.label!r}; {asked}"


def prepare(model: PreTrainedModel, method: str | spec.Mixture, request: Request) -> dict[str, int]:
    """Attach the mixture, or make the whole model trainable; returns trainable parameters by change."""
    if isinstance(method, str):
        return {FULL: sum(p.numel() for p in model.requires_grad_(True).parameters())}
    pooling = declared_pooling(request.model) if request.head == "auto" else request.head
    attach(
        model, method, seeds=[request.seed], head=request.policy, pooling=pooling, fresh_head=True, head_modules=head_of(model)
    )  # fmt: skip
    parameters = trainable_parameters(model)
    if not sum(parameters.values()):
        raise UserError(f"--head-policy {request.policy}: {method.name!r} then has nothing to train; expected train")
    return parameters


def head_of(model: PreTrainedModel) -> list[str]:
    """What was not in the base's checkpoint, and what stands outside the base: a head that another task has left there."""
    new, inside = find_head(model), {id(p) for p in model.base_model.parameters()}
    return [
        path
        for path, module in model.named_modules()
        if path in new or any(id(p) not in inside for p in module.parameters(recurse=False))
    ]


def keep(model: PreTrainedModel, tokenizer: Any, request: Request, outcome: Outcome, folder: Path) -> None:
    """Write the best parameters as a checkpoint; a whole model as a plain transformers one."""
    task = outcome.task
    if not outcome.whole:
        results = {f"{part} {task['metric']}": getattr(outcome, part)[task["metric"]] for part in ("dev", "test")}
        save(model, folder, base=request.model, task=task, results=results, recipe=outcome.recipe)
        return
    model.config.id2label = dict(enumerate(task["labels"])) or {0: "value"}
    model.config.label2id = {label: index for index, label in model.config.id2label.items()}
    try:
        with quiet():
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"{folder}: cannot write the model ({reason}); its training is kept, the same command goes on from it"
        ) from None


def device_of(name: str) -> torch.device:
    """auto: the GPU when there is one. Raises UserError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(
            f"--device {name}: not on this machine; expected auto, cpu"
            + (" or cuda" if torch.cuda.is_available() else "")
        ) from None
    return device
