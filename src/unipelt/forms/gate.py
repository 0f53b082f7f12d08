"""Weights of a change: UniPELT's gates (Mao et al. 2022, arXiv:2110.07577, §3.2), a learned scalar, or a number.

A gate or a learned scalar is a module that is called with the tensor that it reads, the weights of that tensor's tokens in a mean,
and the route. A gate returns `[batch, 1 or seq, changes]` in float32 at least, a scalar `[batch or 1, 1, 1]`; both are
differentiable.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from unipelt.forms.routed import Route, RoutedLinear, draw_normal

Scores = Float[Tensor, "batch seq n"]
TokenWeights = Float[Tensor, "batch seq 1"] | None


def mean_weights(mask: Shaped[Tensor, "batch seq"], dtype: torch.dtype) -> Float[Tensor, "batch seq 1"]:
    """The weight of each token in the mean over the n real tokens of its row: 1/n, 0 for padding (also in rows of padding only).

    At least float32: half precision is not enough to average over a sequence.
    """
    real = mask.bool()[..., None].to(torch.promote_types(dtype, torch.float32))
    return real / real.sum(dim=1, keepdim=True).clamp(min=1)


def mean_of_real(scores: Scores, token_weights: TokenWeights) -> Float[Tensor, "batch 1 n"]:
    """The mean over real tokens; padding is ignored. token_weights: see `mean_weights`; None: all tokens are real."""
    if token_weights is None:
        return scores.mean(dim=1, keepdim=True)
    return (scores * token_weights).sum(dim=1, keepdim=True)


def mean_of_prompt(scores: Scores, token_weights: TokenWeights) -> Float[Tensor, "batch 1 n"]:
    """The mean over the prompt's real tokens, whose weights are given. A gate with this pool is computed once per prompt, and all
    later tokens keep its value: see `BoundChange.weight_value`."""
    return mean_of_real(scores, token_weights)


def mean_of_all(scores: Scores, token_weights: TokenWeights) -> Float[Tensor, "batch 1 n"]:
    """The mean over all positions, padding included, as in UniPELT's own code; for comparisons with it."""
    return scores.mean(dim=1, keepdim=True)


def each_token(scores: Scores, token_weights: TokenWeights) -> Scores:
    """The scores unchanged, one gate per token: no later token leaks in, and generation with a cache is exact."""
    return scores


class ScoredGate(nn.Module):
    """Base class of gates: it computes the scores x V + c, and `value` turns them into weights."""

    def __init__(self, runs: int, inputs: int, pool: Callable[[Tensor, TokenWeights], Tensor], gates: int = 1):
        super().__init__()
        self.score = RoutedLinear(runs, inputs, gates)
        self.pool = pool

    def forward(
        self, x: Float[Tensor, "batch seq d"], token_weights: TokenWeights, route: Route
    ) -> Float[Tensor, "batch _ n"]:
        return self.value(self.score(x, route), token_weights)

    def value(self, scores: Scores, token_weights: TokenWeights) -> Float[Tensor, "batch _ n"]:
        raise NotImplementedError

    def reset_parameters(self, run: int, generator: torch.Generator) -> None:
        draw_normal(self.score.weight, run, generator, 0.02)


class Gate(ScoredGate):
    """g = pool(σ(x·v + c)), near 0.5 at step 0"""

    def value(self, scores: Scores, token_weights: TokenWeights) -> Float[Tensor, "batch _ n"]:
        return self.pool(upcast(scores).sigmoid(), token_weights)


class GroupGate(ScoredGate):
    """g = softmax over the changes of a group of pool(ReLU(x V + c)): UniPELT's central gate (released code)"""

    def value(self, scores: Scores, token_weights: TokenWeights) -> Float[Tensor, "batch _ n"]:
        return self.pool(upcast(scores).relu(), token_weights).softmax(dim=-1)


class LearnedScale(nn.Module):
    """s, a learned scalar          He et al. 2022, §4.5"""

    def __init__(self, runs: int, start: float):
        super().__init__()
        self.scale = nn.Parameter(torch.full((runs,), float(start)))

    def forward(
        self, x: Float[Tensor, "rows ..."], token_weights: TokenWeights, route: Route
    ) -> Float[Tensor, "_ 1 1"]:
        return route.pick(self.scale, x.shape[0])[:, None, None]


def upcast(scores: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """At least float32: half precision is not enough to average over a sequence."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))
