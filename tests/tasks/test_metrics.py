"""Metrics: agreement with libraries, range and direction, and what a run that failed scores."""

import math
from dataclasses import replace
from random import Random

import numpy
import pytest
import scipy.stats
import sklearn.metrics

from unipelt.data import Columns
from unipelt.errors import DataError
from unipelt.tasks.classification import Classification
from unipelt.tasks.metrics import METRICS
from unipelt.tasks.regression import Regression
from unipelt.tasks.token_classification import TokenClassification

COLUMNS = Columns(text="text")
CLASSES = Classification(name="made", labels=("no", "yes"), metric="f1", columns=COLUMNS)
NUMBERS = Regression(name="made", metric="spearman", columns=COLUMNS)
stream = Random(0)
LABELS = [stream.randrange(2) for _ in range(200)]
GUESSES = [label if stream.random() < 0.7 else 1 - label for label in LABELS]


def answers(kind: str) -> tuple[list, list, list]:
    """Targets, predictions that are right, and some that are not."""
    if kind == "texts":
        texts = [f"this text has the number {label} and the place {i % 9}" for i, label in enumerate(LABELS)]
        return texts, texts, [f"this text has the number {guess} at last" for guess in GUESSES]
    if kind == "tags":
        tags = [[["O", "B-A"][label], "I-A"] for label in LABELS]
        return tags, tags, [[["O", "B-A"][guess], "O"] for guess in GUESSES]
    if kind == "losses":
        return [3] * 200, [0.0] * 200, [1.0 + guess for guess in GUESSES]
    return LABELS, LABELS, GUESSES


@pytest.mark.parametrize("name", METRICS)
def test_right_answers_score_best(name):
    metric = METRICS[name]
    targets, right, guesses = answers(metric.of)
    best = metric(right, targets)
    assert best == pytest.approx(metric.high if metric.higher_is_better else metric.low)
    assert metric.low <= metric(guesses, targets) <= metric.high
    assert metric.better(best, metric(guesses, targets))


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.of != "tags"])
def test_many_samples_at_once_are_the_metric_of_each(name):
    """Classes, numbers with ties, constants, a run that diverged, texts; the loop that a metric without a batch form takes."""
    metric, draw = METRICS[name], numpy.random.default_rng(0)
    samples = draw.integers(0, 60, (20, 60))
    if metric.of in ("texts", "losses"):
        targets, *guesses = (numpy.array(of[:60]) for of in answers(metric.of))
        samples = samples[:3]
    else:
        targets = draw.integers(0, 2 if name == "f1" else 3, 60).astype(float)
        guesses = [targets, numpy.ones(60), draw.integers(0, 3, 60).astype(float), targets + draw.random(60).round(1)]
        if metric.of == "numbers":
            guesses.append(numpy.where(numpy.arange(60) == 7, math.nan, targets))
    expected = [[metric(one[rows].tolist(), targets[rows].tolist()) for rows in samples] for one in guesses]
    for form in (metric, replace(metric, batched=False, averages=False)):
        found = form.sampled(numpy.stack(guesses), targets, samples)
        numpy.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize(
    "name", ["accuracy", "f1", "macro_f1", "micro_f1", "matthews", "pearson", "spearman", "rmse", "mae"]
)
def test_each_agrees_with_a_library(name):
    draw = numpy.random.default_rng(1)
    classes = draw.integers(0, 2 if name == "f1" else 4, (2, 90))
    numbers = draw.random((2, 90)).round(1) * 5
    peers = {
        "accuracy": lambda p, t: sklearn.metrics.accuracy_score(t, p),
        "f1": lambda p, t: sklearn.metrics.f1_score(t, p),
        "macro_f1": lambda p, t: sklearn.metrics.f1_score(t, p, average="macro"),
        "micro_f1": lambda p, t: sklearn.metrics.f1_score(t, p, average="micro"),
        "matthews": lambda p, t: sklearn.metrics.matthews_corrcoef(t, p),
        "pearson": lambda p, t: scipy.stats.pearsonr(p, t).statistic,
        "spearman": lambda p, t: scipy.stats.spearmanr(p, t).statistic,
        "rmse": lambda p, t: sklearn.metrics.root_mean_squared_error(t, p),
        "mae": lambda p, t: sklearn.metrics.mean_absolute_error(t, p),
    }
    predictions, targets = numbers if name in ("pearson", "spearman", "rmse", "mae") else classes
    assert METRICS[name](predictions, targets) == pytest.approx(peers[name](predictions, targets))


def test_examples_with_several_labels():
    targets, predictions = numpy.random.default_rng(2).integers(0, 2, (2, 40, 5))
    assert METRICS["accuracy"](predictions, targets) == sklearn.metrics.accuracy_score(targets, predictions)
    for name in ("micro_f1", "macro_f1"):
        expected = sklearn.metrics.f1_score(targets, predictions, average=name[:5])
        assert METRICS[name](predictions.tolist(), targets.tolist()) == pytest.approx(expected)
    with pytest.raises(DataError, match="needs one class per example; take accuracy, micro_f1 or macro_f1"):
        METRICS["matthews"](predictions, targets)


