"""Changes to parameters of the base: BitFit's biases and Houlsby's LayerNorms."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unipelt.forms.routed import Route, per_row, scale_and_shift


class Bias(nn.Module):
    """Δ = bᵣ, added to the output of a module that has a bias          Ben Zaken et al. 2021, arXiv:2106.10199"""

    def __init__(self, runs: int, size: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(runs, size))

    def forward(self, x: Float[Tensor, "batch *seq inputs"], route: Route) -> Float[Tensor, "..."]:
        return per_row(self.bias, x, route)


class Norm(nn.Module):
    """Δ(x) = norm(x) ⊙ wᵣ + bᵣ, norm being the base's norm without its scale and shift          Houlsby et al. 2019, §2.1"""

    def __init__(self, runs: int, size: int, normalise: Callable[[Tensor], Tensor], shift: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(runs, size))
        self.bias = nn.Parameter(torch.zeros(runs, size)) if shift else None
        self.normalise = normalise

    def forward(self, x: Float[Tensor, "batch *seq d"], route: Route) -> Float[Tensor, "batch *seq d"]:
        return scale_and_shift(self.normalise(x), self.weight, self.bias, route)
