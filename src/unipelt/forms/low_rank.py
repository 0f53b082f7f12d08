"""LoRA: Hu et al. 2021, arXiv:2106.09685."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unipelt.forms.routed import Route, RoutedLinear, draw_kaiming


class LowRank(nn.Module):
    """Δ(x) = (α / r) x W↓ W↑"""

    def __init__(self, runs: int, inputs: int, outputs: int, r: int, alpha: float, dropout: float):
        super().__init__()
        self.down = RoutedLinear(runs, inputs, r, bias=False)
        self.up = RoutedLinear(runs, r, outputs, bias=False)
        self.scale = alpha / r
        # not nn.Dropout(0): its output is a new tensor, and linears are joined only if they read the same tensor
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Float[Tensor, "batch *seq inputs"], route: Route) -> Float[Tensor, "batch *seq outputs"]:
        delta = self.up(self.down(self.dropout(x), route), route)
        return delta if self.scale == 1 else delta * self.scale  # saves one pass over the output

    def onto(
        self, h: Float[Tensor, "batch *seq outputs"], x: Float[Tensor, "batch *seq inputs"], weight: Float[Tensor, "batch _ 1"],
        route: Route,
    ) -> Float[Tensor, "batch *seq outputs"]:  # fmt: skip
        """h + w Δ(x). The weight multiplies the r hidden features, which are fewer than the outputs."""
        hidden = self.down(self.dropout(x), route)
        weight = weight if self.scale == 1 else weight * self.scale
        return self.up(hidden * weight.to(hidden.dtype), route, onto=h)

    def reset_parameters(self, run: int, generator: torch.Generator) -> None:
        draw_kaiming(self.down.weight, run, generator, self.down.weight.shape[-1])  # up stays 0: Δ = 0 at step 0