def test_tags_without_a_prefix_are_judged_word_by_word():
    metrics = TokenClassification.metrics
    for labels in (
        ["O", "B-PER", "I-PER"],
        ["S-A", "B-A", "I-A", "E-A", "O"],
        ["B", "I", "O"],
        ["B-PER", "L-PER", "O"],
    ):
        assert metrics(labels) == ("span_f1", "tag_accuracy")
    for labels in (["N", "V"], ["NB", "VB"], ["NOUN", "O"], ["L", "O"]):
        assert metrics(labels) == ("tag_accuracy",)
    accuracy = METRICS["tag_accuracy"]
    assert accuracy([["VB", "VB"], ["N"]], [["NB", "NB"], ["N"]]) == pytest.approx(1 / 3), "sentences of unequal length"
    assert accuracy([["V"]], [["N"]]) == 0 and accuracy([["N"], []], [["N"], []]) == 1


def test_spans_are_counted_alike_in_every_scheme_of_tags():
    targets = ["B-A", "I-A", "I-A", "O", "B-B", "B-B", "I-B"], ["O", "B-A"]
    predictions = ["B-A", "I-A", "I-A", "O", "B-B", "I-B", "I-B"], ["B-A", "O"]
    bioes = (["B-A", "I-A", "E-A", "O", "S-B", "B-B", "E-B"], ["O", "S-A"]), (["B-A", "I-A", "E-A", "O", "B-B", "I-B", "E-B"], ["S-A", "O"])  # fmt: skip
    for scheme in ({}, {"E": "L", "S": "U"}, {"I": "M"}):
        actual, said = ([[scheme.get(tag[0], tag[0]) + tag[1:] for tag in tags] for tags in part] for part in bioes)
        assert METRICS["span_f1"](said, actual) == METRICS["span_f1"](predictions, targets) == pytest.approx(2 / 7)


@pytest.mark.parametrize("name", ["matthews", "spearman", "pearson"])
@pytest.mark.parametrize("kind", [list, numpy.array])
def test_constants_correlate_with_nothing(name, kind):
    assert METRICS[name](kind([1] * 200), kind(LABELS)) == 0.0
    assert METRICS[name](kind(LABELS), kind([0] * 200)) == 0.0
    assert METRICS[name](kind([1] * 200), kind([1] * 200)) == 0.0


def test_f1_without_a_positive_is_zero():
    assert METRICS["f1"]([0, 0], [0, 0]) == 0.0
    assert METRICS["f1"]([0, 0], [1, 0]) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_run_that_diverged_scores_zero(bad):
    assert NUMBERS.score([bad, 1.0, 2.0], [0.0, 1.0, 2.0]) == {"spearman": 0.0, "pearson": 0.0}


def test_nearly_constant_predictions_raise_no_warning():
    found = NUMBERS.score([1.0, 1.0 + 1e-16, 1.0 + 3e-16], [0.0, 1.0, 2.0])
    assert all(-1 <= found[name] <= 1 for name in ("spearman", "pearson"))


def test_a_regressions_error_is_in_the_labels_unit():
    assert NUMBERS.score([12.0, 16.0, 40.0], [15.0, 20.0, 40.0])["rmse"] == pytest.approx(math.sqrt(25 / 3))
    assert "rmse" not in NUMBERS.score([1e308, 2.0], [-1e308, 1.0])


def test_the_main_metric_comes_first():
    assert next(iter(CLASSES.score(GUESSES, LABELS))) == "f1"
    assert next(iter(NUMBERS.score([0.0, 1.0], [0.0, 1.0]))) == "spearman"
    three = Classification(name="made", labels=("a", "b", "c"), metric="accuracy", columns=COLUMNS)
    assert list(three.score([0, 1, 2], [0, 1, 1])) == ["accuracy", "macro_f1", "matthews"]


def test_shares_and_correlations_stand_times_a_hundred_and_nothing_else_does():
    """ROUGE, BLEU and chrF are in 0 to 100 already, errors in a unit of their own."""
    own_unit = {"rmse", "mae", "rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "chrf", "loss", "perplexity"}
    assert {name: metric.display_factor for name, metric in METRICS.items()} == {
        name: 1.0 if name in own_unit else 100.0 for name in METRICS
    }


def test_every_score_is_a_plain_float():
    for task, values in ((CLASSES, LABELS), (NUMBERS, [float(value) for value in LABELS])):
        scores = task.score(numpy.array(values), numpy.array(values))
        assert all(type(value) is float for value in scores.values())


def test_mistakes():
    with pytest.raises(DataError, match="2 predictions for 3 labels"):
        CLASSES.score([0, 1], [0, 1, 1])
    with pytest.raises(DataError, match="0 predictions for 0 labels"):
        CLASSES.score([], [])
