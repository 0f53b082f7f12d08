"""The tuned parameters of all runs as one matrix `[run, parameters]`: AdamW, clipping and keeping the best are a few lines."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Flat:
    """One matrix of which every parameter is a view, and its gradients likewise.

    A parameter is `[run, …]`, or, for a model that is tuned whole, has no run axis and there is one run.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], runs: int, run_axis: bool = True):
        self.parameters, self.runs = list(parameters), runs
        sizes = [p.numel() // runs for p in self.parameters]
        first = self.parameters[0]
        self.values = torch.empty(runs, sum(sizes), dtype=first.dtype, device=first.device)
        self.gradients = torch.zeros_like(self.values)
        start = 0
        for parameter, size in zip(self.parameters, sizes):
            shape = parameter.shape
            for flat in (self.values, self.gradients):
                view = flat[:, start : start + size]
                view = view.view(shape) if run_axis else view[0].view(shape)
                if flat is self.values:
                    view.copy_(parameter.data)
                    parameter.data = view
                else:
                    parameter.grad = view
            start += size


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
        gradients, (one, two) = self.flat.gradients, self.betas
        norms = gradients.norm(dim=1)
        scale = torch.where(clip > 0, (clip / (norms + 1e-6)).clamp(max=1), torch.ones_like(norms))
        gradients.mul_(scale[:, None])
        self.first.lerp_(gradients, 1 - one)
        self.second.mul_(two).addcmul_(gradients, gradients, value=1 - two)
        denominator = (self.second / (1 - two**self.steps)).sqrt_().add_(self.eps)
        rates = rates[:, None]
        self.flat.values.mul_(1 - rates * self.weight_decay)
        self.flat.values.sub_(rates / (1 - one**self.steps) * self.first / denominator)
        gradients.zero_()
