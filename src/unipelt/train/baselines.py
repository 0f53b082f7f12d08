"""Baselines, which attach nothing to the base: fitted before any method is trained, and judged as every run is.

`constant` predicts the most frequent class or the mean, `tfidf` reads words, `probe` reads what the head of the frozen base reads, and
`setfit` what the head of a base reads that was tuned on pairs of texts. For generated text, `zero-shot` is the frozen base as it
is, and `nearest` gives the answer of the most similar training example. A baseline is saved as a folder with baseline.json, the
arrays of a linear model, and the run's record.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from torch import Tensor

from unipelt.checkpoint.disk import ARRAYS, BASELINE, read_file, read_json, resolve
from unipelt.data import Examples, Splits
from unipelt.data.folds import inner_folds
from unipelt.errors import CheckpointError, UserError
from unipelt.inject.shapes import most_tokens
from unipelt.tasks.base import Task
from unipelt.tasks.batches import Encoded
from unipelt.tasks.linear import Features, Linear
from unipelt.tasks.registry import task_of
from unipelt.train.contrastive import TunedStates
from unipelt.train.forward import autocast, chosen_precision
from unipelt.train.predictor import Answers, Predictor, TablePredictor
from unipelt.train.recipes import BALANCED
from unipelt.train.records import BASELINES, FINISHED, SETFIT, RunConfig
from unipelt.train.runs import FinishedRun, metrics_of, record_test
from unipelt.train.setup import DatasetCache, check_identity, device_of, load_and_attach, pooling_of, start_record
from unipelt.train.text_features import FrozenBase, HeadInputs, NoFeatures, TextFeatures, WordCounts

FORMAT = 2  # of baseline.json
MOST_EXAMPLES = 20_000  # training examples, or words of a task of words, that are read: more change little
FEATURES: dict[str, type[TextFeatures]] = {cls.name: cls for cls in (NoFeatures, WordCounts, HeadInputs, TunedStates)}
"""by the name of their baseline; the cheapest first"""
ZERO_SHOT, NEAREST = ANSWERING = ("zero-shot", "nearest")
EMPTY = Encoded({"input_ids": []}, None, 0)


@dataclass
class Baseline(TablePredictor):
    """A linear model on features of texts."""

    task: Task
    features: TextFeatures
    linear: Linear

    def outputs(self, examples: Examples) -> tuple[Float[Tensor, "example ..."], Encoded]:
        logits = torch.from_numpy(self.linear(self.features(examples)))
        if self.task.pooled:
            return logits, replace(EMPTY, targets=examples.targets)
        lengths = [len(words) for words in next(iter(examples.inputs.values()))]
        firsts = [np.arange(length) for length in lengths]
        padded = torch.nn.utils.rnn.pad_sequence(list(logits.split(lengths)), batch_first=True)
        return padded, replace(EMPTY, targets=examples.targets, first_tokens=firsts)

    @property
    def parameters(self) -> int:
        """Numbers that were fitted."""
        return self.linear.weight.size + self.linear.bias.size + self.features.parameters

    def files(self, results: dict[str, float]) -> dict[str, bytes]:
        """The files of its folder by name."""
        metadata, arrays = self.features.saved()
        arrays = {"weight": self.linear.weight, "bias": self.linear.bias, **arrays}
        # save_arrays reads memory as it lies
        data = save_arrays({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        digest = {"sha256": hashlib.sha256(data).hexdigest()}
        return {ARRAYS: data, **_description(self.features.name, self.task, results, digest | metadata)}


@dataclass
class Nearest(TablePredictor):
    """The answer of the training example whose words are most similar: TF-IDF of words and pairs of words, cosine."""

    task: Task
    questions: list[str]
    known_answers: list[str]
    parameters: ClassVar[int] = 0

    @classmethod
    def fit(cls, task: Task, train: Examples) -> "Nearest":
        """Raises UserError for plain texts, which hold no answers."""
        if any(target is None for target in train.targets or [None]):
            raise UserError(f"{NEAREST}: {task.name} holds plain texts without answers; leave it out")
        return cls(task, _questions(train), list(train.targets or []))

    @cached_property
    def _vectors(self) -> tuple[WordCounts, Features]:
        """TF-IDF of the training examples, and what it gives for them."""
        examples = Examples(inputs={"text": self.questions})
        words = WordCounts.fit(examples, None)
        return words, words(examples)

    def generate(self, examples: Examples) -> list[str]:
        words, vectors = self._vectors
        best = (words(Examples(inputs={"text": _questions(examples)})) @ vectors.T).argmax(axis=1)
        return [self.known_answers[int(index)] for index in best.ravel().tolist()[0]]

    def answers(self, examples: Examples, texts: bool) -> Answers:
        return None, replace(EMPTY, targets=examples.targets), self.generate(examples)

    def files(self, results: dict[str, float]) -> dict[str, bytes]:
        return _description(NEAREST, self.task, results, {"questions": self.questions, "answers": self.known_answers})


def _questions(examples: Examples) -> list[str]:
    """What is asked in each example; of a chat, all messages before the answer."""
    values = next(iter(examples.inputs.values()))
    return [
        "\n".join(message["content"] for message in value) if isinstance(value, list) else str(value)
        for value in values
    ]


def _description(name: str, task: Task, results: dict[str, float], metadata: dict[str, Any]) -> dict[str, bytes]:
    """The file baseline.json."""
    description = {"format": FORMAT, "baseline": name, "task": task.describe(), "results": results, **metadata}
    return {BASELINE: json.dumps(description, indent=1).encode()}


@dataclass
class ZeroShot:
    """The frozen base as it is, asked with the template and the settings of a trained run."""

    base: FrozenBase
    precision: str = "auto"
    known: dict[tuple[str, bool], Answers] = field(default_factory=dict)
    """by fingerprint of the examples: the seeds of a comparison share their test examples"""
    parameters: ClassVar[int] = 0

    @property
    def task(self) -> Task:
        return self.base.predictor.task

    def answers(self, examples: Examples, texts: bool) -> Answers:
        key, predictor = (examples.fingerprint, texts), self.base.predictor
        if key not in self.known:
            with autocast(predictor.model.device, self.precision):
                self.known[key] = predictor.answers(examples, texts)
        return self.known[key]

    def files(self, results: dict[str, float]) -> dict[str, bytes]:
        return _description(ZERO_SHOT, self.task, results, {"base": self.base.metadata})


def frozen_base(config: RunConfig, task: Task, device: torch.device, max_length: int) -> FrozenBase:
    """The base of a run, with a head that reads what the baseline reads. Raises UserError where it cannot be loaded."""
    if config.method in FEATURES:
        config = replace(config, pooling=FEATURES[config.method].pooling or config.pooling)
    plain = replace(config, method=ZERO_SHOT if task.generates_text else "head", head="train", recipe={})
    model, tokenizer, _, identity = load_and_attach(plain, task, outputs=task.outputs, seeds=[0], device=device)
    longest = most_tokens(model, max_length)
    predictor = Predictor(model.eval(), tokenizer, task.prepare(model, tokenizer), longest, False)
    return FrozenBase(predictor, config.model, pooling_of(config) if task.pooled else "model", identity)


def fit_baseline(
    name: str, task: Task, train: Examples, frozen: FrozenBase | None, *, balanced: bool = False
) -> Baseline:
    """Fit a linear model to training examples, of which at most MOST_EXAMPLES are read."""
    train = train.take(range(min(len(train), _examples_read(task, train))))
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
        task.fit_temperature(torch.from_numpy(held_out[known]), [targets[index] for index in known])
    )


def _examples_read(task: Task, train: Examples) -> int:
    if task.pooled:
        return MOST_EXAMPLES
    words = np.cumsum([len(tags) for tags in train.targets or []])
    return max(1, int(np.searchsorted(words, MOST_EXAMPLES, side="right")))


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
    notes = [f"{name}: left out, as {why}" for name, why in lacking.items()]
    return [name for name in names if name not in lacking], notes


def train_baselines(
    configs: Sequence[RunConfig], device: torch.device, cache: DatasetCache, identity: dict[str, str] | None = None
) -> Iterator[FinishedRun]:
    """Fit and judge the baseline of each of these runs, which differ in their examples alone; the base reads no text twice.

    Raises UserError where the task has no such baseline, or the base cannot be loaded, and CheckpointError where the base is not
    that of `identity`.
    """
    first, task = configs[0], cache.task(configs[0])
    if why := refusal(first.method, task):
        raise UserError(f"{first.method}: {why}")
    longest = first.recipe.get("max_length") or task.default_max_length
    reads_base = first.method == ZERO_SHOT or (first.method in FEATURES and FEATURES[first.method].reads_base)
    base = frozen_base(first, task, device, longest) if reads_base else None
    if base is not None:
        check_identity(first.model, base.identity, identity)
    precision = chosen_precision(device, first.recipe.get("precision", "auto"))
    zero_shot = ZeroShot(base, precision) if base is not None and first.method == ZERO_SHOT else None
    for config in configs:
        started, splits = _clock(base), cache.splits(config)
        baseline: Baseline | Nearest | ZeroShot
        if zero_shot:
            baseline = zero_shot
        elif config.method == NEAREST:
            baseline = Nearest.fit(task, splits.train)
        else:
            baseline = _fit(config, task, splits, base)
        record = start_record(
            config, splits, cache, baseline.task, {config.method: baseline.parameters}, base.identity if base else None
        )
        record.status, record.runs_at_once, record.device = FINISHED, 1, str(device)
        record.temperature = getattr(baseline.task, "temperature", None)
        if not config.folds:
            metrics = metrics_of(baseline.task, *baseline.answers(splits.validation, task.selects_by_text))
            record.validation_metrics, record.validation = metrics, metrics.get(task.metric)
        if splits.test is not None:
            test_started = _clock(base)
            record_test(record, baseline.task, *baseline.answers(splits.test, task.generates_text))
            record.predicting = _clock(base) - test_started
        record.seconds = _clock(base) - started
        yield FinishedRun(record, files=baseline.files(record.results))


def _clock(base: FrozenBase | None) -> float:
    """Seconds, counted as if no text were known from an earlier run."""
    return time.monotonic() + (base.seconds_saved if base else 0.0)


def _fit(config: RunConfig, task: Task, splits: Splits, frozen: FrozenBase | None) -> Baseline:
    """The linear baseline of one run."""
    if balanced := config.recipe.get("class_weights") == BALANCED:
        task.with_class_weights(splits.train.targets or [])  # refused where there are no classes
    tunes_base = FEATURES[config.method].tunes_base
    # with folds nothing is chosen by validation examples, and most baselines need none
    joined = config.folds and config.k == "all" and not tunes_base
    train = splits.train.joined(splits.validation) if joined else splits.train
    baseline = fit_baseline(config.method, task, train, frozen, balanced=balanced)
    if not tunes_base:
        return baseline
    logits, _ = baseline.outputs(splits.validation)
    return replace(baseline, task=_calibrated(task, logits.numpy(), splits.validation.targets or []))


def load_predictor(run: str, base: str | None = None, device: str = "auto") -> TablePredictor:
    """Load the predictor of a folder: a baseline, a tuned run or an ensemble. Raises CheckpointError if it holds none of them."""
    folder = resolve(run)
    if not (folder / BASELINE).is_file():
        return Predictor.load(run, base, device, ensembles=True)
    description = read_json(folder / BASELINE, "a folder with a baseline")
    name = description.get("baseline")
    if description.get("format") != FORMAT or name not in (*FEATURES, *ANSWERING):
        content = f"format {description.get('format')!r} of {name!r}"
        raise CheckpointError(f"{folder / BASELINE}: {content}; this version reads format {FORMAT}")
    task = task_of(description.get("task") or {})
    try:
        if name == NEAREST:
            return Nearest(task, list(map(str, description["questions"])), list(map(str, description["answers"])))
        frozen: FrozenBase | None = None
        if name == ZERO_SHOT or "base" in description:
            metadata = description["base"]
            config = RunConfig(model=base or metadata["name"], task=task.name, pooling=metadata["pooling"])
            frozen = frozen_base(config, task, device_of(device), metadata["max_length"])
            check_identity(config.model, frozen.identity, {key: metadata[key] for key in frozen.identity})
            if name == ZERO_SHOT:
                return replace(frozen.predictor, task=task)
        arrays = _read_arrays(folder / ARRAYS, description["sha256"])
        features = FEATURES[name].load(description, arrays, frozen)
        return Baseline(task, features, Linear(arrays["weight"], arrays["bias"]))
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
