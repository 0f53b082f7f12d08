"""One class per word: named entities, parts of speech."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unipelt.data import Columns, Table
from unipelt.data.tables import in_order
from unipelt.errors import DataError
from unipelt.tasks.base import Task
from unipelt.tasks.batches import IGNORED, Batch, Encoded, Part, token_weights, unused_outputs, weighted_mean
from unipelt.tasks.calibration import mean_softmax
from unipelt.tasks.linear import Features, Linear, logistic

SPAN_TAG = re.compile("O|B|I|[BIESLUM]-.+")  # of any other tag too, seqeval would take the first letter as its prefix


@dataclass(frozen=True, kw_only=True)
class TokenClassification(Task):
    """A tag per word, read at the word's first token; targets are lists of tags such as B-PER."""

    kind: ClassVar[str] = "token-classification"
    auto_class: ClassVar[str] = "AutoModelForTokenClassification"
    pooled: ClassVar[bool] = False

    @classmethod
    def matches(cls, table: Table, columns: Columns, separator: str | None) -> bool:
        return any(isinstance(cell, list) for cell in table.columns[columns.text])

    @classmethod
    def metrics(cls, labels: Sequence[str]) -> tuple[str, ...]:
        spans = all(SPAN_TAG.fullmatch(label) for label in labels)
        return ("span_f1", "tag_accuracy") if spans else ("tag_accuracy",)

    @classmethod
    def label_names(cls, table: Table, column: str, indices: Sequence[int], separator: str | None) -> tuple[str, ...]:
        return in_order(chain(*table.lists(column, indices)), table.classes.get(column, ()))

    def inputs(self, table: Table, columns: Columns, indices: Sequence[int]) -> dict[str, list]:
        return {"tokens": table.lists(columns.text, indices)}

    def targets(self, table: Table, column: str, indices: Sequence[int]) -> list[list[str]]:
        tag_lists = table.lists(column, indices)
        for index, words, tags in zip(indices, table.lists(self.columns.text, indices), tag_lists):
            if len(tags) != len(words):
                raise DataError(
                    f"{table.example(index)}: {len(words)} words, {len(tags)} tags; expected a tag per word"
                )
            for tag in tags:
                table.label_index(self.labels, tag, index, column)
        return tag_lists

    def loss_targets(self, part: Part) -> list[np.ndarray]:
        rows = []
        for index, tags in zip(part.indices, super().loss_targets(part)):
            row = np.full(len(part.encoded.features["input_ids"][index]), IGNORED)
            for token, tag in zip(part.encoded.first_tokens[index], tags or ()):
                if token >= 0:
                    row[token] = self.labels.index(tag)
            rows.append(row)
        return rows

    @staticmethod
    def loss(logits: Float[Tensor, "run block seq output"], batch: Batch) -> Float[Tensor, " run"]:
        """Mean cross-entropy over the run's own words and classes."""
        beyond = unused_outputs(batch.outputs, logits.shape[-1])[:, None, None]
        masked_logits = logits.masked_fill(beyond, -torch.inf).movedim(-1, 1)
        each = F.cross_entropy(masked_logits, batch.targets, reduction="none", ignore_index=IGNORED)
        return weighted_mean(each, token_weights(batch))

    @staticmethod
    def count(batch: Batch) -> Float[Tensor, " run"]:
        return token_weights(batch).sum(dim=(1, 2))

    def average(self, run_logits: Sequence[Float[Tensor, "example seq output"]]) -> Float[Tensor, "example seq label"]:
        return mean_softmax([logits[..., : self.outputs] for logits in run_logits])

    def fit_linear(
        self, features: Features, targets: Sequence[list[str]], folds: Sequence[int], *, balanced: bool = False
    ) -> Linear:
        """Logistic regression of each word's tag."""
        tags = [self.labels.index(tag) for row in targets for tag in row]
        each = [fold for row, fold in zip(targets, folds) for _ in row]
        return logistic(features, tags, self.outputs, each, balanced=balanced)

    def decide(self, logits: Float[Tensor, "example seq output"], encoded: Encoded) -> list[list[str]]:
        """A tag per word; for a word that was cut off, O where that is a tag."""
        best = logits[..., : self.outputs].argmax(dim=-1).tolist()
        outside = "O" if "O" in self.labels else self.labels[0]
        pairs = zip(best, encoded.first_tokens)
        return [[self.labels[ids[token]] if token >= 0 else outside for token in tokens] for ids, tokens in pairs]
