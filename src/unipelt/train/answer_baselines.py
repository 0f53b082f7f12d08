"""Baselines of generated text: the frozen base as it is (`zero-shot`), and the answer of the most similar training example
(`nearest`). Each gives a run's record, and a folder that `unipelt predict` reads.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unipelt.checkpoint.disk import BASELINE
from unipelt.checkpoint.fingerprint import tokenizer_fingerprint, weights_fingerprint
from unipelt.data import Examples
from unipelt.errors import UserError
from unipelt.inject.shapes import most_tokens
from unipelt.tasks.base import Task
from unipelt.tasks.batches import Encoded
from unipelt.tasks.linear import Features
from unipelt.train.evaluation import predict
from unipelt.train.forward import autocast, chosen_precision
from unipelt.train.predictor import TablePredictor
from unipelt.train.records import FINISHED, RunConfig, RunRecord
from unipelt.train.runs import FinishedRun
from unipelt.train.setup import DatasetCache, check_identity, device_of, start_record
from unipelt.train.text_features import WordCounts

FORMAT = 1  # of a baseline's JSON file
ZERO_SHOT, NEAREST = ANSWERING = ("zero-shot", "nearest")
Said = tuple[dict[str, float], list[Any] | None, list[str]]
"""metrics, what the metric of tokens reads of each example, texts"""


@dataclass
class AnswerBaseline(TablePredictor):
    """What answers without having been trained."""

    task: Task

    def outputs(self, examples: Examples, gates: dict[str, Tensor] | None) -> tuple[Tensor, Encoded]:
        raise UserError("--gates: a baseline has no gates; train a run with --method unipelt-apl")

    def judged(self, examples: Examples, answered: bool) -> Said:
        """The metrics of its answers to these examples, and the answers. answered: whether answers are needed beside losses."""
        texts = self.generate(examples)
        return self.task.score(texts, examples.targets or []), None, texts


@dataclass
class ZeroShot(AnswerBaseline):
    """The frozen base, asked with the template and the settings of a trained run."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    name: str
    identity: dict[str, str]

    @classmethod
    def of(cls, base: str, task: Task, max_length: int, device: torch.device) -> "ZeroShot":
        """Raises UserError where the base cannot be loaded."""
        model, tokenizer = task.load(base)
        identity = {"base": weights_fingerprint(model, []), "tokenizer": tokenizer_fingerprint(tokenizer)}
        task, longest = task.prepare(model, tokenizer), most_tokens(model, max_length)
        return cls(task, model.to(device).eval(), tokenizer, longest, base, identity)  # type: ignore[arg-type]  # transformers types it wrongly

    def generate(self, examples: Examples) -> list[str]:
        encoded = self.task.encode(self.tokenizer, examples, self.max_length)
        return self.task.generate(self.model, self.tokenizer, [encoded])[0]

    def judged(self, examples: Examples, answered: bool) -> Said:
        encoded = self.task.encode(self.tokenizer, examples, self.max_length)
        losses = self.task.decide(predict(self.model, self.tokenizer, [encoded], task=type(self.task))[0], encoded)
        targets = encoded.targets or []
        if not answered:
            return self.task.score(losses, targets), losses, []
        texts = self.task.generate(self.model, self.tokenizer, [encoded])[0]
        return self.task.score(losses, targets) | self.task.score(texts, targets), losses, texts

    @property
    def metadata(self) -> dict[str, Any]:
        return {"base": {"name": self.name, "max_length": self.max_length, **self.identity}}


