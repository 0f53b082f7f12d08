"""Temperature scaling: one number that makes probabilities say how often they are right.          Guo et al. 2017, arXiv:1706.04599"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

LARGEST = 3.0  # of |log T|: temperatures from 1/20 to 20


def fit_temperature(
    logits: Float[np.ndarray, "example label"], targets: Int[np.ndarray, "example ..."]
) -> float | None:
    """The T that minimises Σ −log p(target) + (log T)² / 2, where p is the softmax of logits / T, or with several labels an
    example their sigmoid.

    The last term is a normal prior: a few examples that are all right do not make T vanish. None for logits that are not finite.
    """
    from scipy.optimize import minimize_scalar

    logits = np.asarray(logits, dtype=np.float64)
    if not np.isfinite(logits).all() or not len(logits):
        return None

    def loss(log_t: float) -> float:
        return float(surprise(logits / np.exp(log_t), targets).sum() + log_t**2 / 2)

    return float(np.exp(minimize_scalar(loss, bounds=(-LARGEST, LARGEST), method="bounded").x))


def surprise(logits: NDArray[np.float64], targets: Int[np.ndarray, "example ..."]) -> Float[np.ndarray, "example ..."]:
    """−log p(target) of each example, or of each label of it."""
    targets = np.asarray(targets)
    if targets.ndim > 1:
        return np.logaddexp(0.0, np.where(targets == 1, -logits, logits))
    return np.logaddexp.reduce(logits, axis=1) - np.take_along_axis(logits, targets[:, None], axis=1)[:, 0]


def mean_softmax(run_logits: Sequence[Float[Tensor, "*example class"]]) -> Float[Tensor, "*example class"]:
    """log of the mean over runs of their probabilities: logits whose softmax is that mean."""
    logs = torch.stack([logits.double().log_softmax(dim=-1) for logits in run_logits])
    return logs.logsumexp(dim=0) - math.log(len(run_logits))
