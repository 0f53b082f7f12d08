"""Linear models on features that do not train, by scikit-learn. Cross-validation chooses how strongly they are regularised."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from unipelt.tasks.calibration import surprise

STRENGTHS = tuple(10.0**power for power in range(-2, 5))
"""C of a logistic regression, 1 / α of a ridge regression, on features whose squares sum to about 1"""
MAX_SELECTION = 2_000  # examples by which C is chosen
ABSENT_LOGIT = -30.0  # logit of a class without training examples, below the others
MAX_LOSS = 6 * np.log(10)  # largest log loss of one example
ROUNDING = 1e-10  # share of the largest square below which a direction is rounding
Array = NDArray[np.float64]
Features = Any  # float `[example, feature]`: an array, or a sparse matrix of scipy


@dataclass(frozen=True)
class Linear:
    """y = W x + b"""

    weight: Float[np.ndarray, "output feature"]
    bias: Float[np.ndarray, " output"]
    held_out: Float[np.ndarray, "example output"] | None = None
    """y of the first MAX_SELECTION training examples by a model that was fitted without their fold; NaN where there is none"""

    def __call__(self, features: Features) -> Float[np.ndarray, "example output"]:
        return np.asarray(features @ self.weight.T) + self.bias


Fit = Callable[[Features, float, NDArray[np.intp]], Linear]
"""from features, the strength, and the examples to train on"""


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

    def fit(x: Features, strength: float, examples: NDArray[np.intp]) -> Linear:
        from sklearn.linear_model import LogisticRegression

        present = np.unique(y[examples])
        weight, bias = np.zeros((outputs, x.shape[1])), np.full(outputs, ABSENT_LOGIT)
        bias[present] = 0
        if len(present) > 1:
            model = LogisticRegression(C=strength, max_iter=500, class_weight="balanced" if balanced else None)
            model.fit(x[examples], y[examples])
            bias += float(np.min(model.intercept_))
            if len(present) == 2:  # one row says both
                weight[present], bias[present] = np.outer([-0.5, 0.5], model.coef_[0]), [-0.5, 0.5] * model.intercept_
            else:
                weight[present], bias[present] = model.coef_, model.intercept_
        return Linear(weight, bias)

    def error(predictions: Array, held: NDArray[np.intp]) -> float:
        return float(np.minimum(surprise(predictions, y[held]), MAX_LOSS).sum())

    rare = np.isin(y, kinds[counts < len(set(folds))])
    with _single_threaded():
        return _fit_with_best_strength(fit, error, features, folds, rare)


def ridge(features: Features, targets: Sequence[float], folds: Sequence[int]) -> Linear:
    """Ridge regression; α is the one with the least squared error over the folds."""
    y = np.asarray(targets, dtype=np.float64)
    if not features.shape[1]:
        return Linear(np.zeros((1, 0)), np.array([y.mean()]))

    def fit(x: Features, strength: float, examples: NDArray[np.intp]) -> Linear:
        from sklearn.linear_model import Ridge

        model = Ridge(alpha=1 / strength).fit(x[examples], y[examples])
        return Linear(model.coef_[None], np.array([model.intercept_]))

    def error(predictions: Array, held: NDArray[np.intp]) -> float:
        return float(((predictions[:, 0] - y[held]) ** 2).sum())

    with _single_threaded():
        return _fit_with_best_strength(fit, error, features, folds, np.zeros(len(y), bool))


def _fit_with_best_strength(
    fit: Fit, error: Callable[[Array, NDArray[np.intp]], float], features: Features, folds: Sequence[int],
    rare: NDArray[np.bool_],
) -> Linear:  # fmt: skip
    """The model of all examples, with the strength of least error over the held-out folds of the first MAX_SELECTION.

    error: of the predictions for held-out examples, and the indices of these. rare: examples that train whatever the fold.
    """
    scaled, mean, deviation = _scaled(features)
    few, back = coordinates(scaled[:MAX_SELECTION])
    numbers, rare = np.asarray(folds)[:MAX_SELECTION], rare[:MAX_SELECTION]
    parts = [((numbers != fold) | rare, (numbers == fold) & ~rare) for fold in sorted(set(numbers))]
    parts = [(train, held) for train, held in parts if train.any() and held.any()]
    candidates: list[tuple[float, float, Array | None]] = []
    for strength in STRENGTHS:
        total, held_out = 0.0, None
        for train, held in parts:
            predictions = fit(few, strength, np.flatnonzero(train))(few[held])
            held_out = np.full((len(numbers), predictions.shape[1]), np.nan) if held_out is None else held_out
            held_out[held], total = predictions, total + error(predictions, np.flatnonzero(held))
        candidates.append((total, strength, held_out))
    _, strength, held_out = min(candidates, key=lambda candidate: candidate[:2])
    every = np.arange(scaled.shape[0])
    if len(every) > MAX_SELECTION:
        model = fit(scaled, strength, every)
    else:
        model = fit(few, strength, every)
        model = Linear(back(model.weight), model.bias)
    weight = model.weight / deviation
    return Linear(weight, model.bias - weight @ mean, held_out)


def coordinates(x: Features) -> tuple[Features, Callable[[Array], Array]]:
    """Features `[example, example or fewer]` that say as much to a linear model whose squared weights are regularised, and a
    function from its weights `[output, …]` to those for x. Features that are no more than the examples stay as they are.

    Such a model depends on x through x xᵀ = U s² Uᵀ alone (representer theorem: Schölkopf et al. 2001,
    doi:10.1007/3-540-44581-1_27): with U s in place of x its weights are w, and for x they are w s⁻¹ Uᵀ x.
    """
    if x.shape[0] >= x.shape[1]:
        return x, lambda weight: weight
    squares = x @ x.T
    values, vectors = np.linalg.eigh(squares if isinstance(squares, np.ndarray) else squares.toarray())
    mask = values > ROUNDING * values[-1]
    mask[-1] = True
    scale = np.sqrt(np.maximum(values[mask], np.finfo(np.float64).tiny))
    return vectors[:, mask] * scale, lambda weight: (x.T @ ((vectors[:, mask] / scale) @ weight.T)).T


def _scaled(features: Features) -> tuple[Features, Array, Array]:
    """Features with mean 0 whose squares sum to about 1, the mean, and what they were divided by; sparse ones as they are."""
    width = features.shape[1]
    if not isinstance(features, np.ndarray):
        return features, np.zeros(width), np.ones(width)
    mean, deviation = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    deviation = np.where(deviation > 1e-9, deviation, 1.0) * width**0.5
    return (features - mean) / deviation, mean, deviation


@contextmanager
def _single_threaded() -> Iterator[None]:
    """One thread, as fits are small: threads that wait for each other took 50 times as long on a busy machine.

    scikit-learn warns where the solver would take more iterations than it may: what it has then is used.
    """
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield
