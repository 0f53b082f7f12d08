"""The tuned parameters of all runs as one matrix `[run, parameters]`: AdamW, clipping and keeping the best are a few lines."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Flat:
    """One matrix of which every parameter is a view.

    A parameter is `[run, …]`, or, for a model that is tuned whole, has no run axis and there is one run.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], runs: int, run_axis: bool = True):
        self.runs = runs
        sizes = [p.numel() // runs for p in parameters]
        first = parameters[0]
        self.values = torch.empty(runs, sum(sizes), dtype=first.dtype, device=first.device)
        # gradients are gathered: a view of the matrix is not what autograd writes into without a warning
        self.written = torch.zeros(runs * sum(sizes), dtype=first.dtype, device=first.device)
        self.blocks = [block.view(runs, -1) for block in self.written.split([runs * size for size in sizes])]
        self.gradients = self.written.view(1, -1) if runs == 1 else torch.zeros_like(self.values)
        start = 0
        for parameter, size, block in zip(parameters, sizes, self.blocks):
            view = self.values[:, start : start + size]
            view = view.view(parameter.shape) if run_axis else view[0].view(parameter.shape)
            view.copy_(parameter.data)
            parameter.data, parameter.grad = view, block.view(parameter.shape)
            start += size

    def gather(self) -> Tensor:
        """What backward wrote, as `[run, parameters]`."""
        if self.runs > 1:
            torch.cat(self.blocks, dim=1, out=self.gradients)
        return self.gradients

    def clear(self) -> None:
        """The next backward starts from 0."""
        self.written.zero_()


class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101), each run at a learning rate of its own."""

    def __init__(self, flat: Flat, weight_decay: Tensor, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        self.flat, self.weight_decay, self.betas, self.eps = flat, weight_decay[:, None], betas, eps
        self.first, self.second = torch.zeros_like(flat.values), torch.zeros_like(flat.values)
        self.steps = 0

    @torch.no_grad()
    def step(self, rates: Tensor, clip: Tensor) -> None:
        """One update. rates `[run]`, 0 for a run that has ended; clip `[run]`, the largest gradient norm, 0 for none."""
        self.steps += 1
        gradients, (one, two) = self.flat.gradients, self.betas  # as gathered
        norms = gradients.norm(dim=1)
        scale = torch.where(clip > 0, (clip / (norms + 1e-6)).clamp(max=1), torch.ones_like(norms))
        gradients.mul_(scale[:, None])
        self.first.lerp_(gradients, 1 - one)
        self.second.mul_(two).addcmul_(gradients, gradients, value=1 - two)
        denominator = (self.second / (1 - two**self.steps)).sqrt_().add_(self.eps)
        rates = rates[:, None]
        self.flat.values.mul_(1 - rates * self.weight_decay)
        self.flat.values.sub_(rates / (1 - one**self.steps) * self.first / denominator)
        self.flat.clear()
