"""Answers of a task that no head gives: constant ones, means over runs, linear models, and words that were cut off."""

import numpy as np
import pytest
import torch
from scipy.special import expit

from unipelt.data import Columns
from unipelt.tasks.base import Task
from unipelt.tasks.batches import Encoded
from unipelt.tasks.linear import logistic
from unipelt.tasks.registry import TASKS


def made(kind: str, labels: tuple[str, ...] = ("a", "b", "c")) -> Task:
    columns = Columns(text="text")
    return TASKS[kind](name="made", metric=TASKS[kind].metrics(labels)[0], columns=columns, labels=labels)


def test_the_constant_answer_is_the_one_that_most_examples_have():
    assert made("classification").constant_prediction([2, 0, 2, 1]) == 2
    assert made("multi-label").constant_prediction([[1, 0, 1], [1, 1, 0], [0, 0, 0], [1, 0, 1]]) == [1, 0, 0], (
        "half of them is not most"
    )
    assert made("regression", ()).constant_prediction([1.0, 2.0, 6.0]) == 3


def test_the_answer_of_several_runs_is_the_mean_of_their_probabilities():
    """Of each run's own, however large its logits; outputs beyond the task's do not count."""
    runs = [torch.randn(7, 4, generator=torch.Generator().manual_seed(seed)) * 3 + seed for seed in range(3)]
    one_class, several = made("classification"), made("multi-label")
    for task, of in ((one_class, lambda logits: logits.softmax(dim=-1)), (several, torch.sigmoid)):
        expected = torch.stack([of(logits[:, :3].double()) for logits in runs]).mean(dim=0)
        torch.testing.assert_close(of(task.average(runs)), expected)


def test_a_head_without_a_bias_is_trained_on_targets_around_zero_as_they_stand():
    task = made("regression", ())
    assert task.fit([300.0, 400.0], bias=False).target_scale == pytest.approx((0.0, (25e4 / 2) ** 0.5))
    assert task.fit([300.0, 400.0], bias=True).target_scale == (350.0, 50.0)


def test_a_word_that_was_cut_off_is_outside_of_every_span():
    encoded = Encoded({"input_ids": [np.zeros(2, dtype=int)]}, None, 2, first_tokens=[np.array([0, 1, -1])])
    logits = torch.tensor([[[5.0, 0.0], [0.0, 5.0]]])
    assert made("token-classification", ("B-A", "O")).decide(logits, encoded) == [["B-A", "O", "O"]]
    assert made("token-classification", ("N", "V")).decide(logits, encoded) == [["N", "V", "N"]]


def test_each_of_several_labels_has_a_logistic_regression_of_its_own():
    draw = np.random.default_rng(0)
    x, folds = draw.normal(size=(60, 4)), (np.arange(60) % 3).tolist()
    targets = (x[:, :3] + draw.normal(size=(60, 3)) > 0.5).astype(int)
    found = made("multi-label").fit_linear(x, targets.tolist(), folds)
    for label in range(3):
        alone = logistic(x, targets[:, label].tolist(), 2, folds)
        for ours, its in ((found(x), alone(x)), (found.held_out, alone.held_out)):
            np.testing.assert_allclose(expit(ours[:, label]), expit(its[:, 1] - its[:, 0]), atol=1e-9)


def test_the_words_of_a_sentence_are_held_out_together():
    draw = np.random.default_rng(0)
    lengths, task = [1, 4, 2, 3, 5, 3], made("token-classification", ("N", "V"))
    words = [fold for fold, length in zip([0, 1, 2, 0, 1, 2], lengths) for _ in range(length)]
    x, tags = draw.normal(size=(len(words), 3)), draw.integers(0, 2, len(words))
    sentences = [[("N", "V")[tag] for tag in part] for part in np.split(tags, np.cumsum(lengths)[:-1])]
    found = task.fit_linear(x, sentences, [0, 1, 2, 0, 1, 2])
    np.testing.assert_allclose(found.held_out, logistic(x, tags.tolist(), 2, words).held_out)
