"""From what is asked to a fleet that can train: base, task, attached method, plans."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from math import sqrt
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from unipelt import data, spec
from unipelt.checkpoint.bases import declared_pooling, load_both
from unipelt.checkpoint.fingerprint import tokenizer_fingerprint, weights_fingerprint
from unipelt.errors import CheckpointError, UserError
from unipelt.inject.attach import attach
from unipelt.inject.heads import find_head, output_of
from unipelt.inject.record import trainable_parameters
from unipelt.inject.shapes import most_tokens
from unipelt.train.batches import Encoded, encode
from unipelt.train.fleet import Fleet, Observer
from unipelt.train.recipes import default_recipe
from unipelt.train.records import DRAWN, FILES, FULL, RunConfig, RunRecord
from unipelt.train.runs import Plan

ORDINARY = 10.0  # largest absolute value, and inverse of the smallest deviation, of targets that are trained unchanged
SOURCE = ("task", "data_dir", *FILES)  # fields of a RunConfig that say where its examples come from


class DatasetCache:
    """Data sets, their splits and their tokens, each made once and shared by many runs."""

    def __init__(self):
        self.datasets: dict[tuple, data.Dataset] = {}
        self.parts: dict[tuple, data.Splits] = {}
        self.tokens: dict[tuple, dict[str, np.ndarray]] = {}

    def dataset(self, config: RunConfig) -> data.Dataset:
        key = tuple(getattr(config, name) for name in SOURCE)
        if key not in self.datasets:
            task, *rest = key
            self.datasets[key] = data.load(task, **dict(zip(SOURCE[1:], rest)))
        return self.datasets[key]

    def splits(self, config: RunConfig) -> data.Splits:
        k = config.k if config.k == "all" else int(config.k)
        drawn = k, config.seed, *(getattr(config, name) for name in DRAWN)
        key = (*(getattr(config, name) for name in SOURCE), *drawn)
        if key not in self.parts:
            self.parts[key] = data.split(self.dataset(config), *drawn)  # type: ignore[arg-type]
        return self.parts[key]

    def encode(self, tokenizer: Any, rows: data.Examples, longest: int) -> Encoded:
        """`batches.encode`, which tokenises no text twice."""
        keys = [(tokenizer.name_or_path, longest, rows.second is None, *texts) for texts in rows.texts]
        new = [place for place, key in enumerate(keys) if key not in self.tokens]
        if new:
            coded = encode(tokenizer, rows.take(new), longest)
            for place, values in zip(new, zip(*coded.features.values())):
                self.tokens[keys[place]] = dict(zip(coded.features, values))
        found = [self.tokens[key] for key in keys]
        features = {name: [one[name] for one in found] for name in found[0]}
        return Encoded(features, rows.labels, min(longest, tokenizer.model_max_length))


def build_fleet(
    configs: Sequence[RunConfig], *, width: int, device: torch.device, cache: DatasetCache | None = None,
    folder: Path | None = None, on_step: Observer | None = None, deadline: float | None = None,
    identity: dict[str, str] | None = None,
) -> Fleet:  # fmt: skip
    """Build the fleet of these runs, at most `width` at once; they differ in task, examples, seed and recipe alone.

    identity: fingerprints of the base and tokenizer that earlier runs had.

    Raises DataError where a run's examples cannot be had, UserError where the base cannot take the method, and
    CheckpointError where the base or its tokenizer is not that of `identity`.
    """
    cache, first = cache or DatasetCache(), configs[0]
    if first.full and len(configs) > 1:
        raise UserError(f"{FULL} tunes the base itself: expected one run, got {len(configs)}")
    splits = [cache.splits(config) for config in configs]
    classes = max(len(one.task.labels) or 1 for one in splits)
    seeds = [config.seed for config in configs[:width]]
    model, tokenizer, parameters, mine = load_tuned(first, classes=classes, seeds=seeds, device=device)
    check_identity(first.model, mine, identity)
    count = _counter(model, parameters, classes)
    plans = [plan_of(config, one, cache, model, tokenizer, count, mine) for config, one in zip(configs, splits)]
    torch.manual_seed(first.seed)  # dropout
    return Fleet(model, plans, tokenizer, folder=folder, on_step=on_step, deadline=deadline)


def load_tuned(
    config: RunConfig, *, classes: int, seeds: Sequence[int], device: torch.device
) -> tuple[PreTrainedModel, Any, dict[str, int], dict[str, str]]:
    """Load a run's base with a head for `classes` (1: a regression) and attach its method, one run per seed; full: make
    the whole model trainable.

    Returns the model, its tokenizer, the trainable parameters of one run by change, and the fingerprints of base and
    tokenizer.
    """
    model, tokenizer = load_both(config.model, classes=classes, seed=config.seed)
    head = list(find_head(model))
    identity = {"base": weights_fingerprint(model, head), "tokenizer": tokenizer_fingerprint(tokenizer)}
    if config.full:
        counts = {FULL: sum(p.numel() for p in model.requires_grad_(True).parameters())}
        return model.to(device), tokenizer, counts, identity
    pooling = declared_pooling(config.model) if config.head == "auto" else config.head
    mixture = spec.mixture(config.method)
    attach(
        model, mixture, runs=len(seeds), seeds=list(seeds), head=config.policy, pooling=pooling, fresh_head=True
    )  # fmt: skip
    counts = trainable_parameters(model)
    if not sum(counts.values()):
        raise UserError(f"--head-policy {config.policy}: {mixture.name!r} has nothing else to train; expected train")
    return model.to(device), tokenizer, counts, identity


def check_identity(name: str, mine: dict[str, str], expected: dict[str, str] | None) -> None:
    """Raises CheckpointError where a base or its tokenizer has another fingerprint than it had."""
    words = {"base": "its weights are not those", "tokenizer": "its tokenizer is not the one"}
    for part, value in (expected or {}).items():
        if mine.get(part) != value:
            raise CheckpointError(
                f"--model {name}: {words.get(part, part)} that the training began with; put back what was there, or take"
                " another --out"
            )


def plan_of(
    config: RunConfig, splits: data.Splits, cache: DatasetCache, model: PreTrainedModel, tokenizer: Any,
    parameters: Callable[[int], dict[str, int]], identity: dict[str, str],
) -> Plan:  # fmt: skip
    """Plan one run: its examples as tokens, its recipe with the defaults filled in, and what its record says so far."""
    task = splits.task
    recipe = default_recipe(config.method, model.config.hidden_size, len(splits.train), **config.recipe)
    longest = most_tokens(model, recipe.max_length)
    encoded = {name: cache.encode(tokenizer, part, longest) for name, part in splits.parts.items()}
    record = RunRecord(
        config=asdict(config), description=asdict(task) | {"labels": list(task.labels)}, metric=task.metric,
        recipe=asdict(recipe), labels=list(task.labels), rows=splits.prints, parameters=parameters(len(task.labels) or 1),
        complete=config.k != "all" or cache.dataset(config).complete, majority=_majority(splits), identity=identity,
    )  # fmt: skip
    return Plan(
        key=config.key, task=task, recipe=recipe, train=encoded["train"], validation=encoded["validation"],
        test=encoded["test"], unit=unit_of(model, task, splits.train), record=record,
    )  # fmt: skip


def unit_of(model: PreTrainedModel, task: data.Task, train: data.Examples) -> tuple[float, float]:
    """(mean, standard deviation) of a regression's training targets, which the head's output is scaled back by at the end.

    Targets of ordinary size, such as STS-B's 0 to 5, stay unchanged, as the papers train them.
    """
    output, targets = output_of(model), list[Any](train.labels or [])
    if (
        task.kind != "regression"
        or output is None
        or (max(map(abs, targets)) <= ORDINARY and pstdev(targets) >= 1 / ORDINARY)
    ):
        return 0.0, 1.0
    mean = fmean(targets) if output.bias is not None else 0.0
    return mean, sqrt(fmean((target - mean) ** 2 for target in targets)) or 1.0


def _majority(splits: data.Splits) -> float | None:
    """Test accuracy of always predicting the largest class of the training examples; None for a regression."""
    labels, targets = list[Any](splits.train.labels or []), list[Any](splits.test.labels or [])
    if splits.task.kind == "regression":
        return None
    return targets.count(max(set(labels), key=labels.count)) / len(targets)


def _counter(model: PreTrainedModel, parameters: dict[str, int], widest: int) -> Callable[[int], dict[str, int]]:
    """Trainable parameters by change for a task of so many classes; a fleet's head is as wide as its widest task."""
    output, owner = output_of(model), FULL if FULL in parameters else "head"
    each = 0 if output is None else output.weight.shape[-1] + (output.bias is not None)
    return lambda classes: parameters | ({owner: parameters[owner] - (widest - classes) * each} if each else {})


def device_of(name: str) -> torch.device:
    """The device of `--device`; auto: the GPU where there is one. Raises UserError where the machine lacks it."""
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
