"""Compacter: a bottleneck from Kronecker factors. Mahabadi et al. 2021, arXiv:2106.04647, equations 4 and 5."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unipelt.forms.bottleneck import ACTIVATIONS
from unipelt.forms.routed import Route, draw_normal, per_row


class KroneckerLinear(nn.Module):
    """y = x W + b, W = Σᵢ Aᵢ ⊗ (sᵢ tᵢ), Aᵢ an n × n matrix, sᵢ and tᵢ of the given rank"""

    def __init__(self, runs: int, inputs: int, outputs: int, terms: int, rank: int):
        super().__init__()
        self.rule = nn.Parameter(torch.zeros(runs, terms, terms, terms))
        self.left = nn.Parameter(torch.zeros(runs, terms, inputs // terms, rank))
        self.right = nn.Parameter(torch.zeros(runs, terms, rank, outputs // terms))
        self.bias = nn.Parameter(torch.zeros(runs, outputs))

    def forward(self, x: Float[Tensor, "batch *seq inputs"], route: Route) -> Float[Tensor, "batch *seq outputs"]:
        rule, left, right = (route.pick(p, x.shape[0]).to(x.dtype) for p in (self.rule, self.left, self.right))
        rows = x.reshape(len(rule), -1, rule.shape[-1], left.shape[-2])  # 1 (batch seq) n inputs/n, or batch seq …
        y = torch.einsum("bsac,bicr,biro,biae->bseo", rows, left, right, rule)
        return y.reshape(*x.shape[:-1], -1) + per_row(self.bias, x, route)

    def reset_parameters(self, run: int, generator: torch.Generator) -> None:
        draw_normal(self.rule, run, generator, 0.1)
        for factor in (self.left, self.right):
            draw_normal(factor, run, generator, (2 / (factor.shape[-2] + factor.shape[-1])) ** 0.5)  # Glorot


class Kronecker(nn.Module):
    """Δ(x) = f(x W↓ + b↓) W↑ + b↑, both matrices Kronecker sums"""

    def __init__(self, runs: int, inputs: int, outputs: int, size: int, terms: int, rank: int, activation: str):
        super().__init__()
        self.down = KroneckerLinear(runs, inputs, size, terms, rank)
        self.up = KroneckerLinear(runs, size, outputs, terms, rank)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Float[Tensor, "batch *seq inputs"], route: Route) -> Float[Tensor, "batch *seq outputs"]:
        return self.up(self.activation(self.down(x, route)), route)
