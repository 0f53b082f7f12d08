"""The metrics of GLUE, each in its natural unit: accuracy and F1 in 0..1, correlations in -1..1."""

import math
import warnings
from collections.abc import Callable, Sequence

from unipelt.data.task import Task
from unipelt.errors import DataError, did_you_mean

Values = Sequence[float]


def accuracy(predictions: Values, labels: Values) -> float:
    """Share of rows whose class is right."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, predictions))


def f1(predictions: Values, labels: Values) -> float:
    """2TP / (2TP + FP + FN) of class 1, GLUE's positive class; 0 without any."""
    from sklearn.metrics import f1_score

    positive = [[int(value == 1) for value in column] for column in (labels, predictions)]
    return float(f1_score(*positive, zero_division=0))


def macro_f1(predictions: Values, labels: Values) -> float:
    """Mean of the F1 of every class that occurs."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="macro", zero_division=0))


def matthews(predictions: Values, labels: Values) -> float:
    """Matthews' correlation of classes; 0 where either side is constant."""
    from sklearn.metrics import matthews_corrcoef

    if _constant(predictions) or _constant(labels):
        return 0.0
    return float(matthews_corrcoef(labels, predictions))


def spearman(predictions: Values, labels: Values) -> float:
    """Correlation of ranks; 0 where either side is constant or not finite (a run that diverged)."""
    from scipy.stats import spearmanr

    if _uncorrelatable(predictions) or _uncorrelatable(labels):
        return 0.0
    return float(spearmanr(predictions, labels).statistic)


def pearson(predictions: Values, labels: Values) -> float:
    """Correlation of values; 0 where either side is constant or not finite (a run that diverged)."""
    from scipy.stats import pearsonr

    if _uncorrelatable(predictions) or _uncorrelatable(labels):
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nearly constant: the number is inexact, and near nothing is decided by it
        value = float(pearsonr(predictions, labels).statistic)
    return value if value == value else 0.0


def rmse(predictions: Values, labels: Values) -> float:
    """Root of the mean squared error, in the labels' unit; the smaller the better."""
    return math.dist(predictions, labels) / math.sqrt(len(labels))


METRICS: dict[str, Callable[[Values, Values], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "macro_f1": macro_f1,
    "matthews": matthews,
    "spearman": spearman,
    "pearson": pearson,
}


def score(task: Task, predictions: Values, labels: Values) -> dict[str, float]:
    """The task's own metric first, then the others that its kind allows; of a regression its error too, where that is finite."""
    if task.metric not in METRICS:
        raise DataError(f"task {task.name!r} has metric {task.metric!r}; {did_you_mean(task.metric, METRICS)}")
    if len(predictions) != len(labels) or len(labels) == 0:
        raise DataError(
            f"task {task.name!r}: {len(predictions)} predictions for {len(labels)} labels; "
            "give one prediction for each of at least one row"
        )
    if task.kind == "regression":
        fitting = ["spearman", "pearson"]
    else:
        fitting = ["accuracy", "f1" if len(task.labels) == 2 else "macro_f1", "matthews"]
    found = {name: METRICS[name](predictions, labels) for name in dict.fromkeys([task.metric, *fitting])}
    if task.kind == "regression" and math.isfinite(error := rmse(predictions, labels)):
        found["rmse"] = error
    return found


def _constant(values: Values) -> bool:
    return all(value == values[0] for value in values)


def _uncorrelatable(values: Values) -> bool:
    return _constant(values) or not all(math.isfinite(value) for value in values)
