"""The interface of a task: everything that depends on what is predicted.

Code outside tasks/ asks a task for its properties, such as `generates_text`, and never for its class.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unipelt.data import Columns, Examples, Table
from unipelt.data.tables import class_name, is_missing
from unipelt.errors import DataError
from unipelt.tasks.batches import IGNORED, Batch, Encoded, Part, first_tokens, model_inputs, replace_special_tokens
from unipelt.tasks.linear import Features, Linear
from unipelt.tasks.metrics import METRICS

MAX_LOGITS = 20_000  # logits of a test set that a record keeps


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """What is predicted from an example. All runs of a fleet have one kind of task; their numbers of labels may differ."""

    name: str
    """of the data set"""
    metric: str
    """the metric that selects checkpoints and is reported first"""
    columns: Columns
    labels: tuple[str, ...] = ()
    """class names in the order of their indices; empty where there are none"""

    kind: ClassVar[str]
    """its name in TASKS"""
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    """Auto class of transformers that loads a base with the head of this task"""
    problem_type: ClassVar[str | None] = None
    """config.problem_type, or None"""
    pooled: ClassVar[bool] = True
    """whether the head reads one state per example, so that `--pooling mean` or `cls` chooses which"""
    trains_head: ClassVar[bool] = True
    """whether the base gets a new head"""
    default_max_length: ClassVar[int] = 128
    """default of --max-length, in tokens"""
    training_fields: ClassVar[tuple[str, ...]] = ()
    """fields that only the training loss reads; a checkpoint does not keep them"""
    generates_text: ClassVar[bool] = False
    """whether predictions are texts, made by `generate`"""

    @classmethod
    @abstractmethod
    def matches(cls, table: Table, columns: Columns, separator: str | None) -> bool:
        """Whether a table holds this kind of task. separator: the label separator, if it is given."""

    @classmethod
    @abstractmethod
    def metrics(cls, labels: Sequence[str]) -> tuple[str, ...]:
        """Names of the metrics that this kind offers, the default first."""

    @classmethod
    def label_names(cls, table: Table, column: str, indices: Sequence[int], separator: str | None) -> tuple[str, ...]:
        """The class names of a training table."""
        return ()

    @classmethod
    def required_columns(cls, columns: Columns) -> tuple[str | None, ...]:
        """The columns in which no cell may be empty."""
        return columns.text, columns.text_pair, columns.label

    @classmethod
    def from_table(
        cls, name: str, table: Table, columns: Columns, *, labels: tuple[str, ...] = (), metric: str | None = None,
        separator: str | None = None, skip_empty: bool = False,
    ) -> Self:  # fmt: skip
        """Build the task from a training table. labels: class names, if they are known; else found in the table.

        Raises DataError for a metric that this kind does not offer.
        """
        assert columns.label is not None, "training data has a label column"
        if not labels:
            indices = table.complete(cls.required_columns(columns), skip_empty=skip_empty)
            labels = cls.label_names(table, columns.label, indices, separator)
        offered = cls.metrics(labels)
        if metric is not None and metric not in offered:
            raise DataError(f"--metric {metric}: {name} is {cls.kind} and offers {', '.join(offered)}")
        kind_fields = cls.kind_fields(name, separator)
        return cls(name=name, metric=metric or offered[0], columns=columns, labels=labels, **kind_fields)

    @classmethod
    def kind_fields(cls, name: str, separator: str | None) -> dict[str, Any]:
        """The values of the fields that only this kind has. Raises DataError for an option that it does not have."""
        if separator is not None:
            raise DataError(
                f"--label-separator {separator!r}: {name} is {cls.kind}; remove it, or add --kind multi-label"
            )
        return {}

    def read(
        self, table: Table, columns: Columns, *, group: str | None = None, skip_empty: bool = False
    ) -> tuple[Examples, list[int]]:
        """Examples, and the index of each in the table; with `skip_empty`, incomplete ones are left out.

        Targets are read where `columns` names a label. Raises DataError with the line of an example that cannot be used.
        """
        indices = table.complete(self.required_columns(columns), skip_empty=skip_empty)
        targets = None if columns.label is None else self.targets(table, columns.label, indices)
        names = [table.example(index) for index in indices]
        examples = Examples(inputs=self.inputs(table, columns, indices), targets=targets, names=names)
        if group is not None and group in table.columns:  # an empty group cell: the example is grouped by its text
            named = zip(examples.keys, (table.columns[group][index] for index in indices))
            groups = [key if is_missing(value) else class_name(value) for key, value in named]
            examples = replace(examples, groups=groups)
        return examples, indices

    def inputs(self, table: Table, columns: Columns, indices: Sequence[int]) -> dict[str, list]:
        """The inputs by name, checked."""
        named = {"text": columns.text, "text_pair": columns.text_pair}
        return {name: table.texts(column, indices) for name, column in named.items() if column is not None}

    @abstractmethod
    def targets(self, table: Table, column: str, indices: Sequence[int]) -> list:
        """The targets, checked, in the form that the metrics expect."""

    def notes(self, train: Examples) -> list[str]:
        """Warnings about the targets for the user, one sentence each."""
        return []

    @property
    def selects_by_text(self) -> bool:
        """Whether the metric that selects checkpoints needs generated text."""
        return False

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names if each target is the index of one class, else None; splits can be stratified by them."""
        return None

    @property
    def outputs(self) -> int:
        """Number of outputs of the head."""
        return len(self.labels) or 1

    @property
    def target_scale(self) -> tuple[float, float]:
        """(mean, standard deviation) by which targets are standardised during training; the head is rescaled afterwards."""
        return 0.0, 1.0

    def fit(self, targets: Sequence[Any], *, bias: bool | None) -> "Task":
        """The task with the values that depend on a run's training targets, such as their mean and standard deviation.

        bias: whether the head's last linear has one; None: the head does not train.
        """
        return self

    def with_class_weights(self, targets: Sequence[Any]) -> "Task":
        """The task with class weights: every class of these targets has the same total weight in the training loss.

        Raises DataError for a task without classes.
        """
        raise DataError(f"--class-weights balanced: {self.name} is {self.kind}, without classes to weigh; leave it out")

    def in_target_units(self) -> "Task":
        """The task after the head was rescaled: its outputs are in the unit of the targets."""
        return self

    def load(
        self, base: str, *, outputs: int | None = None, seed: int = 0
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """A base whose head has `outputs` outputs, and its tokenizer. Raises UserError."""
        from unipelt.checkpoint.bases import load_both

        return load_both(
            base, auto=self.auto_class, outputs=outputs or self.outputs, problem_type=self.problem_type, seed=seed
        )

    def prepare(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> "Task":
        """Return the task with the values that depend on base and tokenizer."""
        return self

    def with_options(self, options: dict[str, Any]) -> "Task":
        """The task with these options of generation. Raises DataError for a kind that has none."""
        if options:
            option = "--" + next(iter(options)).replace("_", "-")
            raise DataError(f"{option}: {self.name} is {self.kind}; leave it out, or add --kind generation")
        return self

    def encode(self, tokenizer: PreTrainedTokenizerBase, examples: Examples, max_length: int) -> Encoded:
        """Tokenise texts, pairs of texts or lists of words, cut to `max_length` tokens.

        A special token that is written inside a text is split as plain text.
        """
        limit = min(max_length, tokenizer.model_max_length)
        values = list(examples.inputs.values())
        words = isinstance(values[0][0], list) if len(examples) else False
        coded = tokenizer(
            *values, is_split_into_words=words, truncation=True, max_length=limit, padding=False, split_special_tokens=True,
            return_special_tokens_mask=True,
        )  # fmt: skip
        truncated = sum(bool(encoding.overflowing) for encoding in coded.encodings or ())
        added = coded.pop("special_tokens_mask")
        features = {name: [np.array(tokens, dtype=np.int32) for tokens in coded[name]] for name in coded}
        replace_special_tokens(features["input_ids"], added, tokenizer)
        firsts = [first_tokens(coded.word_ids(i), len(row)) for i, row in enumerate(values[0])] if words else []
        return Encoded(features, examples.targets, limit, firsts, truncated=truncated)

    @classmethod
    def collate(cls, parts: Sequence[Part], tokenizer: PreTrainedTokenizerBase, device: torch.device) -> Batch:
        """One batch of several runs' examples in equal blocks; a shorter block is filled with its first example."""
        inputs, filled, weights = model_inputs(parts, tokenizer, device)
        if any(counted := [part.task.example_weights(part) for part in filled]):
            each = [run_weights or [1.0] * len(part.indices) for run_weights, part in zip(counted, filled)]
            weights = weights * torch.tensor(each, device=device)
        targets = cls.pad_targets([part.task.loss_targets(part) for part in filled], inputs["input_ids"].shape[1])
        outputs = torch.tensor([part.task.outputs for part in parts], device=device)
        return Batch(inputs, torch.from_numpy(targets).to(device), weights, outputs)

    @classmethod
    def evaluation_inputs(
        cls, parts: Sequence[Part], tokenizer: PreTrainedTokenizerBase, device: torch.device
    ) -> tuple[dict[str, Tensor], Callable[[Tensor], Tensor]]:
        """Model inputs for equal blocks of examples, and a function from the logits `[run*block, …]` to the part of them that is kept."""
        return model_inputs(parts, tokenizer, device)[0], lambda logits: logits

    def generate(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, encoded_by_run: Sequence[Encoded],
        on_batch: Callable[[], None] = lambda: None,
    ) -> list[list[str]]:  # fmt: skip
        """The text that each run generates for each of its own examples; only for tasks with `generates_text`.

        on_batch: called after each batch.
        """
        raise NotImplementedError

    def example_weights(self, part: Part) -> list[float]:
        """Weight of each example of a batch in the training loss; empty if all have weight 1."""
        return []

    def loss_targets(self, part: Part) -> list[Any]:
        """The targets of one run's part of a batch as numbers for the loss; zeros for examples without targets."""
        targets = part.encoded.targets
        return [0 if targets is None else targets[index] for index in part.indices]

    @classmethod
    def pad_targets(cls, targets: list[list[Any]], width: int) -> np.ndarray:
        """One array `[run, block, …]` of the loss targets of every run; those of tokens are padded to the `width` of the inputs."""
        if isinstance(targets[0][0], np.ndarray):
            short = [[width - len(row) for row in rows] for rows in targets]
            targets = [
                [np.pad(row, (0, n), constant_values=IGNORED) for row, n in zip(*both)] for both in zip(targets, short)
            ]
        return np.array(targets)

    @staticmethod
    @abstractmethod
    def loss(logits: Float[Tensor, "run block ..."], batch: Batch) -> Float[Tensor, " run"]:
        """Weighted mean loss of each run over its own examples; the examples that fill a block have weight 0."""

    @staticmethod
    def count(batch: Batch) -> Float[Tensor, " run"]:
        """Number of examples, or tokens, in each run's mean loss: the weight of a batch when gradients are accumulated."""
        return batch.weights.sum(dim=1)

    @abstractmethod
    def decide(self, logits: Float[Tensor, "example ..."], encoded: Encoded) -> list:
        """One prediction per example, in the form that the metrics expect."""

    def output_columns(
        self, logits: Float[Tensor, "example ..."], encoded: Encoded, *, probabilities: bool
    ) -> dict[str, list]:
        """Columns for `unipelt predict`: `prediction`, and `p(label)` if probabilities are asked for. Raises DataError if there are none."""
        columns = {"prediction": [self.shown(prediction) for prediction in self.decide(logits, encoded)]}
        if probabilities:
            label_probabilities = self.probabilities(logits)
            if label_probabilities is None:
                raise DataError(f"--proba: {self.kind} has no class probabilities; remove it")
            each = zip(self.labels, label_probabilities.T.tolist())
            columns |= {f"p({label})": [round(value, 6) for value in values] for label, values in each}
        return columns

    def shown(self, prediction: Any) -> Any:
        """One of the predictions that `decide` gives, as `unipelt predict` writes it."""
        return prediction

    def probabilities(self, logits: Float[Tensor, "example output"]) -> Float[Tensor, "example output"] | None:
        """The calibrated probability of each label for each example; None for a task without any."""
        return None

    def average(self, run_logits: Sequence[Float[Tensor, "example ..."]]) -> Float[Tensor, "example ..."]:
        """The logits of an ensemble: the mean of the runs' numbers, or the logits of the mean of their probabilities.

        Raises DataError for a task that has neither.
        """
        return torch.stack(list(run_logits)).mean(dim=0)

    def fit_temperature(self, logits: Float[Tensor, "example ..."], targets: Sequence[Any]) -> float | None:
        """The temperature by which logits are divided so that probabilities are calibrated on these examples; None without any."""
        return None

    def with_temperature(self, temperature: float | None) -> Self:
        """The task with this temperature for its probabilities; None: itself."""
        return self if temperature is None else replace(self, temperature=temperature)  # type: ignore[call-arg]

    def constant_prediction(self, train: Sequence[Any]) -> Any:
        """The constant baseline prediction, such as the most frequent class; None if there is none."""
        return None

    def fit_linear(
        self, features: Features, targets: Sequence[Any], folds: Sequence[int], *, balanced: bool = False
    ) -> Linear:
        """Fit a linear model of these features `[example, feature]`; its outputs take the place of logits in `decide`.

        For token classification features are `[word, feature]`, the words of all examples one after another. folds: fold of
        each example, for choosing the regularisation. balanced: every class has the same total weight.
        """
        raise NotImplementedError

    def score(self, predictions: Sequence[Any], targets: Sequence[Any]) -> dict[str, float]:
        """Every metric that the task offers, the selecting one first; others that are not finite are left out. Raises DataError."""
        names = dict.fromkeys((self.metric, *self.metrics(self.labels)))
        values = {name: METRICS[name](predictions, targets) for name in names}
        return {name: value for name, value in values.items() if name == self.metric or np.isfinite(value)}

    def to_record(self, predictions: list, targets: list) -> tuple[list, list]:
        """Predictions and targets as RunRecord stores them (JSON), from which the metrics can be computed again."""
        return predictions, targets

    def logits_to_record(self, logits: Float[Tensor, "example ..."]) -> list[list[float]] | None:
        """The logits of the classes, rounded to four digits, as a record keeps them; None if an example has no such row of
        numbers, or if there are more than MAX_LOGITS."""
        if not self.labels or logits.dim() != 2 or len(logits) * self.outputs > MAX_LOGITS:
            return None
        return [[round(logit, 4) for logit in row] for row in logits[:, : self.outputs].tolist()]

    def summary(self) -> str:
        """Kind and labels in words, for the log."""
        if not self.labels:
            return self.kind
        labels = ", ".join(self.labels)
        return f"{self.kind}, {len(self.labels)} labels: {labels[:200]}{'…' * (len(labels) > 200)}"

    def describe(self) -> dict[str, Any]:
        """JSON for a checkpoint: `kind` and every field except `training_fields`."""
        fields = {name: value for name, value in asdict(self).items() if name not in self.training_fields}
        return {"kind": self.kind, **fields, "labels": list(self.labels)}
