"""DoRA: Liu et al. 2024, arXiv:2402.09353."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unipelt.forms.routed import Route, RoutedLinear, draw_kaiming, per_row

Linear = tuple[Float[Tensor, "outputs inputs"], Float[Tensor, " outputs"] | None]


class Dora(nn.Module):
    """Δ(x) = x (W' − W)ᵀ = (c − 1) ⊙ x Wᵀ + c ⊙ s x Aᵀ Bᵀ, s = α / r, W' = c ⊙ (W + s B A), c = m / ‖W + s B A‖ per row

    The norm counts as a constant in the gradients (§4.3). frozen: returns the base's W and bias, which are not parameters of this module.
    """

    def __init__(self, runs: int, inputs: int, outputs: int, r: int, alpha: float, frozen: Callable[[], Linear]):
        super().__init__()
        self.down = RoutedLinear(runs, inputs, r, bias=False)
        self.up = RoutedLinear(runs, r, outputs, bias=False)
        self.magnitude = nn.Parameter(torch.zeros(runs, outputs))
        self.scale, self.frozen = alpha / r, frozen

    def forward(
        self, x: Float[Tensor, "batch *seq inputs"], route: Route, y: Float[Tensor, "batch *seq outputs"] | None = None
    ) -> Float[Tensor, "batch *seq outputs"]:
        """y: x Wᵀ + bias, if it is already known."""
        weight, bias = self.frozen()
        base_output = F.linear(x, weight.to(x.dtype)) if y is None else y if bias is None else y - bias.to(y.dtype)
        c = per_row(self.magnitude / self.norms(), base_output, route)
        return (c - 1) * base_output + c * self.scale * self.up(self.down(x, route), route)

    @torch.no_grad()
    def norms(self) -> Float[Tensor, "run outputs"]:
        """‖W + s B A‖ of each row: ‖W‖² + 2 s (W Aᵀ) · B + s² (B A Aᵀ) · B, without a matrix of W's size per run"""
        down, up = self.down.weight, self.up.weight
        weight = self.frozen()[0].to(down.dtype)
        mixed = 2 * self.scale * weight @ down.mT + self.scale**2 * up @ (down @ down.mT)
        return (weight.square().sum(dim=-1) + (mixed * up).sum(dim=-1)).clamp(min=0).sqrt()

    def change_of_weight(self, run: int) -> Float[Tensor, "outputs inputs"]:
        """W' − W of one run, in float64."""
        weight = self.frozen()[0].double()
        moved = weight + self.scale * self.up.weight[run].double() @ self.down.weight[run].double()
        return (self.magnitude[run].double() / moved.norm(dim=-1))[:, None] * moved - weight

    @torch.no_grad()
    def reset_parameters(self, run: int, generator: torch.Generator) -> None:
        draw_kaiming(self.down.weight, run, generator, self.down.weight.shape[-1])  # up stays 0: Δ = 0 at step 0
        if not self.frozen()[0].is_meta:
            self.magnitude[run] = self.norms()[run]
