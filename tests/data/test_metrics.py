"""Metrics: their definitions, written out again, and what a run that failed scores."""

import math
from random import Random

import numpy
import pytest

from unipelt.data import METRICS, Task, score
from unipelt.errors import DataError

CLASSES = Task(name="made", kind="classification", labels=("no", "yes"), metric="f1", pair=False)
NUMBERS = Task(name="made", kind="regression", labels=(), metric="spearman", pair=False)
stream = Random(0)
LABELS = [stream.randrange(2) for _ in range(200)]
GUESSES = [label if stream.random() < 0.7 else 1 - label for label in LABELS]


def table():
    pairs = list(zip(GUESSES, LABELS))
    return [pairs.count(pair) for pair in ((1, 1), (1, 0), (0, 1), (0, 0))]


def test_two_classes_follow_their_definitions():
    both, over, under, neither = table()
    expected = {
        "accuracy": (both + neither) / 200,
        "f1": 2 * both / (2 * both + over + under),
        "macro_f1": (2 * both / (2 * both + over + under) + 2 * neither / (2 * neither + over + under)) / 2,
        "matthews": (both * neither - over * under)
        / math.sqrt((both + over) * (both + under) * (neither + over) * (neither + under)),
    }
    for name, value in expected.items():
        assert METRICS[name](GUESSES, LABELS) == pytest.approx(value)


def test_spearman_is_pearson_of_ranks():
    values, others = [stream.random() for _ in range(50)], [stream.random() for _ in range(50)]
    ranks = [[float(sorted(column).index(value)) for value in column] for column in (values, others)]
    assert METRICS["spearman"](values, others) == pytest.approx(METRICS["pearson"](*ranks))
    assert METRICS["pearson"](values, others) == pytest.approx(numpy.corrcoef(values, others)[0, 1])


@pytest.mark.parametrize("name", METRICS)
def test_right_answers_score_one(name):
    assert METRICS[name](LABELS, LABELS) == pytest.approx(1.0)


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
    assert set(score(NUMBERS, [bad, 1.0, 2.0], [0.0, 1.0, 2.0]).values()) == {0.0}


def test_nearly_constant_predictions_raise_no_warning():
    found = score(NUMBERS, [1.0, 1.0 + 1e-16, 1.0 + 3e-16], [0.0, 1.0, 2.0])
    assert all(-1 <= found[name] <= 1 for name in ("spearman", "pearson"))


def test_a_regressions_error_is_in_the_labels_unit():
    assert score(NUMBERS, [12.0, 16.0, 40.0], [15.0, 20.0, 40.0])["rmse"] == pytest.approx(math.sqrt(25 / 3))
    assert "rmse" not in score(NUMBERS, [1e308, 2.0], [-1e308, 1.0])


def test_the_main_metric_comes_first():
    assert next(iter(score(CLASSES, GUESSES, LABELS))) == "f1"
    assert next(iter(score(NUMBERS, [0.0, 1.0], [0.0, 1.0]))) == "spearman"
    three = Task(name="made", kind="classification", labels=("a", "b", "c"), metric="accuracy", pair=False)
    assert list(score(three, [0, 1, 2], [0, 1, 1])) == ["accuracy", "macro_f1", "matthews"]


def test_every_score_is_a_plain_float():
    for task, values in ((CLASSES, LABELS), (NUMBERS, [float(value) for value in LABELS])):
        scores = score(task, numpy.array(values), numpy.array(values))
        assert all(type(value) is float for value in scores.values())


def test_mistakes():
    with pytest.raises(DataError, match="2 predictions for 3 labels"):
        score(CLASSES, [0, 1], [0, 1, 1])
    with pytest.raises(DataError, match="0 predictions for 0 labels"):
        score(CLASSES, [], [])
    with pytest.raises(DataError, match="did you mean 'accuracy'"):
        score(Task(name="made", kind="classification", labels=("a", "b"), metric="acuracy", pair=False), [0], [0])
