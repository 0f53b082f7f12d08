"""MultiMixtureState requests over one base, trained together from their data to their results."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from unipelt import data
from unipelt.checkpoint.bases import load_both
from unipelt.errors import DataError, UserError
from unipelt.inject.heads import output_of
from unipelt.inject.shapes import most_tokens
from unipelt.inject.state import AttachedState, attached_state
from unipelt.tasks.metrics import score
from unipelt.train.batches import Encoded, encode
from unipelt.train.evaluation import decisions
from unipelt.train.fleet import Fleet, Plan, Progress
from unipelt.train.recipes import Recipe, default_recipe
from unipelt.train.records import DONE, DRAWN, FILES, FULL, Request, Result
from unipelt.train.setup import prepare, unit_of

SOURCE = ("task", "data_dir", *FILES)  # of a request: where its rows come from


class DatasetCache:
    """Data sets and their splits, made once, and the tokens of their texts, which many runs share."""

    def __init__(self):
        self.datasets: dict[tuple, data.Dataset] = {}
        self.parts: dict[tuple, data.Splits] = {}
        self.tokens: dict[tuple, dict[str, np.ndarray]] = {}

    def dataset(self, request: Request) -> data.Dataset:
        key = tuple(getattr(request, name) for name in SOURCE)
        if key not in self.datasets:
            task, *rest = key
            self.datasets[key] = data.load(task, **dict(zip(SOURCE[1:], rest)))
        return self.datasets[key]

    def splits(self, request: Request) -> data.Splits:
        k = request.k if request.k == "all" else int(request.k)
        drawn = k, request.seed, *(getattr(request, name) for name in DRAWN)
        key = (*(getattr(request, name) for name in SOURCE), *drawn)
        if key not in self.parts:
            self.parts[key] = data.split(self.dataset(request), *drawn)  # type: ignore[arg-type]
        return self.parts[key]

    def encode(self, tokenizer: Any, rows: data.Examples, longest: int) -> Encoded:
        """As `encode` has it; a text that was met before is not tokenised again."""
        keys = [(tokenizer.name_or_path, longest, rows.second is None, *texts) for texts in rows.texts]
        new = [place for place, key in enumerate(keys) if key not in self.tokens]
        if new:
            coded = encode(tokenizer, rows.take(new), longest)
            for place, values in zip(new, zip(*coded.features.values())):
                self.tokens[keys[place]] = dict(zip(coded.features, values))
        found = [self.tokens[key] for key in keys]
        features = {name: [one[name] for one in found] for name in found[0]}
        return Encoded(features, rows.labels, min(longest, tokenizer.model_max_length))


@dataclass
class PreparedRun:
    """One request of a fleet, ready to be trained."""

    request: Request
    splits: data.Splits
    recipe: Recipe
    encoded: dict[str, Encoded]
    """rows of train, validation and test"""
    finished: Result


def train_together(
    requests: Sequence[Request], *, width: int, ended: Callable[[PreTrainedModel, list[int], list[Result]], None],
    began: Callable[["PreparedRun"], None] = lambda member: None,
    corpus: DatasetCache | None = None, device: torch.device, folder: Path | None = None, watch: Any = None,
) -> None:  # fmt: skip
    """Train requests that differ in task, rows, method, seed and recipe, at most `width` at once; of `full`, one.

    Runs of one method lie side by side; of several methods each has its share of the width, one run at least. began(member)
    is called for each before anything is trained. ended(model, requests, results) is called when some have ended, by their
    places; the model then holds their best parameters, one run each in that order. A request whose rows cannot be had ends
    first, with the reason. folder: where the state is kept and found again.

    Raises UserError where the base cannot be loaded or cannot take the method.
    """
    corpus, first = corpus or DatasetCache(), requests[0]
    splits: dict[int, data.Splits] = {}
    refused: dict[int, Result] = {}
    for place, request in enumerate(requests):
        try:
            splits[place] = corpus.splits(request)
        except DataError as error:
            refused[place] = Result(status=f"failed: {error}", metric="")
    classes = max((len(one.task.labels) or 1 for one in splits.values()), default=1)
    model, tokenizer = load_both(first.model, classes=classes, seed=first.seed)
    if refused:
        ended(model, list(refused), list(refused.values()))
    if not splits:
        return

    members = {
        place: prepare_run(request, splits[place], corpus, model, tokenizer)
        for place, request in enumerate(requests)
        if place in splits
    }
    places, width = list(members), min(width, len(members))
    methods = methods_of([member.request for member in members.values()])
    mixture = {place: methods.index(member.request.method.strip()) for place, member in members.items()}
    queues = [[members[place].request.seed for place in places if mixture[place] == one] for one in range(len(methods))]
    if FULL in methods and len(members) > 1:
        raise UserError(f"{FULL} tunes the base itself: one run at a time")
    shares = shared(width, [len(seeds) for seeds in queues])
    counts = prepare(model, methods, first, [seeds[:share] for seeds, share in zip(queues, shares)])
    model.to(device)
    parts = [model] if methods == [FULL] else attached_state(model).parts
    plans = [plan_of(members[place], mixture[place], parts[mixture[place]]) for place in places]
    counted = [_counts(part, parameters, classes) for part, parameters in zip(parts, counts)]
    for plan, member in zip(plans, members.values()):
        member.finished.parameters = counted[plan.mixture](len(member.splits.task.labels) or 1)
        began(member)

    def hand_over(fleet: Fleet, numbers: list[int]) -> None:
        chosen, started = [members[places[number]] for number in numbers], time.monotonic()
        gates: list[dict[str, Tensor]] = [{} for _ in chosen]
        every = fleet.predict([one.encoded["test"] for one in chosen], gates=None if methods == [FULL] else gates)
        for number, one, logits, values in zip(numbers, chosen, every, gates):
            one.finished.width, one.finished.device = fleet.width, str(device)
            _finish(one, fleet.progress[number], logits, values)
            one.finished.seconds = fleet.progress[number].seconds + (time.monotonic() - started) / len(chosen)
        ended(model, [places[number] for number in numbers], [one.finished for one in chosen])

    torch.manual_seed(first.seed)  # dropout
    Fleet(model, plans, tokenizer, folder=folder, ended=hand_over, **({"watch": watch} if watch else {})).train()


def prepare_run(
    request: Request, splits: data.Splits, corpus: DatasetCache, model: PreTrainedModel, tokenizer: Any
) -> PreparedRun:
    """A request with its rows as tokens and its recipe, the defaults filled in."""
    recipe = default_recipe(request.method, model.config.hidden_size, len(splits.train), **request.recipe)
    longest = most_tokens(model, recipe.max_length)
    finished = Result(
        status="running", metric=splits.task.metric, recipe=asdict(recipe), labels=list(splits.task.labels),
        rows=splits.prints, asked=asdict(splits.task) | {"labels": list(splits.task.labels)},
        complete=request.k != "all" or corpus.dataset(request).complete, targets=list(splits.test.labels or []),
    )  # fmt: skip
    encoded = {name: corpus.encode(tokenizer, part, longest) for name, part in splits.parts.items()}
    return PreparedRun(request, splits, recipe, encoded, finished)


def methods_of(requests: Sequence[Request]) -> list[str]:
    """The methods of a fleet, each once, in the order of their runs."""
    return list(dict.fromkeys(request.method.strip() for request in requests))


def shared(width: int, waiting: Sequence[int]) -> list[int]:
    """The runs of each method that are trained at once: the next place is always that of the method with most waiting a place.

    Raises UserError where the width is smaller than the methods are many.
    """
    if width < len(waiting):
        raise UserError(
            f"{width} runs at once for {len(waiting)} methods side by side: expected one each; train them apart"
        )
    shares = [1] * len(waiting)
    while sum(shares) < min(width, sum(waiting)):
        open_ = [i for i, count in enumerate(waiting) if shares[i] < count]
        shares[max(open_, key=lambda i: waiting[i] / shares[i])] += 1
    return shares


def plan_of(member: PreparedRun, mixture: int, part: PreTrainedModel | AttachedState) -> Plan:
    """What the loop is told of a member. mixture: the number of its method; part: what of the model trains it."""
    task, rows = member.splits.task, member.encoded
    return Plan(
        task=task, recipe=member.recipe, seed=member.request.seed, train=rows["train"], validation=rows["validation"],
        unit=unit_of(part, task, member.splits.train), mixture=mixture,
    )  # fmt: skip


def _counts(
    model: PreTrainedModel | AttachedState, parameters: dict[str, int], widest: int
) -> Callable[[int], dict[str, int]]:
    """Trainable numbers by change for a task of so many classes; the head of a fleet is as wide as its widest task."""
    output, owner = output_of(model), FULL if FULL in parameters else "head"
    each = 0 if output is None else output.weight.shape[-1] + (output.bias is not None)
    return lambda classes: parameters | ({owner: parameters[owner] - (widest - classes) * each} if each else {})


def _finish(member: PreparedRun, progress: Progress, logits: Tensor, gates: dict[str, Tensor]) -> None:
    """Fill in what came out."""
    finished, task = member.finished, member.splits.task
    finished.curve, finished.steps = progress.curve, progress.step
    if progress.ended not in DONE:
        finished.status = "failed: " + progress.ended
        return
    said = decisions(task, logits)
    best = max(progress.curve, key=lambda row: row[task.metric])
    finished.status = progress.ended
    finished.validation_metrics = {name: value for name, value in best.items() if name not in ("step", "loss")}
    finished.test_metrics = score(task, said, member.splits.test.labels)  # type: ignore[arg-type]
    finished.validation, finished.test = best[task.metric], finished.test_metrics[task.metric]
    finished.predictions = said if task.kind == "classification" else [round(value, 6) for value in said]
    finished.gates = {
        path: {"mean": float(values.mean()), "sd": float(values.std(correction=0))} for path, values in gates.items()
    }
    if task.kind == "classification":
        largest = max(set(member.splits.train.labels), key=member.splits.train.labels.count)  # type: ignore[arg-type, type-var, union-attr]
        finished.majority = (finished.targets or []).count(largest) / len(member.splits.test)
