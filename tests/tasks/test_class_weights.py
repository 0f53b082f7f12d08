"""--class-weights balanced: each class counts as much in the training loss, and nothing else changes."""

from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from unipelt.data import Columns
from unipelt.errors import DataError, UserError
from unipelt.tasks.base import Task
from unipelt.tasks.batches import Batch, Encoded, Part, share
from unipelt.tasks.registry import TASKS
from unipelt.train.recipes import Recipe

COUNT, LABELS = 40, ("a", "b", "c")
DRAW = np.random.default_rng(0)
TARGETS = {
    "classification": DRAW.choice(3, COUNT, p=[0.8, 0.15, 0.05]).tolist(),
    "multi-label": (DRAW.random((COUNT, 3)) < [0.5, 0.1, 0.9]).astype(int).tolist(),
}


def task_of(kind: str, labels: tuple[str, ...] = LABELS) -> Task:
    task = TASKS[kind]
    return task(name="reviews", metric=task.metrics(labels)[0], columns=Columns(text="text"), labels=labels)


def batch_of(task: Task, targets: list) -> Batch:
    encoded = Encoded({"input_ids": [np.zeros(1, dtype=int)] * len(targets)}, targets, 1)
    part = Part(task, encoded, range(len(targets)))
    weights = torch.tensor([task.example_weights(part) or [1.0] * len(targets)])
    read = torch.from_numpy(task.pad_targets([task.loss_targets(part)], 1))
    return Batch({}, read, weights, torch.tensor([task.outputs]))


@pytest.mark.parametrize("kind", TARGETS)
def test_every_class_counts_as_much(kind: str):
    """The gradient of all examples at equal logits: without weights towards the larger class, with them towards none."""
    task, targets = task_of(kind), TARGETS[kind]
    for one, balanced in ((task, False), (task.with_class_weights(targets), True)):
        logits = torch.zeros(1, COUNT, 3, requires_grad=True)
        one.loss(logits, batch_of(one, targets)).sum().backward()
        pull = logits.grad.sum(dim=(0, 1))  # type: ignore[union-attr]
        assert (pull.abs() < 1e-6).all() == balanced, pull
        assert one.describe() == task.describe(), "of a checkpoint, the training loss is no part"


@pytest.mark.parametrize(
    "rows", [slice(None), slice(0, 1)], ids=["all", "one of the largest class, which weighs below 1"]
)
def test_the_loss_is_torch_s_own_with_these_weights(rows: slice):
    targets = TARGETS["classification"]
    task, counts = task_of("classification").with_class_weights(targets), Counter(targets)
    logits = torch.randn(1, COUNT, 3, generator=torch.Generator().manual_seed(0))
    weight = torch.tensor([COUNT / (3 * counts[label]) for label in range(3)])
    expected = F.cross_entropy(logits[0, rows], torch.tensor(targets[rows]), weight=weight)
    torch.testing.assert_close(task.loss(logits[:, rows], batch_of(task, targets[rows]))[0], expected)


def test_accumulated_forwards_of_one_example_have_the_gradient_of_one_forward():
    """Each forward's share is its part of the weights, however small they are."""
    targets = sorted(TARGETS["classification"])[:20]
    task, logits = task_of("classification").with_class_weights(TARGETS["classification"]), torch.randn(1, 20, 3)
    batches = [batch_of(task, [target]) for target in targets]
    counts = torch.stack([task.count(batch) for batch in batches])
    shares = share(counts, counts.sum(dim=0))
    parts = [task.loss(logits[:, i : i + 1], batch) * shares[i] for i, batch in enumerate(batches)]
    torch.testing.assert_close(sum(parts), task.loss(logits, batch_of(task, targets)))


def test_other_kinds_and_words_are_refused():
    for kind in ("regression", "token-classification"):
        with pytest.raises(DataError, match=f"--class-weights balanced: reviews is {kind}, without classes to weigh"):
            task_of(kind, LABELS if kind != "regression" else ()).with_class_weights([])
    with pytest.raises(UserError, match="--class-weights equal: expected balanced or none"):
        Recipe(class_weights="equal")
