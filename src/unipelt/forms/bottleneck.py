"""Adapters: Houlsby et al. 2019, arXiv:1902.00751; parallel and scaled: He et al. 2022, arXiv:2110.04366."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unipelt.forms.routed import Route, RoutedLinear, draw_kaiming, draw_normal, scale_and_shift


def identity(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    return x


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "swish": F.silu,
    "tanh": torch.tanh,
    "identity": identity,
}


class Bottleneck(nn.Module):
    """Δ(x) = f(x W↓ + b↓) W↑ + b↑"""

    def __init__(self, runs: int, inputs: int, outputs: int, size: int, activation: str, init: str, dropout: float):
        super().__init__()
        self.down = RoutedLinear(runs, inputs, size)
        self.up = RoutedLinear(runs, size, outputs)
        self.activation, self.init, self.dropout = ACTIVATIONS[activation], init, nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "batch *seq inputs"], route: Route) -> Float[Tensor, "batch *seq outputs"]:
        return self.up(self.dropout(self.activation(self.down(x, route))), route)

    def reset_parameters(self, run: int, generator: torch.Generator) -> None:
        if self.init == "bert":
            draw_normal(self.down.weight, run, generator, 0.02)
            draw_normal(self.up.weight, run, generator, 0.02)
        else:  # up stays 0: Δ = 0 at step 0
            draw_kaiming(self.down.weight, run, generator, self.down.weight.shape[-1])


class NormedInput(nn.Module):
    """Δ(LN(x)), LN being a LayerNorm of the change: attention adapters in the code of He et al. 2022"""

    def __init__(self, runs: int, inputs: int, form: Bottleneck):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(runs, inputs))
        self.bias = nn.Parameter(torch.zeros(runs, inputs))
        self.form = form

    def forward(self, x: Float[Tensor, "batch *seq inputs"], route: Route) -> Float[Tensor, "batch *seq outputs"]:
        return self.form(scale_and_shift(F.layer_norm(x, x.shape[-1:]), self.weight, self.bias, route), route)
