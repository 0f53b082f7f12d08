"""Baselines with features: linear models on fixed features, fitted before any method is trained. For generated text: answer_baselines.py.

`constant` names the largest class or the mean, `tfidf` reads words, `probe` reads what the head of the frozen base reads, and
`setfit` what the head of a base reads that was tuned on pairs of texts. A baseline gives logits, so that decisions, metrics and predictions are those of every other run. It is saved as a folder with
baseline.json, baseline.safetensors and the run's record.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from torch import Tensor

from unipelt.checkpoint.disk import ARRAYS, BASELINE, read_file, read_json, resolve
from unipelt.data import Examples
from unipelt.data.folds import inner_folds
from unipelt.errors import CheckpointError, UserError
from unipelt.tasks.base import Task
from unipelt.tasks.batches import Encoded
from unipelt.tasks.linear import Linear
from unipelt.tasks.registry import task_of
from unipelt.train.answer_baselines import ANSWERING, FORMAT, answer_baselines, load_answer_baseline
from unipelt.train.contrastive import TunedStates
from unipelt.train.predictor import Predictor, TablePredictor
from unipelt.train.recipes import BALANCED
from unipelt.train.records import BASELINES, FINISHED, SETFIT, RunConfig
from unipelt.train.runs import FinishedRun, note_test
from unipelt.train.setup import DatasetCache, check_identity, device_of, load_and_attach, pooling_of, start_record
from unipelt.train.text_features import Frozen, HeadInputs, NoFeatures, TextFeatures, WordCounts

MOST = 20_000  # training examples, or words of a task of words, that are read: more change little
FEATURES: dict[str, type[TextFeatures]] = {one.name: one for one in (NoFeatures, WordCounts, HeadInputs, TunedStates)}
"""by the name of their baseline; the cheapest first"""
EMPTY = Encoded({"input_ids": []}, None, 0)


@dataclass
class Baseline(TablePredictor):
    """A linear model on features of texts."""

    task: Task
    features: TextFeatures
    linear: Linear

    def logits(self, examples: Examples) -> tuple[Float[Tensor, "example ..."], Encoded]:
        """Logits as `task.decide` reads them, and what else it reads."""
        found = torch.from_numpy(self.linear(self.features(examples)))
        if self.task.pooled:
            return found, replace(EMPTY, targets=examples.targets)
        lengths = [len(words) for words in next(iter(examples.inputs.values()))]
        firsts = [np.arange(length) for length in lengths]
        padded = torch.nn.utils.rnn.pad_sequence(list(found.split(lengths)), batch_first=True)
        return padded, replace(EMPTY, targets=examples.targets, first_tokens=firsts)

    def outputs(self, examples: Examples, gates: dict[str, Tensor] | None) -> tuple[Tensor, Encoded]:
        if gates is not None:
            raise UserError("--gates: a baseline has no gates; train a run with --method unipelt-apl")
        return self.logits(examples)

    @property
    def parameters(self) -> int:
        """Numbers that were fitted."""
        return self.linear.weight.size + self.linear.bias.size + self.features.parameters

    def files(self, results: dict[str, float]) -> dict[str, bytes]:
        """The files of its folder by name."""
        metadata, arrays = self.features.saved()
        arrays = {"weight": self.linear.weight, "bias": self.linear.bias, **arrays}
        data = save_arrays({name: np.ascontiguousarray(one) for name, one in arrays.items()})  # reads memory as it lies
        said = {
            "format": FORMAT, "baseline": self.features.name, "task": self.task.describe(), "base": None,
            "results": results, "sha256": hashlib.sha256(data).hexdigest(), **metadata,
        }  # fmt: skip
        return {ARRAYS: data, BASELINE: json.dumps(said, indent=1).encode()}

    @classmethod
    def load(
        cls, said: dict[str, Any], arrays: dict[str, np.ndarray], task: Task, base: str | None, device: str
    ) -> "Baseline":
        """What its folder's files hold. base: in place of the one that they name. Raises KeyError, TypeError or CheckpointError."""
        frozen = None
        if metadata := said.get("base"):
            config = RunConfig(model=base or metadata["name"], task=task.name, pooling=metadata["pooling"])
            frozen = frozen_base(config, task, device_of(device), metadata["max_length"])
            check_identity(config.model, frozen.identity, {name: metadata[name] for name in frozen.identity})
        features = FEATURES[said["baseline"]].load(said, arrays, frozen)
        return cls(task, features, Linear(arrays["weight"], arrays["bias"]))


def frozen_base(config: RunConfig, task: Task, device: torch.device, max_length: int) -> Frozen:
    """The base of a run with what its head reads. Raises UserError where it cannot be loaded."""
    plain = replace(config, method="head", head="train", recipe={})
    model, tokenizer, _, identity = load_and_attach(plain, task, outputs=task.outputs, seeds=[0], device=device)
    pooling = pooling_of(config) if task.pooled else "model"
    return Frozen(model, tokenizer, task, max_length, config.model, pooling, identity)


def fit_baseline(name: str, task: Task, train: Examples, frozen: Frozen | None, *, balanced: bool = False) -> Baseline:
    """Fit a baseline to training examples, of which at most MOST are read."""
    train = train.take(range(min(len(train), _most(task, train))))
    features = FEATURES[name].fit(train, frozen)
    folds = inner_folds(train, train.targets if task.classes else None)
    linear = task.fit_linear(features(train), train.targets or [], folds, balanced=balanced)
    if linear.held_out is None or not task.pooled or features.tunes_base:
        return Baseline(task, features, linear)
    return Baseline(_calibrated(task, linear.held_out, train.targets or []), features, linear)


