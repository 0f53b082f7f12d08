"""What weighs a change: UniPELT's gates (Mao et al. 2022, arXiv:2110.07577, §3.2), a learned scalar, or a number.

A weight is called with the tensor that it reads, the real tokens of that tensor's stream, and the route. Its value is
`[batch, 1, 1]` or `[batch, seq, 1]`, in float32 at least, and part of the graph.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from unipelt.forms.routed import Route, RoutedLinear, draw_normal

Scores = Float[Tensor, "batch seq n"]
Real = Bool[Tensor, "batch seq"] | None


def mean_of_real(scores: Scores, real: Real) -> Float[Tensor, "batch 1 n"]:
    """The mean over real tokens, so that padding has no vote; 0 for a row that has none."""
    if real is None:
        return scores.mean(dim=1, keepdim=True)
    real_ = real[..., None].to(scores.dtype)
    return (scores * real_).sum(dim=1, keepdim=True) / real_.sum(dim=1, keepdim=True).clamp(min=1)


def mean_of_all(scores: Scores, real: Real) -> Float[Tensor, "batch 1 n"]:
    """The mean over all positions, padding included: U's code, kept as an explicit reference."""
    return scores.mean(dim=1, keepdim=True)


def each_token(scores: Scores, real: Real) -> Scores:
    """Each token for itself: nothing leaks from later tokens, and caching holds."""
    return scores


class Gate(nn.Module):
    """g = pool of σ(h·w + b): near 0.5 at step 0"""

    def __init__(self, runs: int, inputs: int, pool: Callable[[Tensor, Real], Tensor]):
        super().__init__()
        self.score = RoutedLinear(runs, inputs, 1)
        self.pool = pool

    def forward(self, h: Float[Tensor, "batch seq d"], real: Real, route: Route) -> Float[Tensor, "batch _ 1"]:
        return self.pool(wide(self.score(h, route)).sigmoid(), real)

    def draw(self, run: int, generator: torch.Generator) -> None:
        draw_normal(self.score.weight, run, generator, 0.02)


class GroupGate(nn.Module):
    """g = softmax over the group's changes of pool of ReLU(h W + b): U's central gate"""

    def __init__(self, runs: int, inputs: int, members: int, pool: Callable[[Tensor, Real], Tensor]):
        super().__init__()
        self.score = RoutedLinear(runs, inputs, members)
        self.pool = pool

    def forward(self, h: Float[Tensor, "batch seq d"], real: Real, route: Route) -> Float[Tensor, "batch _ n"]:
        return self.pool(wide(self.score(h, route)).relu(), real).softmax(dim=-1)

    def draw(self, run: int, generator: torch.Generator) -> None:
        draw_normal(self.score.weight, run, generator, 0.02)


class Learned(nn.Module):
    """s, a learned scalar          He et al. 2022, §4.5"""

    def __init__(self, runs: int, start: float):
        super().__init__()
        self.scale = nn.Parameter(torch.full((runs,), float(start)))

    def forward(self, h: Tensor, real: Real, route: Route) -> Float[Tensor, "_ 1 1"]:
        return route.pick(self.scale, h.shape[0])[:, None, None]

    def draw(self, run: int, generator: torch.Generator) -> None:
        """Nothing to draw: it starts where it was told to."""


def wide(scores: Tensor) -> Tensor:
    """At least float32: half precision is not enough to average over a sequence."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))
