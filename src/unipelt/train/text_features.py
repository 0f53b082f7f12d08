"""What baselines read of a text: nothing, its words, or the state that the head of the frozen base reads.

A kind of features is one class and one entry of FEATURES. It is made for the training examples (`fit`), turns any examples into
numbers, and is saved as JSON and arrays. None of them is trained with the base.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from unipelt.data import Examples
from unipelt.errors import CheckpointError, UserError
from unipelt.inject.heads import find_head
from unipelt.tasks.base import Task
from unipelt.tasks.linear import Features
from unipelt.train.predictor import Predictor

WORDS = 50_000  # most words and pairs of words that are counted


@dataclass
class FrozenBase:
    """A frozen base: the state that its head reads of each text `[feature]`, or of each word `[word, feature]`."""

    predictor: Predictor
    name: str
    pooling: str
    identity: dict[str, str]
    known: dict[tuple[str, ...], Float[np.ndarray, " feature"]] = field(default_factory=dict)
    """by text: folds and seeds share their texts"""
    seconds: float = 0.0
    """time that all known texts took"""
    seconds_saved: float = 0.0
    """estimated time that texts would have taken whose states were known already"""

    @property
    def metadata(self) -> dict[str, Any]:
        """What the folder of a baseline says of its base, as JSON."""
        length = self.predictor.max_length
        return {"name": self.name, "pooling": self.pooling, "max_length": length, **self.identity}

    def __call__(self, inputs: dict[str, list]) -> list[Float[np.ndarray, "*word feature"]]:
        """The states of texts or lists of words. inputs: by name, as examples have them."""
        keys = [tuple(map(str, values)) for values in zip(*inputs.values())]
        new = {key: index for index, key in enumerate(keys) if key not in self.known}
        if new:
            began = time.monotonic()
            new_examples = Examples(inputs={name: [values[i] for i in new.values()] for name, values in inputs.items()})
            encoded = self.predictor.encode(new_examples)
            with head_inputs(self.predictor.model, self.predictor.task.pooled):
                states = [*self.predictor.logits(encoded).numpy()]
            if encoded.first_tokens:  # a word that was cut off has no state: zeros
                states = [
                    np.where(first[:, None] >= 0, tokens[first], 0)
                    for tokens, first in zip(states, encoded.first_tokens)
                ]
            self.known |= dict(zip(new, states))
            self.seconds += time.monotonic() - began
        self.seconds_saved += (len(keys) - len(new)) * self.seconds / max(1, len(self.known))
        return [self.known[key] for key in keys]


@contextmanager
def head_inputs(model: PreTrainedModel, pooled: bool) -> Iterator[None]:
    """Inside the block the model's logits are what its head reads `[batch, feature]`, or `[batch, seq, feature]` where not pooled.

    Raises UserError for a head that reads every token and then does more than one linear to it.
    """
    modules, inputs = find_head(model), list[Tensor]()

    def keep_input(module: torch.nn.Module, args: tuple) -> None:
        inputs.append(args[0])

    def return_input(module: torch.nn.Module, args: tuple, output: Tensor) -> Tensor:
        return args[0]

    def replace_logits(module: torch.nn.Module, args: tuple, output: Any) -> Any:
        first = inputs[0]
        inputs.clear()
        if pooled and first.dim() > 2:
            missing = "its head does not read one state per text, which this baseline needs; leave it out"
            raise UserError(f"{type(model).__name__}: {missing}")
        output.logits = first
        return output

    if len(modules) == 1 and pooled:  # the model may choose a token after the head, as decoders do
        hooks = [module.register_forward_hook(return_input) for module in modules.values()]
    else:
        hooks = [module.register_forward_pre_hook(keep_input) for module in modules.values()]
        hooks.append(model.register_forward_hook(replace_logits))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class TextFeatures(ABC):
    """Numbers `[example, feature]` of texts; of a task of words, `[word, feature]` of the words of all examples."""

    name: ClassVar[str]
    """of the baseline that reads them"""

    @classmethod
    def refuses(cls, task: Task) -> str:
        """Why a kind of task has no such baseline; empty where it has."""
        return (
            f"{task.kind} predicts no class or number of a whole text" if not task.pooled or task.generates_text else ""
        )

    @classmethod
    def fit(cls, train: Examples, frozen: FrozenBase | None) -> Self:
        """The features for these training examples. frozen: given where `reads_base`."""
        return cls()

    reads_base: ClassVar[bool] = False
    tunes_base: ClassVar[bool] = False
    """whether `fit` tunes the base, so that nothing that it trained on can say how sure it is"""
    pooling: ClassVar[str | None] = None
    """what it reads of the base whatever `--pooling` says"""

    @abstractmethod
    def __call__(self, examples: Examples) -> Features: ...

    @property
    def parameters(self) -> int:
        """Numbers that were fitted, beside those of the linear model."""
        return 0

    def saved(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """JSON and arrays to store, from which `load` makes the same features."""
        return {}, {}

    @classmethod
    def load(cls, metadata: dict[str, Any], arrays: dict[str, np.ndarray], frozen: FrozenBase | None) -> Self:
        """What `saved` gave. Raises CheckpointError where it is something else."""
        return cls()


class NoFeatures(TextFeatures):
    """Nothing: the most frequent class, the mean, or the classes that most examples have."""

    name = "constant"

    def __call__(self, examples: Examples) -> Features:
        return np.zeros((len(examples), 0))


@dataclass
class WordCounts(TextFeatures):
    """Words and pairs of words, weighed by TF-IDF          Spärck Jones 1972, doi:10.1108/eb026526

    (1 + ln count) × (1 + ln((1 + texts) / (1 + texts with it))), each text divided by its length. Of a pair of texts a, b:
    a, b, |a − b|, and their cosine.
    """

    vocabulary: list[str]
    weights: Float[np.ndarray, " word"]
    name: ClassVar[str] = "tfidf"

    @staticmethod
    def _vectorizer(**kwargs: Any) -> Any:
        from sklearn.feature_extraction.text import TfidfVectorizer

        pattern = r"(?u)\w+|[^\w\s]"
        return TfidfVectorizer(
            ngram_range=(1, 2), sublinear_tf=True, token_pattern=pattern, max_features=WORDS, **kwargs
        )

    @classmethod
    def fit(cls, train: Examples, frozen: FrozenBase | None) -> Self:
        vectorizer = cls._vectorizer().fit([text for texts in train.inputs.values() for text in texts])
        return cls(vectorizer.get_feature_names_out().tolist(), vectorizer.idf_)

    def __call__(self, examples: Examples) -> Features:
        from scipy.sparse import csr_matrix, hstack

        vectorizer = self._vectorizer(vocabulary=self.vocabulary)
        vectorizer.idf_ = self.weights
        matrices = [vectorizer.transform(texts) for texts in examples.inputs.values()]
        if len(matrices) == 1:
            return matrices[0]
        first, second = matrices
        return hstack([first, second, abs(first - second), csr_matrix(first.multiply(second).sum(axis=1))]).tocsr()

    def saved(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return {"vocabulary": self.vocabulary}, {"idf": self.weights}

    @classmethod
    def load(cls, metadata: dict[str, Any], arrays: dict[str, np.ndarray], frozen: FrozenBase | None) -> Self:
        words, weights = metadata.get("vocabulary"), arrays.get("idf")
        valid = isinstance(words, list) and len(set(map(str, words))) == len(words) and weights is not None
        if not valid or weights.shape != (len(words),):  # type: ignore[union-attr, arg-type]
            raise CheckpointError("its vocabulary does not fit its weights")
        return cls(words, weights)  # type: ignore[arg-type]


@dataclass
class HeadInputs(TextFeatures):
    """What the head of the frozen base reads, pooled as the base declares; of a word, the state of its first token.

    Of a pair of texts with states u, v: u, v, |u − v|, u v          Conneau & Kiela 2018, arXiv:1803.05449
    """

    frozen: FrozenBase
    name: ClassVar[str] = "probe"
    reads_base: ClassVar[bool] = True

    @classmethod
    def refuses(cls, task: Task) -> str:
        return super().refuses(task) if task.generates_text else ""

    @classmethod
    def fit(cls, train: Examples, frozen: FrozenBase | None) -> Self:
        assert frozen is not None
        return cls(frozen)

    def __call__(self, examples: Examples) -> Features:
        matrices = [np.vstack(self.frozen({name: values})) for name, values in examples.inputs.items()]
        if len(matrices) == 1:
            return matrices[0]
        first, second = matrices
        return np.hstack([first, second, np.abs(first - second), first * second])

    def saved(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return {"base": self.frozen.metadata}, {}

    @classmethod
    def load(cls, metadata: dict[str, Any], arrays: dict[str, np.ndarray], frozen: FrozenBase | None) -> Self:
        assert frozen is not None
        return cls(frozen)
