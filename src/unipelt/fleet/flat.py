"""The tuned parameters of all runs as one matrix `[run, parameters]`: AdamW, clipping and keeping the best are a few lines."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Flat:
    """One matrix of which every parameter is a view.

    A parameter is `[run, …]`, or, for a model that is tuned whole, has no run axis and there is one run.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], runs: int, run_axis: bool = True):
        self.parameters, self.run_axis = list(parameters), run_axis
        self.sizes = [p.numel() // runs for p in parameters]
        first = self.parameters[0]
        values = torch.empty(runs, sum(self.sizes), dtype=first.dtype, device=first.device)
        for column, parameter in zip(values.split(self.sizes, dim=1), self.parameters):
            column.copy_(parameter.data.reshape(runs, -1))
        self.trained = torch.cat([values.new_full((size,), p.requires_grad) for size, p in zip(self.sizes, parameters)])
        self.train(values)

    def train(self, values: Tensor) -> None:
        """The runs of this matrix are trained from now on."""
        self.values, runs = values, len(values)
        # gradients are gathered: a view of the matrix is not what autograd writes into without a warning
        self.written = torch.zeros_like(values).view(-1)
        self.blocks = [block.view(runs, -1) for block in self.written.split([runs * size for size in self.sizes])]
        self.gradients = self.written.view(1, -1) if runs == 1 else torch.zeros_like(values)
        self.show(values)
        for parameter, block in zip(self.parameters, self.blocks):
            parameter.grad = block.view(parameter.shape) if parameter.requires_grad else None

    def show(self, values: Tensor) -> None:
        """Every parameter becomes a view of this matrix, which may have another number of runs."""
        for parameter, columns in zip(self.parameters, values.split(self.sizes, dim=1)):
            shape = (len(values), *parameter.shape[1:]) if self.run_axis else parameter.shape
            parameter.data = (columns if self.run_axis else columns[0]).view(shape)

    def gather(self) -> Tensor:
        """What backward wrote, as `[run, parameters]`."""
        if len(self.values) > 1:
            torch.cat(self.blocks, dim=1, out=self.gradients)
        return self.gradients

    def clear(self) -> None:
        """The next backward starts from 0."""
        self.written.zero_()


class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101), each run at its own rate and step."""

    def __init__(self, flat: Flat, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        self.flat, self.betas, self.eps = flat, betas, eps
        self.first, self.second = torch.zeros_like(flat.values), torch.zeros_like(flat.values)

    @torch.no_grad()
    def step(self, steps: Tensor, rates: Tensor, clip: Tensor, decay: Tensor | None = None) -> None:
        """One update; all `[run]`: the number of this step, from 1; learning rate, 0 for a run that stands still; largest
        gradient norm, 0 for none; weight decay, None where no run has one."""
        gradients, (one, two) = self.flat.gradients, self.betas  # as gathered
        norms = gradients.norm(dim=1)
        scale = torch.where(clip > 0, (clip / (norms + 1e-6)).clamp(max=1), torch.ones_like(norms))
        gradients.mul_(scale[:, None])
        self.first.lerp_(gradients, 1 - one)
        self.second.mul_(two).addcmul_(gradients, gradients, value=1 - two)
        of_first, of_second = ((1 - beta ** steps.double()).to(steps.dtype)[:, None] for beta in self.betas)
        denominator = (self.second / of_second).sqrt_().add_(self.eps)
        if decay is not None:
            self.flat.values.mul_(1 - torch.outer(rates * decay, self.flat.trained))
        self.flat.values.sub_(rates[:, None] / of_first * self.first / denominator)
        self.flat.clear()

    def begin(self, run: int) -> None:
        """Another run begins in this row."""
        self.first[run], self.second[run] = 0.0, 0.0

    def keep(self, runs: list[int]) -> None:
        """Only these rows go on."""
        self.first, self.second = self.first[runs], self.second[runs]
