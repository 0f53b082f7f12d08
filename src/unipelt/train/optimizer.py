"""The tuned parameters of all runs as one matrix `[run, parameters]`: AdamW, clipping and keeping the best are a few lines."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn


class Flat:
    """One matrix of which every parameter is a view.

    parts: the parameters of each mixture, `[run, …]`, where mixtures stand side by side; their runs are rows one after
    another, and a row is as long as the largest mixture, filled with zeros. A model that is tuned whole is one part whose
    parameters have no run axis. runs: of each part.
    """

    def __init__(self, parts: Sequence[Sequence[nn.Parameter]], runs: Sequence[int], run_axis: bool = True):
        self.parts, self.run_axis = [list(part) for part in parts], run_axis
        self.sizes = [[p.numel() // count for p in part] for part, count in zip(self.parts, runs)]
        first = self.parts[0][0]
        values = first.new_zeros(sum(runs), max(map(sum, self.sizes)), requires_grad=False)
        self.trained = values.new_zeros(len(self.parts), values.shape[1])
        """1 where a part has a number that is trained"""
        for parameter, columns in self._views(values, runs):
            columns.copy_(parameter.data.reshape(columns.shape))
        for parameter, columns in self._views(self.trained, [1] * len(self.parts)):
            columns.fill_(parameter.requires_grad)
        self.train(values, runs)

    def train(self, values: Tensor, runs: Sequence[int]) -> None:
        """The runs of this matrix are trained from now on."""
        self.values, self.runs = values, list(runs)
        # gradients are gathered: a view of the matrix is not what autograd writes into without a warning
        self.written = values.new_zeros(sum(count * sum(sizes) for count, sizes in zip(runs, self.sizes)))
        each = self.written.split([count * size for count, sizes in zip(runs, self.sizes) for size in sizes])
        blocks = iter(each)
        self.blocks = [[next(blocks).view(count, size) for size in sizes] for count, sizes in zip(runs, self.sizes)]
        self.apart = len(values) > 1 or self.written.numel() < values.numel()
        self.gradients = torch.zeros_like(values) if self.apart else self.written.view(1, -1)
        self.show(values, runs)
        for part, mine in zip(self.parts, self.blocks):
            for parameter, block in zip(part, mine):
                parameter.grad = block.view(parameter.shape) if parameter.requires_grad else None

    def show(self, values: Tensor, runs: Sequence[int]) -> None:
        """Every parameter becomes a view of this matrix, which may have another number of runs."""
        for parameter, columns in self._views(values, runs):
            shape = (len(columns), *parameter.shape[1:]) if self.run_axis else parameter.shape
            parameter.data = (columns if self.run_axis else columns[0]).view(shape)

    def gather(self) -> Tensor:
        """What backward wrote, as `[run, parameters]`."""
        if self.apart:
            for rows, blocks, sizes in zip(self.gradients.split(self.runs), self.blocks, self.sizes):
                torch.cat(blocks, dim=1, out=rows[:, : sum(sizes)])
        return self.gradients

    def clear(self) -> None:
        """The next backward starts from 0."""
        self.written.zero_()

    def _views(self, values: Tensor, runs: Sequence[int]) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Each parameter with its place in a matrix, `[run, size]`."""
        for part, sizes, rows in zip(self.parts, self.sizes, values.split(list(runs))):
            yield from zip(part, rows[:, : sum(sizes)].split(sizes, dim=1))


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
            for values, one_rate, trained in zip(
                self.flat.values.split(self.flat.runs), (rates * decay).split(self.flat.runs), self.flat.trained
            ):
                values.mul_(1 - torch.outer(one_rate, trained))
        self.flat.values.sub_(rates[:, None] / of_first * self.first / denominator)
        self.flat.clear()

    def begin(self, run: int) -> None:
        """Another run begins in this row."""
        self.first[run], self.second[run] = 0.0, 0.0

    def keep(self, runs: list[int]) -> None:
        """Only these rows go on."""
        self.first, self.second = self.first[runs], self.second[runs]
