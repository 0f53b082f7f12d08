"""The run axis: every tuned parameter is `[run, ...]`, and the route says which run each row of a batch belongs to."""

import math
from collections.abc import Iterator
from threading import get_ident
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from unipelt.errors import SiteError


class Route(NamedTuple):
    """Which run each row of a batch belongs to: one run, equal blocks of rows (fleets), or any row to any run (serving)."""

    runs: int = 1
    rows: Int[Tensor, " batch"] | None = None
    mixture_runs: tuple[int, ...] = ()
    """number of runs of each mixture if several mixtures are attached; the runs are numbered consecutively"""

    @classmethod
    def blocks(cls, runs: int) -> "Route":
        """Rows in `runs` equal blocks: the first block belongs to run 0, and so on."""
        return cls(runs)

    @classmethod
    def of_rows(cls, rows: Int[Tensor, " batch"], runs: int) -> "Route":
        return cls(runs, rows)

    def repeated(self, batch: int) -> "Route":
        """The route of a batch in which generation has repeated each row, for beams or several samples."""
        if self.rows is None or batch == len(self.rows):
            return self
        if batch % len(self.rows):
            raise SiteError(f"the route has {len(self.rows)} rows, the batch {batch}: expected a multiple")
        return self._replace(rows=self.rows.repeat_interleave(batch // len(self.rows)))

    def split(self, batch: int) -> Iterator[tuple[int, slice | Int[Tensor, " own"], "Route"]]:
        """(mixture, its rows, the route of these rows) for each mixture that has rows in a batch; nothing if there is one mixture."""
        first, block = 0, batch // max(1, self.runs)
        for mixture, runs in enumerate(self.mixture_runs):
            if self.rows is None:
                rows: Any = slice(first * block, (first + runs) * block)
                route = Route(runs)
            else:
                rows = ((self.rows >= first) & (self.rows < first + runs)).nonzero()[:, 0]
                route = Route(runs, self.rows[rows] - first)
            if runs and (self.rows is None or len(rows)):
                yield mixture, rows, route
            first += runs

    def pick(self, parameter: Float[Tensor, "run ..."], batch: int) -> Float[Tensor, "..."]:
        """The parameter of the run of each row, `[batch, ...]`; `[1, ...]` if there is one run."""
        if self.rows is not None:
            return parameter[self.rows]
        return parameter if self.runs in (1, batch) else parameter.repeat_interleave(batch // self.runs, dim=0)


def per_row(parameter: Float[Tensor, "run d"], x: Float[Tensor, "batch *seq _"], route: Route) -> Float[Tensor, "..."]:
    """The vector of each row's run, in the dtype of x and shaped to be joined with it."""
    vectors = route.pick(parameter, x.shape[0]).to(x.dtype)
    return vectors.view(-1, *[1] * (x.dim() - 2), vectors.shape[-1])


def scale_and_shift(
    x: Float[Tensor, "batch *seq d"], weight: Float[Tensor, "run d"], bias: Float[Tensor, "run d"] | None, route: Route
) -> Float[Tensor, "batch *seq d"]:
    """x ⊙ wᵣ + bᵣ"""
    y = x * per_row(weight, x, route)
    return y if bias is None else y + per_row(bias, x, route)


def draw_normal(parameter: Tensor, run: int, generator: torch.Generator, std: float) -> None:
    """N(0, std²) for one run, drawn in float32 on the CPU: initial values depend on neither device, dtype nor fleet."""
    if not parameter.is_meta:
        parameter.data[run].copy_(torch.randn(parameter.shape[1:], generator=generator) * std)


def draw_uniform(parameter: Tensor, run: int, generator: torch.Generator, bound: float) -> None:
    """U(−bound, bound) for one run."""
    if not parameter.is_meta:
        parameter.data[run].copy_((torch.rand(parameter.shape[1:], generator=generator) * 2 - 1) * bound)


def draw_kaiming(parameter: Tensor, run: int, generator: torch.Generator, fan_in: int) -> None:
    """Kaiming-uniform with a = √5, which is U(±1/√fan_in): LoRA's down-projection and PyTorch's own linears."""
    draw_uniform(parameter, run, generator, 1 / math.sqrt(fan_in))


class RoutedLinear(nn.Module):
    """y = x Wᵣᵀ + bᵣ, r being the run of the row. Starts at 0; forms with other initial values draw them."""

    joint: "JointLinears | None" = None
    """the linears with which this one is computed in one product; None: it is computed alone"""

    def __init__(self, runs: int, inputs: int, outputs: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(runs, outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(runs, outputs)) if bias else None

    def forward(
        self, x: Float[Tensor, "batch *seq inputs"], route: Route, onto: Float[Tensor, "batch *seq outputs"] | None = None
    ) -> Float[Tensor, "batch *seq outputs"]:  # fmt: skip
        """onto: a tensor to which y is added in the same pass; only without a bias."""
        if self.joint is not None and onto is None and (y := self.joint.output(self, x)) is not None:
            return y
        weight, bias = self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype)
        return _routed(x, weight, bias, route) if onto is None else _added(onto, x, weight, route)


class JointLinears:
    """Linears that read one tensor, in one product: [y₁, y₂, …] = x [W₁; W₂; …]ᵀ + [b₁, b₂, …]

    `read` computes them, each linear takes its own when it is called with that tensor, and `end` forgets them. Called with another
    tensor, a linear computes its output itself; so does compiled code, which cannot follow what is kept.
    """

    def __init__(self, linears: list[RoutedLinear]):
        self.linears = linears
        self.known: dict[int, tuple[Tensor, dict[RoutedLinear, Tensor]]] = {}
        """by thread: what `read` was given, and each linear's output"""
        for linear in linears:
            linear.joint = self

    def read(self, x: Float[Tensor, "batch *seq inputs"], route: Route) -> None:
        """Compute all for x."""
        if torch.compiler.is_compiling():
            return
        weight = torch.cat([linear.weight for linear in self.linears], dim=1)
        biases = [
            x.new_zeros(linear.weight.shape[:2]) if linear.bias is None else linear.bias for linear in self.linears
        ]
        y = _routed(x, weight.to(x.dtype), torch.cat(biases, dim=1).to(x.dtype), route)
        outputs = y.split([linear.weight.shape[1] for linear in self.linears], dim=-1)
        self.known[get_ident()] = x, dict(zip(self.linears, outputs, strict=True))

    def output(self, linear: RoutedLinear, x: Tensor) -> Tensor | None:
        """What a linear gives for x; None if it is not known."""
        if torch.compiler.is_compiling() or not self.known:
            return None
        known = self.known.get(get_ident())
        return known[1][linear] if known is not None and known[0] is x else None

    def end(self) -> None:
        """Forget the outputs."""
        if not torch.compiler.is_compiling():
            self.known.pop(get_ident(), None)


def _routed(x: Tensor, weight: Tensor, bias: Tensor | None, route: Route) -> Tensor:
    """x Wᵀ + b by run"""
    if route.rows is None and route.runs == 1:
        if bias is not None and weight.shape[1] == 1:  # a gate; autocast on a CPU leaves addmv in float32, uncopied
            return torch.addmv(bias.squeeze(0), x.flatten(0, -2), weight.flatten()).view(*x.shape[:-1], 1)
        return F.linear(x, weight.squeeze(0), None if bias is None else bias.squeeze(0))
    rows, weight = _by_run(x, weight, route)
    if bias is None:
        y = torch.bmm(rows, weight.mT)
    else:
        y = torch.baddbmm((bias if route.rows is None else bias[route.rows])[:, None], rows, weight.mT)
    return y.reshape(*x.shape[:-1], -1)


def _added(h: Tensor, x: Tensor, weight: Tensor, route: Route) -> Tensor:
    """h + x Wᵀ by run"""
    rows, weight = _by_run(x.to(h.dtype), weight.to(h.dtype), route)
    addend = h.reshape(*rows.shape[:-1], -1)
    if len(weight) == 1:
        return torch.addmm(addend.squeeze(0), rows.squeeze(0), weight.squeeze(0).T).view(h.shape)
    return torch.baddbmm(addend, rows, weight.mT).view(h.shape)


def _by_run(x: Tensor, weight: Tensor, route: Route) -> tuple[Tensor, Tensor]:
    """x as `[block, rows, inputs]`, and the weight of each block: a block is the rows of a run, or one row of a route by rows."""
    blocks = route.runs if route.rows is None else len(x)
    return x.reshape(blocks, -1, x.shape[-1]), weight if route.rows is None else weight[route.rows]
