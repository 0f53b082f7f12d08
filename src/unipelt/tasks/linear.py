"""Linear models on features that do not train, by scikit-learn. Cross-validation chooses how strongly they are regularised."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

STRENGTHS = tuple(10.0**power for power in range(-2, 5))
"""C of a logistic regression, 1 / α of a ridge regression, on features whose squares sum to about 1"""
MOST = 2_000  # examples by which C is chosen
Features = Any  # float `[example, feature]`: an array, or a sparse matrix of scipy


@dataclass(frozen=True)
class Linear:
    """y = W x + b"""

    weight: Float[np.ndarray, "output feature"]
    bias: Float[np.ndarray, " output"]

    def __call__(self, features: Features) -> Float[np.ndarray, "example output"]:
        return np.asarray(features @ self.weight.T) + self.bias


def logistic(
    features: Features, classes: Sequence[int], outputs: int, folds: Sequence[int], *, balanced: bool = False
) -> Linear:
    """Multinomial logistic regression; C is the one with the least log loss over the folds.

    classes: index of each example's class, of `outputs` many. folds: of each example. balanced: each class counts as much.
    A class that does not occur is never predicted.
    """
    y = np.asarray(classes)
    kinds, counts = np.unique(y, return_counts=True)
    if len(kinds) < 2 or not features.shape[1]:
        shares = np.bincount(y, minlength=outputs) / len(y)
        return Linear(np.zeros((outputs, features.shape[1])), np.log(np.maximum(shares, 1e-6)))
    x, mean, deviation = _scaled(features)
    few = np.isin(y, kinds[counts < len(set(folds))])  # of these classes every example trains

    def error(strength: float, train: NDArray[Any], held: NDArray[Any]) -> float:
        held, train = held & ~few, train | few
        if not held.any() or len(np.unique(y[train])) < 2:
            return 0.0
        model = fit(strength, train)
        own = {kind: place for place, kind in enumerate(model.classes_)}
        chances = model.predict_proba(x[held])
        right = [row[own[kind]] if kind in own else 0.0 for row, kind in zip(chances, y[held])]
        return float(-np.log(np.maximum(right, 1e-6)).sum())

    def fit(strength: float, rows: NDArray[Any]) -> Any:
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(C=strength, max_iter=500, class_weight="balanced" if balanced else None)
        with _quiet():
            return model.fit(x[rows], y[rows])

    model = fit(_best(error, folds), np.ones(len(y), bool))
    weight, bias = np.zeros((outputs, x.shape[1])), np.full(outputs, float(np.min(model.intercept_)) - 30.0)
    if len(kinds) == 2:  # one row says both
        weight[kinds], bias[kinds] = np.outer([-0.5, 0.5], model.coef_[0]), [-0.5, 0.5] * model.intercept_
    else:
        weight[kinds], bias[kinds] = model.coef_, model.intercept_
    return _unscaled(weight, bias, mean, deviation)


def ridge(features: Features, targets: Sequence[float], folds: Sequence[int]) -> Linear:
    """Ridge regression; α is the one with the least squared error over the folds."""
    y = np.asarray(targets, dtype=np.float64)
    if not features.shape[1]:
        return Linear(np.zeros((1, 0)), np.array([y.mean()]))
    x, mean, deviation = _scaled(features)

    def fit(strength: float, rows: NDArray[Any]) -> Any:
        from sklearn.linear_model import Ridge

        return Ridge(alpha=1 / strength).fit(x[rows], y[rows])

    def error(strength: float, train: NDArray[Any], held: NDArray[Any]) -> float:
        return float(((fit(strength, train).predict(x[held]) - y[held]) ** 2).sum())

    model = fit(_best(error, folds), np.ones(len(y), bool))
    return _unscaled(model.coef_[None], np.array([model.intercept_]), mean, deviation)


def _best(error: Callable[[float, NDArray[Any], NDArray[Any]], float], folds: Sequence[int]) -> float:
    """The strength with the least error over the held-out folds of the first MOST examples."""
    numbers = np.asarray(folds)
    some = np.arange(len(numbers)) < MOST
    sums = {
        strength: sum(error(strength, some & (numbers != fold), some & (numbers == fold)) for fold in set(folds))
        for strength in STRENGTHS
    }
    return min(sums, key=lambda strength: (sums[strength], strength))


def _scaled(features: Features) -> tuple[Features, NDArray[Any], NDArray[Any]]:
    """Features with mean 0 whose squares sum to about 1, the mean, and what they were divided by; sparse ones as they are."""
    width = features.shape[1]
    if not isinstance(features, np.ndarray):
        return features, np.zeros(width), np.ones(width)
    mean, deviation = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    deviation = np.where(deviation > 1e-9, deviation, 1.0) * width**0.5
    return (features - mean) / deviation, mean, deviation


def _unscaled(weight: NDArray[Any], bias: NDArray[Any], mean: NDArray[Any], deviation: NDArray[Any]) -> Linear:
    weight = weight / deviation
    return Linear(weight, bias - weight @ mean)


@contextmanager
def _quiet() -> Iterator[None]:
    """scikit-learn warns where the solver would take more iterations than it may: what it has then is used."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield
