"""IA³: Liu et al. 2022, arXiv:2205.05638."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unipelt.forms.routed import Route, per_row


class Scaling(nn.Module):
    """Δ(h) = h ⊙ dᵣ, so that h + Δ = h ⊙ (1 + dᵣ); the paper's l is 1 + d"""

    def __init__(self, runs: int, size: int):
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(runs, size))

    def forward(self, h: Float[Tensor, "batch *seq d"], route: Route) -> Float[Tensor, "batch *seq d"]:
        return h * per_row(self.offset, h, route)
