"""The bootstrap over test rows: what a metric would have been on other rows of the same kind.

A resample of n rows with replacement is a column of counts, so a metric that is a function of sums over rows is one matrix
product for all resamples and all runs at once, and no metric costs a Python loop over resamples.
"""

from collections.abc import Callable
from functools import lru_cache
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000
Array = NDArray[np.floating]
CHUNK = 32  # runs at once: 32 runs × 40,000 rows of float32 are 5 MB
CELLS = 1_000_000  # rows × resamples at once, of a metric that ranks


def chance(*names: object) -> np.random.Generator:
    """A generator that belongs to these names, whatever was drawn before."""
    return np.random.default_rng(crc32("/".join(map(str, names)).encode()))


@lru_cache(maxsize=1)
def counts(name: str, rows: int, draws: int = DRAWS) -> NDArray[np.float32]:
    """How often each row is in each resample, `[row, draw]`; the same for equal names, so runs on the same rows are paired."""
    drawn, source = np.empty((rows, draws), dtype=np.float32), chance("rows", name, rows)
    for draw in range(draws):
        drawn[:, draw] = np.bincount(source.integers(0, rows, rows, dtype=np.int32), minlength=rows)
    return drawn


def resampled(metric: str, predictions: Array, targets: Array, weights: NDArray[np.float32]) -> Array | None:
    """The metric `[run, draw]` of predictions `[run, row]` on each resample; None for a metric that has no formula here."""
    if metric in _CENTRED:
        width = max(CELLS // len(targets), 1)
        slices = [weights[:, start : start + width] for start in range(0, weights.shape[1], width)]
        return np.concatenate([_correlations(_CENTRED[metric], predictions, targets, part) for part in slices], axis=1)
    if metric not in _FORMULAS:
        return None
    parts = [predictions[start : start + CHUNK] for start in range(0, len(predictions), CHUNK)]
    return np.concatenate([_FORMULAS[metric](part, targets, weights) for part in parts])


def _accuracy(predictions: Array, targets: Array, weights: Array) -> Array:
    return (predictions == targets).astype(np.float32) @ weights / len(targets)


def _cells(predictions: Array, targets: Array, weights: Array, value: float) -> tuple[Array, Array, Array]:
    """Of one class: rows that are right, rows that are predicted `[run, draw]`, rows that are there `[draw]`."""
    predicted, there = predictions == value, targets == value
    return (
        (predicted & there).astype(np.float32) @ weights,
        predicted.astype(np.float32) @ weights,
        there.astype(np.float32) @ weights,
    )


def _f1(predictions: Array, targets: Array, weights: Array, value: float = 1) -> Array:
    right, predicted, there = _cells(predictions, targets, weights, value)
    return 2 * right / np.maximum(predicted + there, 1)


def _classes(predictions: Array, targets: Array) -> list[float]:
    return sorted({*np.unique(targets).tolist(), *np.unique(predictions).tolist()})


def _macro_f1(predictions: Array, targets: Array, weights: Array) -> Array:
    total: Array = np.zeros((len(predictions), weights.shape[1]))
    occur = np.zeros_like(total)
    for value in _classes(predictions, targets):
        right, predicted, there = _cells(predictions, targets, weights, value)
        total = total + 2 * right / np.maximum(predicted + there, 1)
        occur = occur + (predicted + there > 0)
    return total / occur


def _matthews(predictions: Array, targets: Array, weights: Array) -> Array:
    """(c s − Σ pₖ tₖ) / √((s² − Σ pₖ²)(s² − Σ tₖ²))          Gorodkin 2004"""
    rows = float(len(targets))
    right, cross, ours, theirs = (np.zeros((len(predictions), weights.shape[1])) for _ in range(4))
    for value in _classes(predictions, targets):
        hit, predicted, there = (part.astype(float) for part in _cells(predictions, targets, weights, value))
        right += hit
        cross += predicted * there
        ours += predicted**2
        theirs += there**2
    spread = np.sqrt((rows**2 - ours) * (rows**2 - theirs))
    return np.divide(right * rows - cross, spread, out=np.zeros_like(spread), where=spread > 0)


_FORMULAS = {"accuracy": _accuracy, "f1": _f1, "macro_f1": _macro_f1, "matthews": _matthews}


def _ranks(values: Array, weights: Array) -> Array:
    """Each row's rank in each resample `[row, draw]`, ties their mean, less the mean of all ranks."""
    order = np.argsort(values, kind="stable")
    group = np.concatenate([[0], np.cumsum(np.diff(values[order]) != 0)])
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    held = weights[order] if len(starts) == len(order) else np.add.reduceat(weights[order], starts, axis=0)
    ranks = np.cumsum(held, axis=0) - (held + len(values)) / 2
    place = np.empty(len(values), dtype=np.intp)
    place[order] = group
    return ranks[place]


def _values(values: Array, weights: Array) -> Array:
    """Each row's value, less the mean of each resample."""
    return values[:, None] - values @ weights / len(values)


_CENTRED = {"spearman": _ranks, "pearson": _values}


def _correlations(
    centred: Callable[[Array, Array], Array], predictions: Array, targets: Array, weights: Array
) -> Array:
    """0 where one side is constant, or not finite (a run that diverged)."""
    found = np.zeros((len(predictions), weights.shape[1]))
    theirs = centred(targets, weights)
    weighed = theirs * weights
    other = np.einsum("rd,rd->d", weighed, theirs, dtype=float)
    for run, values in enumerate(predictions):
        if np.isfinite(values).all():
            ours = centred(values, weights)
            one = np.einsum("rd,rd,rd->d", ours, ours, weights, dtype=float)
            spread = np.sqrt(one * other)
            across = np.einsum("rd,rd->d", ours, weighed, dtype=float)
            np.divide(across, spread, out=found[run], where=spread > 1e-12 * len(values))
    return found
