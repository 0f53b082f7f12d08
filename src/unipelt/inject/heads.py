"""The head: what a task needs on top of the base. It trains for every method, by default, on the run axis."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from unipelt.errors import SiteError, did_you_mean
from unipelt.forms.constants import scale_and_shift
from unipelt.forms.gate import mean_of_real, shares_of
from unipelt.forms.routed import Route, RoutedLinear, draw_normal
from unipelt.inject.context import Context
from unipelt.inject.state import NAME, AttachedState

POLICIES = ("train", "frozen", "paper")
POOLINGS = ("model", "cls", "mean")


class HeadLinear(nn.Module):
    """A linear of the head, one a run; it starts from the base's own values."""

    def __init__(self, runs: int, linear: nn.Linear, spread: float):
        super().__init__()
        self.linear = RoutedLinear(runs, linear.in_features, linear.out_features, linear.bias is not None)
        self.spread = spread
        copy_to_runs(self.linear.weight, linear.weight)
        if linear.bias is not None:
            copy_to_runs(self.linear.bias, linear.bias)

    def forward(self, x: Tensor, route: Route) -> Tensor:
        return self.linear(x, route)

    def reset_parameters(self, run: int, generator: torch.Generator) -> None:
        """As transformers initialises a head: N(0, initializer_range), bias 0. Class by class: more classes change no row."""
        for row in self.linear.weight.transpose(0, 1):
            draw_normal(row, run, generator, self.spread)
        if self.linear.bias is not None and not self.linear.bias.is_meta:
            self.linear.bias.data[run] = 0


class HeadNorm(nn.Module):
    """A LayerNorm of the head, one a run."""

    def __init__(self, runs: int, norm: nn.LayerNorm):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(runs, *norm.weight.shape))
        self.bias = None if norm.bias is None else nn.Parameter(torch.zeros(runs, *norm.bias.shape))
        self.eps = norm.eps
        copy_to_runs(self.weight, norm.weight)
        if norm.bias is not None:
            copy_to_runs(self.bias, norm.bias)

    def forward(self, x: Tensor, route: Route) -> Tensor:
        return scale_and_shift(F.layer_norm(x, x.shape[-1:], eps=self.eps), self.weight, self.bias, route)

    def reset_parameters(self, run: int, generator: torch.Generator) -> None:
        if not self.weight.is_meta:
            self.weight.data[run] = 1
            if self.bias is not None:
                self.bias.data[run] = 0


class HeadHook:
    """Replaces a head module's output by that of each row's run: one module a mixture."""

    def __init__(self, modules: Sequence[HeadLinear | HeadNorm], route: Any):
        self.modules, self.route = modules, route

    def after(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        batch = args[0].shape[0]
        context = Context.of(self.route().repeated(batch), batch)
        return context.each(lambda own, x: self.modules[own.mixture](x, own.route), args[0])


class Pooling:
    """Gives the head the mean over real tokens, or the first token, where the model would give it its own pooling."""

    def __init__(self, mean: bool):
        self.mean = mean

    def after(self, base: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        states, mask = output.last_hidden_state, kwargs.get("attention_mask")
        if self.mean:
            shares = None if mask is None else shares_of(mask, states.dtype)
            pooled = mean_of_real(states, shares)[:, 0].to(states.dtype)
        else:
            pooled = states[:, 0]
        if getattr(output, "pooler_output", None) is not None:
            return type(output)(**{**output, "pooler_output": pooled})
        return type(output)(**{**output, "last_hidden_state": torch.cat([pooled[:, None], states[:, 1:]], dim=1)})


def find_head(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The modules of the head, by path: what `from_pretrained` had to initialise, tied outputs apart, or, for a model made
    from a config, what stands outside the base model; a language model's outputs are no head then."""
    outputs = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    tied = set()
    if outputs is not None and model.get_input_embeddings() is not None:
        shared = {id(p) for p in model.get_input_embeddings().parameters()}
        if any(id(p) in shared for p in outputs.parameters()):
            tied = {id(p) for p in outputs.parameters()}
    headed = model.base_model is not model and outputs is None
    inside = {id(p) for p in model.base_model.parameters()} if headed else None
    loaded = any(getattr(p, "_is_hf_initialized", False) for p in model.parameters())
    head = {}
    for path, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if id(p) not in tied]
        if loaded:
            new = [p for p in own if not getattr(p, "_is_hf_initialized", False)]
        else:
            new = [p for p in own if inside is not None and id(p) not in inside]
        if new:
            head[path] = module
    return head


def build_head(model: PreTrainedModel, paths: list[str] | None, runs: int) -> dict[str, HeadLinear | HeadNorm]:
    """The head's modules on the run axis. Raises SiteError for a module that has no per-run form."""
    found = find_head(model)
    if paths is not None:
        modules = dict(model.named_modules())
        for path in paths:
            if path not in modules:
                raise SiteError(f"the base has no head module {path!r}: {did_you_mean(path, found)}")
        found = {path: modules[path] for path in paths}
    spread = getattr(model.config, "initializer_range", 0.02)
    head: dict[str, HeadLinear | HeadNorm] = {}
    for path, module in found.items():
        if isinstance(module, nn.Linear):
            head[path] = HeadLinear(runs, module, spread)
        elif isinstance(module, nn.LayerNorm):
            head[path] = HeadNorm(runs, module)
        else:
            raise SiteError(
                f"the base's {path!r} was not in its checkpoint and is a {type(module).__name__}; a head of linears and "
                "LayerNorms can be tuned: load a base that has these weights"
            )
    return head


def output_of(model: PreTrainedModel | AttachedState) -> RoutedLinear | nn.Linear | None:
    """The last linear of the head, where it is trained: tuned runs' own, or that of a model tuned whole."""
    joined = model if isinstance(model, AttachedState) else getattr(model, NAME, None)
    modules = joined.shown().modules() if joined is not None else find_head(model).values()  # type: ignore[arg-type]
    linears = [m.linear if isinstance(m, HeadLinear) else m for m in modules if isinstance(m, HeadLinear | nn.Linear)]
    return linears[-1] if linears and linears[-1].weight.requires_grad else None


@torch.no_grad()
def to_units(model: PreTrainedModel, units: list[tuple[float, float]]) -> None:
    """Put each run's output from standard units into its own: y = mean + deviation · output. units: (mean, deviation) a run."""
    output = output_of(model)
    for run, (mean, deviation) in enumerate(units):
        if output is None or (mean, deviation) == (0.0, 1.0):
            continue
        mine = run if isinstance(output, RoutedLinear) else slice(None)
        output.weight[mine] *= deviation
        if output.bias is not None:
            output.bias[mine] *= deviation
            output.bias[mine] += mean


def copy_to_runs(target: nn.Parameter | None, source: Tensor) -> None:
    if target is not None and not source.is_meta and not target.is_meta:
        target.data.copy_(source.data.expand_as(target))
