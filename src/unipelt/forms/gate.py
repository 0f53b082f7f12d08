"""What weighs a change: UniPELT's gates (Mao et al. 2022, arXiv:2110.07577, §3.2), a learned scalar, or a number.

A weight is called with the tensor that it reads, the shares of that tensor's tokens in a mean, and the route. Its value is
`[batch, 1, 1]` or `[batch, seq, 1]`, in float32 at least, and part of the graph.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from unipelt.forms.routed import Route, RoutedLinear, draw_normal

Scores = Float[Tensor, "batch seq n"]
Shares = Float[Tensor, "batch seq 1"] | None


def shares_of(mask: Shaped[Tensor, "batch seq"], dtype: torch.dtype) -> Float[Tensor, "batch seq 1"]:
    """What each token counts in the mean over its row's real ones, 1/n; 0 for padding, and in a row that is padding alone.

    In at least float32: half precision is not enough to average over a sequence.
    """
    real = mask.bool()[..., None].to(torch.promote_types(dtype, torch.float32))
    return real / real.sum(dim=1, keepdim=True).clamp(min=1)


def mean_of_real(scores: Scores, shares: Shares) -> Float[Tensor, "batch 1 n"]:
    """The mean over real tokens, so that padding has no vote; none given: all are real."""
    if shares is None:
        return scores.mean(dim=1, keepdim=True)
    return (scores * shares).sum(dim=1, keepdim=True)


def mean_of_prompt(scores: Scores, shares: Shares) -> Float[Tensor, "batch 1 n"]:
    """The mean over the prompt's real tokens, to which the shares belong; all later tokens keep it."""
    return mean_of_real(scores, shares)


def mean_of_all(scores: Scores, shares: Shares) -> Float[Tensor, "batch 1 n"]:
    """The mean over all positions, padding included: U's code, kept as an explicit reference."""
    return scores.mean(dim=1, keepdim=True)


def each_token(scores: Scores, shares: Shares) -> Scores:
    """Each token for itself: nothing leaks from later tokens, and caching holds."""
    return scores


class Scored(nn.Module):
    """A gate by the scores of its tensor, h W + b: `value` makes weights of them."""

    def __init__(self, runs: int, inputs: int, pool: Callable[[Tensor, Shares], Tensor], members: int = 1):
        super().__init__()
        self.score = RoutedLinear(runs, inputs, members)
        self.pool = pool

    def forward(self, h: Float[Tensor, "batch seq d"], shares: Shares, route: Route) -> Float[Tensor, "batch _ n"]:
        return self.value(self.score(h, route), shares)

    def value(self, scores: Scores, shares: Shares) -> Float[Tensor, "batch _ n"]:
        raise NotImplementedError

    def reset_parameters(self, run: int, generator: torch.Generator) -> None:
        draw_normal(self.score.weight, run, generator, 0.02)


class Gate(Scored):
    """g = pool of σ(h·w + b): near 0.5 at step 0"""

    def value(self, scores: Scores, shares: Shares) -> Float[Tensor, "batch _ n"]:
        return self.pool(upcast(scores).sigmoid(), shares)


class GroupGate(Scored):
    """g = softmax over the group's changes of pool of ReLU(h W + b): U's central gate"""

    def value(self, scores: Scores, shares: Shares) -> Float[Tensor, "batch _ n"]:
        return self.pool(upcast(scores).relu(), shares).softmax(dim=-1)


class Learned(nn.Module):
    """s, a learned scalar          He et al. 2022, §4.5"""

    def __init__(self, runs: int, start: float):
        super().__init__()
        self.scale = nn.Parameter(torch.full((runs,), float(start)))

    def forward(self, h: Tensor, shares: Shares, route: Route) -> Float[Tensor, "_ 1 1"]:
        return route.pick(self.scale, h.shape[0])[:, None, None]

    def reset_parameters(self, run: int, generator: torch.Generator) -> None:
        """Nothing to draw: it starts where it was told to."""


def upcast(scores: Tensor) -> Tensor:
    """At least float32: half precision is not enough to average over a sequence."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))
