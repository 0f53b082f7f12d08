"""The tuned parameters of all runs as one matrix `[run, parameters]`: AdamW, clipping and keeping the best take a few lines."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class ParameterMatrix:
    """One matrix `[run, parameters]` of which every parameter of a model is a view.

    parameters: each `[run, …]`, or without a run axis where the model itself is tuned (run_axis=False, one run). kinds: by
    parameter, the column of AdamW's rates that it trains at.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], runs: int, run_axis: bool = True, kinds: Sequence[int] | None = None
    ):
        self.parameters, self.run_axis = list(parameters), run_axis
        self.sizes = [parameter.numel() // runs for parameter in self.parameters]
        flat = [parameter.data.reshape(runs, -1) for parameter in self.parameters]
        trained = [torch.full((size,), float(p.requires_grad)) for p, size in zip(self.parameters, self.sizes)]
        self.trained: Float[Tensor, " parameters"] = torch.cat(trained).to(flat[0])
        """1 where a number is trained"""
        kind_of_number = torch.tensor(kinds or [0] * len(self.parameters)).repeat_interleave(torch.tensor(self.sizes))
        self.kinds: Int[Tensor, " parameters"] = kind_of_number.to(flat[0].device)
        self.replace_values(torch.cat(flat, dim=1))

    def replace_values(self, values: Float[Tensor, "run parameters"]) -> None:
        """Train these values, one row a run, from now on."""
        self.values, runs = values, len(values)
        # autograd warns where a gradient is a view of a matrix, so it writes into blocks of one flat tensor
        self.written = values.new_zeros(values.numel())
        self.blocks = [
            block.view(runs, -1) for block in self.written.split([runs * size for size in self.sizes])
        ]  # each `[run, size]`
        self.gradients = self.written.view(1, -1) if runs == 1 else torch.zeros_like(values)
        self.bind(values)
        for parameter, block in zip(self.parameters, self.blocks):
            parameter.grad = block.view(parameter.shape) if parameter.requires_grad else None

    def rows(self, runs: list[int]) -> Float[Tensor, "run parameters"]:
        """The rows of these runs; the matrix itself if these are all its runs."""
        return self.values if len(runs) == len(self.values) else self.values[runs]

    def bind(self, values: Float[Tensor, "run parameters"]) -> None:
        """Make every parameter a view of this matrix, which may have another number of runs."""
        for parameter, columns in zip(self.parameters, values.split(self.sizes, dim=1)):
            shape = (len(columns), *parameter.shape[1:]) if self.run_axis else parameter.shape
            parameter.data = (columns if self.run_axis else columns[0]).view(shape)

    def gather(self) -> Float[Tensor, "run parameters"]:
        """The gradients that backward wrote."""
        if len(self.values) > 1:
            torch.cat(self.blocks, dim=1, out=self.gradients)
        return self.gradients

    def clear(self) -> None:
        """Let the next backward start from 0."""
        self.written.zero_()


class AdamW:
    """Adam with decoupled weight decay, each run at its own rate and step.   Loshchilov & Hutter 2019, arXiv:1711.05101"""

    def __init__(self, matrix: ParameterMatrix, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        self.matrix, self.betas, self.eps = matrix, betas, eps
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(matrix.values), torch.zeros_like(matrix.values)

    @torch.no_grad()
    def step(
        self,
        steps: Float[Tensor, " run"],
        rates: Float[Tensor, " run"] | Float[Tensor, "run kind"],
        clip: Float[Tensor, " run"],
        decay: Float[Tensor, " run"] | None = None,
    ) -> None:
        """Update every run by the gathered gradients.

        steps: number of this step, from 1. rates: learning rate, of all parameters or by kind; 0 for a run that is not
        updated. clip: largest gradient norm, 0 for none. decay: weight decay, None where no run has one.
        """
        gradients, (beta1, beta2) = self.matrix.gradients, self.betas
        norms = gradients.norm(dim=1)
        scale = torch.where(clip > 0, (clip / (norms + 1e-6)).clamp(max=1), torch.ones_like(norms))
        gradients.mul_(scale[:, None])
        self.exp_avg.lerp_(gradients, 1 - beta1)
        self.exp_avg_sq.mul_(beta2).addcmul_(gradients, gradients, value=1 - beta2)
        correction1, correction2 = ((1 - beta ** steps.double()).to(steps.dtype)[:, None] for beta in self.betas)
        denominator = (self.exp_avg_sq / correction2).sqrt_().add_(self.eps)
        rate_of_number = rates[:, None] if rates.dim() == 1 else rates[:, self.matrix.kinds]
        if decay is not None:
            self.matrix.values.mul_(1 - rate_of_number * decay[:, None] * self.matrix.trained)
        self.matrix.values.sub_(rate_of_number / correction1 * self.exp_avg / denominator)
        self.matrix.clear()

    def reset(self, run: int) -> None:
        """Start the moments of one run from 0."""
        self.exp_avg[run], self.exp_avg_sq[run] = 0.0, 0.0

    def keep(self, runs: list[int]) -> None:
        """Drop all other runs."""
        self.exp_avg, self.exp_avg_sq = self.exp_avg[runs], self.exp_avg_sq[runs]
