"""SetFit: the base tuned so that texts of one class come near to each other          Tunstall et al. 2022, arXiv:2209.11055

The package `setfit` tunes all weights of the base on pairs of texts; a logistic regression then reads its states, as the probe
reads those of the base as it is. Its folder holds the tuned weights in safetensors.
"""

import logging
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, ClassVar, Self

import numpy as np
import torch
from transformers import PreTrainedModel

from unipelt.checkpoint.bases import base_path, quiet
from unipelt.data import Examples
from unipelt.errors import CheckpointError
from unipelt.tasks.base import Task
from unipelt.train.text_features import FrozenBase, HeadInputs, TextFeatures

PAIRS = 40  # of each text, half of them of one class: the paper's R = 20
BATCH = 16  # pairs of a step, the package's default
RATE = 2e-5  # peak learning rate, the package's default
MOST_STEPS = 100  # with 1,000 texts the paper's pairs would take 2,500
BODY = "body."  # of the names of the tuned weights in its file


@dataclass
class TunedStates(HeadInputs):
    """What the head reads of a base that was tuned on pairs of the training examples."""

    name: ClassVar[str] = "setfit"
    pooling: ClassVar[str | None] = "mean"
    tunes_base: ClassVar[bool] = True

    @classmethod
    def refuses(cls, task: Task) -> str:
        if find_spec("setfit") is None:
            return "it needs another package: pip install 'unipelt[setfit]'"
        if task.columns.text_pair:
            return "it reads single texts, no pairs"
        return TextFeatures.refuses(task) or ("" if task.labels else f"{task.kind} has no classes to tell apart")

    @classmethod
    def fit(cls, train: Examples, frozen: FrozenBase | None) -> Self:
        """Tune the base from its file, and put the tuned weights into the model of `frozen`."""
        assert frozen is not None
        _load_weights(frozen.predictor.model, _tune(frozen, next(iter(train.inputs.values())), train.targets or []))
        return cls(replace(frozen, known={}, seconds=0.0))

    @property
    def parameters(self) -> int:
        return sum(weight.numel() for weight in self.frozen.predictor.model.base_model.parameters())

    def saved(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        metadata, _ = super().saved()
        return metadata, {BODY + name: value.numpy() for name, value in _weights(self.frozen.predictor.model).items()}

    @classmethod
    def load(cls, metadata: dict[str, Any], arrays: dict[str, np.ndarray], frozen: FrozenBase | None) -> Self:
        assert frozen is not None
        weights = {
            name.removeprefix(BODY): torch.from_numpy(array) for name, array in arrays.items() if name.startswith(BODY)
        }
        _load_weights(frozen.predictor.model, weights)
        return cls(frozen)


def _weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The weights of a base by name, without its pooler, which a mean does not read."""
    state = model.base_model.state_dict()
    return {name: value.detach().cpu().contiguous() for name, value in state.items() if "pooler" not in name.split(".")}


def _load_weights(model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> None:
    """Give the base these weights. Raises CheckpointError where they are not all of its own."""
    shapes = [{name: weight.shape for name, weight in named.items()} for named in (_weights(model), weights)]
    if shapes[0] != shapes[1]:
        raise CheckpointError("its weights are not those of the base that it names; train again")
    model.base_model.load_state_dict(weights, strict=False)


def _tune(frozen: FrozenBase, texts: list[str], targets: list[Any]) -> dict[str, torch.Tensor]:
    """The weights of the base after contrastive training on pairs of these texts."""
    import datasets
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from setfit import SetFitModel, Trainer, TrainingArguments
    from transformers import PrinterCallback

    device = next(frozen.predictor.model.parameters()).device
    torch.manual_seed(0)
    steps = min(MOST_STEPS, math.ceil(PAIRS * len(texts) / BATCH))
    with quiet(), _no_bars(), tempfile.TemporaryDirectory() as folder:
        body = Transformer(base_path(frozen.name), max_seq_length=frozen.predictor.max_length)
        pooling = Pooling(body.get_embedding_dimension(), "mean")
        sentences = SentenceTransformer(modules=[body, pooling], device=str(device))
        strategy = "one-vs-rest" if isinstance(targets[0], list) else None
        model = SetFitModel(model_body=sentences, multi_target_strategy=strategy)
        arguments = TrainingArguments(
            output_dir=folder, batch_size=BATCH, max_steps=steps, body_learning_rate=RATE, max_length=frozen.predictor.max_length, report_to="none", seed=0,
            save_strategy="no", logging_strategy="no", show_progress_bar=False,
        )  # fmt: skip
        trainer = Trainer(model, arguments, train_dataset=datasets.Dataset.from_dict({"text": texts, "label": targets}))
        trainer.st_trainer.remove_callback(PrinterCallback)
        trainer.st_trainer.args.dataloader_pin_memory = device.type == "cuda"
        trainer.train_embeddings(texts, targets, args=arguments)
    return _weights(body.auto_model)


@contextmanager
def _no_bars() -> Iterator[None]:
    """Inside the block neither setfit nor datasets prints what it does."""
    import datasets

    hidden, logger = datasets.are_progress_bars_disabled(), logging.getLogger("setfit")
    level = logger.level
    datasets.disable_progress_bars()
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        if not hidden:
            datasets.enable_progress_bars()