@dataclass
class Nearest(AnswerBaseline):
    """The answer of the training example whose words are most similar: TF-IDF of words and pairs of words, cosine."""

    asked: list[str]
    said: list[str]

    @classmethod
    def of(cls, task: Task, train: Examples) -> "Nearest":
        """Raises UserError for plain texts, which hold no answers."""
        if any(target is None for target in train.targets or [None]):
            raise UserError(f"{NEAREST}: {task.name} holds plain texts without answers; leave it out")
        return cls(task, _questions(train), list(train.targets or []))

    @cached_property
    def _known(self) -> tuple[WordCounts, Features]:
        """TF-IDF of the training examples, and what it gives for them."""
        mine = Examples(inputs={"text": self.asked})
        words = WordCounts.fit(mine, None)
        return words, words(mine)

    def generate(self, examples: Examples) -> list[str]:
        words, mine = self._known
        best = (words(Examples(inputs={"text": _questions(examples)})) @ mine.T).argmax(axis=1)
        return [self.said[int(index)] for index in best.ravel().tolist()[0]]

    @property
    def metadata(self) -> dict[str, Any]:
        return {"asked": self.asked, "said": self.said}


def _questions(examples: Examples) -> list[str]:
    """What is asked in each example; of a chat, all messages before the answer."""
    values = next(iter(examples.inputs.values()))
    return ["\n".join(one["content"] for one in value) if isinstance(value, list) else str(value) for value in values]


def answer_baselines(
    configs: Sequence[RunConfig], device: torch.device, cache: DatasetCache, identity: dict[str, str] | None = None
) -> Iterator[FinishedRun]:
    """Judge the baseline of each of these runs, which differ in their examples alone; the base answers no examples twice.

    Raises UserError where the task writes no text or the base cannot be loaded, CheckpointError where the base is not that of
    `identity`.
    """
    first, known = configs[0], dict[str, Said]()
    task = cache.task(first)
    base = None
    if first.method == ZERO_SHOT:
        base = ZeroShot.of(first.model, task, first.recipe.get("max_length") or task.default_max_length, device)
        check_identity(first.model, base.identity, identity)
    for place, config in enumerate(configs):
        splits, began = cache.splits(config), time.monotonic()
        one: AnswerBaseline = base or Nearest.of(task, splits.train)
        record = start_record(
            config, splits, cache, one.task, {first.method: 0}, None if base is None else base.identity
        )
        record.status, record.width, record.device = FINISHED, 1, str(device)
        for part, examples in splits.parts.items():
            if part == "train" or examples is None or (part == "validation" and config.folds):
                continue
            if base is None or examples.fingerprint not in known:
                with autocast(device, chosen_precision(device, first.recipe.get("precision", "auto"))):
                    known[examples.fingerprint] = one.judged(examples, part == "test" or task.selects_by_text)
            _note(record, part, task, known[examples.fingerprint], examples)
        record.seconds = record.predicting = time.monotonic() - began
        said = {"format": FORMAT, "baseline": first.method, "task": one.task.describe(), **one.metadata}  # type: ignore[attr-defined]
        yield FinishedRun(record, {}, place, None, {BASELINE: json.dumps(said, indent=1).encode()})


def _note(record: RunRecord, part: str, task: Task, said: Said, examples: Examples) -> None:
    """Put what was said of a part's examples into a record; a metric of tokens is not known of texts alone."""
    metrics, losses, texts = said
    if part == "validation":
        record.validation_metrics, record.validation = metrics, metrics.get(task.metric)
        return
    record.test_metrics, record.test, record.texts = metrics, metrics.get(task.metric), texts
    if task.selects_by_text:
        record.predictions, record.targets = texts, list(examples.targets or [])
    elif losses is not None:
        record.predictions, record.targets = task.to_record(losses, [])


def load_answer_baseline(said: dict[str, Any], task: Task, base: str | None, device: str) -> AnswerBaseline:
    """The baseline that a folder's baseline.json describes. base: in place of the one that it names. Raises KeyError, TypeError or
    CheckpointError."""
    if said["baseline"] == NEAREST:
        return Nearest(task, list(map(str, said["asked"])), list(map(str, said["said"])))
    metadata = said["base"]
    one = ZeroShot.of(base or metadata["name"], task, metadata["max_length"], device_of(device))
    check_identity(one.name, one.identity, {name: metadata[name] for name in one.identity})
    return replace(one, task=task)
