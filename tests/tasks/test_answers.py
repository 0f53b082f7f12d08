"""Answers of a task that no head gives: constant ones, means over runs, linear models, and words that were cut off."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import expit

from unipelt.data import Columns
from unipelt.tasks.base import Task
from unipelt.tasks.batches import IGNORED, Batch, Encoded
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


def test_several_labels_are_those_more_probable_than_not():
    """Whatever the temperature, which moves no probability across one half."""
    logits, empty = torch.tensor([[1e-6, -1e-6, 0.0, 9.0]]), Encoded({"input_ids": []}, None, 0)
    for temperature in (0.1, 10.0):
        task = replace(made("multi-label"), temperature=temperature)
        assert task.decide(logits, empty) == (task.probabilities(logits.double()) > 0.5).int().tolist() == [[1, 0, 0]]


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


def test_a_number_is_shown_with_six_digits_in_the_unit_of_the_targets():
    task = replace(made("regression", ()), mean=3.0, deviation=2.0)
    encoded = Encoded({"input_ids": []}, None, 0)
    found = task.output_columns(torch.tensor([[0.12345678]]), encoded, probabilities=False)
    assert found == {"prediction": [3.246914]}


def test_every_word_counts_as_much_in_a_loss_of_words():
    """However many tokens stand beside them, in an example of one word and in one of two."""
    logits = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[[0, IGNORED, 2], [IGNORED, 1, IGNORED]]])
    task, each = made("token-classification"), []
    for example, token, tag in ((0, 0, 0), (0, 2, 2), (1, 1, 1)):
        each.append(-logits[0, example, token, :3].log_softmax(dim=-1)[tag])  # of its own three tags
    for weights, own in (([1.0, 1.0], each), ([1.0, 0.0], each[:2])):
        batch = Batch({}, targets, torch.tensor([weights]), torch.tensor([3]))
        torch.testing.assert_close(task.loss(logits, batch), torch.stack(own).mean()[None])
        assert task.count(batch).tolist() == [len(own)]


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