def _calibrated(task: Task, held_out: Float[np.ndarray, "example output"], targets: Sequence[Any]) -> Task:
    """The task with the temperature that fits these examples, each answered by a model that did not see it."""
    known = np.flatnonzero(np.isfinite(held_out).all(axis=1)).tolist()
    return task.with_temperature(
        task.fit_temperature(torch.from_numpy(held_out[known]), [targets[place] for place in known])
    )


def _most(task: Task, train: Examples) -> int:
    if task.pooled:
        return MOST
    words = np.cumsum([len(own) for own in train.targets or []])
    return max(1, int(np.searchsorted(words, MOST, side="right")))


def refusal(name: str, task: Task) -> str:
    """Why a task has no such baseline; empty where it has."""
    if name in ANSWERING:
        return "" if task.generates_text else f"{task.kind} writes no text"
    return FEATURES[name].refuses(task)


def usual_baselines(task: Task) -> list[str]:
    """The baselines of a kind of task that are fitted without being asked for."""
    return [name for name in BASELINES if name != SETFIT and task.generates_text == (name in ANSWERING)]


def offered(names: Iterable[str], task: Task) -> tuple[list[str], list[str]]:
    """Those of these baselines that a task has, and why it does not have the others."""
    lacking = {name: why for name in names if (why := refusal(name, task))}
    left_out = [f"{name}: left out, as {why}" for name, why in lacking.items()]
    return [name for name in names if name not in lacking], left_out


def train_baselines(
    configs: Sequence[RunConfig], device: torch.device, cache: DatasetCache, identity: dict[str, str] | None = None
) -> Iterator[FinishedRun]:
    """Fit the baseline of each of these runs, which differ in their examples alone.

    Raises UserError where the task has no such baseline, or the base cannot be loaded.
    """
    first = configs[0]
    task = cache.task(first)
    if why := refusal(first.method, task):
        raise UserError(f"{first.method}: {why}")
    if first.method in ANSWERING:
        yield from answer_baselines(configs, device, cache, identity)
        return
    kind = FEATURES[first.method]
    frozen = None
    if kind.reads_base:
        first = replace(first, pooling=kind.pooling or first.pooling)
        frozen = frozen_base(first, task, device, first.recipe.get("max_length") or task.default_max_length)
        check_identity(first.model, frozen.identity, identity)
    for place, config in enumerate(configs):
        yield _finished(config, place, task, frozen, cache)


def _finished(config: RunConfig, place: int, task: Task, frozen: Frozen | None, cache: DatasetCache) -> FinishedRun:
    splits = cache.splits(config)
    began = _clock(frozen)
    if balanced := config.recipe.get("class_weights") == BALANCED:
        task.with_class_weights(splits.train.targets or [])  # refused where there are no classes
    # with folds nothing is chosen by validation examples, and most baselines need none
    alone = config.folds and config.k == "all" and not FEATURES[config.method].tunes_base
    train = splits.train.joined(splits.validation) if alone else splits.train
    one = fit_baseline(config.method, task, train, frozen, balanced=balanced)
    if one.features.tunes_base:
        said, _ = one.logits(splits.validation)
        one = replace(one, task=_calibrated(task, said.numpy(), splits.validation.targets or []))
    each = len(train.inputs)
    fitted = _clock(frozen) - began
    identity = None if frozen is None else frozen.identity
    record = start_record(config, splits, cache, one.task, {config.method: one.parameters}, identity)
    record.status, record.width, record.device = FINISHED, 1, "cpu"
    record.temperature = getattr(one.task, "temperature", None)
    if not config.folds:
        logits, encoded = one.logits(splits.validation)
        record.validation_metrics = task.score(task.decide(logits, encoded), splits.validation.targets or [])
        record.validation = record.validation_metrics[task.metric]
    if splits.test is not None:
        began = _clock(frozen)
        logits, encoded = one.logits(splits.test)
        record.predicting = _clock(frozen) - began + one.features.seconds_of(each * len(splits.test))
        note_test(record, task, logits, encoded)
    record.seconds = fitted + one.features.seconds_of(each * len(train))
    return FinishedRun(record, {}, place, None, one.files(record.results))


def _clock(frozen: Frozen | None) -> float:
    """Seconds, of which those that the base takes for new texts are none."""
    return time.monotonic() - (0.0 if frozen is None else frozen.seconds)


def load_predictor(run: str, base: str | None = None, device: str = "auto") -> TablePredictor:
    """Load the predictor of a folder: a baseline, a tuned run or an ensemble. Raises CheckpointError if it holds none of them."""
    folder = resolve(run)
    if not (folder / BASELINE).is_file():
        return Predictor.load(run, base, device, ensembles=True)
    said = read_json(folder / BASELINE, "a folder with a baseline")
    name = said.get("baseline")
    if said.get("format") != FORMAT or name not in (*FEATURES, *ANSWERING):
        what = f"format {said.get('format')!r} of {name!r}"
        raise CheckpointError(f"{folder / BASELINE}: {what}; this version reads format {FORMAT}")
    task = task_of(said.get("task") or {})
    try:
        if name in ANSWERING:
            return load_answer_baseline(said, task, base, device)
        return Baseline.load(said, _read_arrays(folder / ARRAYS, said["sha256"]), task, base, device)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}: damaged ({type(error).__name__}: {error}); train again") from None


def _read_arrays(path: Path, sha256: str) -> dict[str, np.ndarray]:
    try:
        data = read_file(path)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise CheckpointError(f"{path}: not the file that {BASELINE} names; train again")
    return load_arrays(data)
