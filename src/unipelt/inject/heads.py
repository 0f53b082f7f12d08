"""The head: what a task needs on top of the base. It trains for every method, by default, on the run axis."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from unipelt.errors import SiteError, did_you_mean
from unipelt.forms.routed import Route, RoutedLinear, draw_normal, scale_and_shift
from unipelt.inject.resolve import embedding_module
from unipelt.inject.state import NAME, AttachedState, MixtureState
from unipelt.spec.location import HEAD

POLICIES = ("train", "frozen", "paper")
POOLINGS = ("model", "cls", "mean")


class HeadLinear(RoutedLinear):
    """A linear of the head, one per run; it starts from the base's own values."""

    def __init__(self, runs: int, linear: nn.Linear, deviation: float):
        super().__init__(runs, linear.in_features, linear.out_features, linear.bias is not None)
        self.deviation = deviation
        copy_to_runs(self, linear)

    def reset_parameters(self, run: int, generator: torch.Generator) -> None:
        """As transformers initialises a head: N(0, initializer_range), bias 0. Class by class: more classes change no row."""
        for row in self.weight.transpose(0, 1):
            draw_normal(row, run, generator, self.deviation)
        if self.bias is not None and not self.bias.is_meta:
            self.bias.data[run] = 0


class HeadNorm(nn.Module):
    """A LayerNorm of the head, one per run."""

    def __init__(self, runs: int, norm: nn.LayerNorm):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(runs, *norm.weight.shape))
        self.bias = None if norm.bias is None else nn.Parameter(torch.zeros(runs, *norm.bias.shape))
        self.eps = norm.eps
        copy_to_runs(self, norm)

    def forward(self, x: Float[Tensor, "rows *seq d"], route: Route) -> Float[Tensor, "rows *seq d"]:
        return scale_and_shift(F.layer_norm(x, x.shape[-1:], eps=self.eps), self.weight, self.bias, route)

    def reset_parameters(self, run: int, generator: torch.Generator) -> None:
        if not self.weight.is_meta:
            self.weight.data[run] = 1
            if self.bias is not None:
                self.bias.data[run] = 0


def copy_to_runs(target: HeadLinear | HeadNorm, source: nn.Linear | nn.LayerNorm) -> None:
    """Give each run the base's own values."""
    for name, values in source.named_parameters():
        parameter = target.get_parameter(name)
        if not values.is_meta and not parameter.is_meta:
            parameter.data.copy_(values.data.expand_as(parameter))


def find_head(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The modules of the head, by path: what has parameters of its own and stands outside of the base model.

    A language model has none: its logits come from its output embeddings, with whatever stands before these.
    """
    if model.base_model is model or embedding_module(model, "output") is not None:
        return {}
    inside = {id(p) for p in model.base_model.parameters()}
    return {
        path: module
        for path, module in model.named_modules()
        if any(id(p) not in inside for p in module.parameters(recurse=False))
        and path.split(".")[0] != NAME
    }  # fmt: skip


def build_head(model: PreTrainedModel, paths: list[str] | None, runs: int) -> dict[str, HeadLinear | HeadNorm]:
    """The head's modules on the run axis. Raises SiteError for an unknown path, and for a module that has no per-run form."""
    head_modules = find_head(model)
    if paths is not None:
        modules = dict(model.named_modules())
        for path in paths:
            if path not in modules:
                raise SiteError(f"the base has no head module {path!r}: {did_you_mean(path, head_modules)}")
        head_modules = {path: modules[path] for path in paths}
    deviation = getattr(model.config, "initializer_range", 0.02)
    head: dict[str, HeadLinear | HeadNorm] = {}
    for path, module in head_modules.items():
        if isinstance(module, nn.Linear):
            head[path] = HeadLinear(runs, module, deviation)
        elif isinstance(module, nn.LayerNorm):
            head[path] = HeadNorm(runs, module)
        else:
            raise SiteError(
                f"the head's {path!r} is a {type(module).__name__}; expected linears and LayerNorms, which can be tuned run by run: "
                "name those that are to be tuned, attach(…, head_modules=[…]), or none, head_modules=[]"
            )
    return head


def train_head(state: MixtureState, policy: str) -> None:
    """Set what of the head trains. `paper`, as in UniPELT's code: the head trains with adapters (bottleneck or Kronecker) and
    with the method head; only its bias trains with BitFit; else it is frozen."""
    forms = {change.form.name for change in state.mixture.changes}
    if policy == "paper":
        adapted = forms & {"bottleneck", "kronecker"} or not forms
        policy = "train" if adapted else "bias" if forms == {"bias"} else "frozen"
    for location, parameter in state.named_locations():
        if location.change == HEAD:
            parameter.requires_grad_(policy == "train" or (policy == "bias" and location.part.endswith("bias")))


def output_of(model: PreTrainedModel | AttachedState, *, trained: bool = True) -> HeadLinear | nn.Linear | None:
    """The last linear of the head: tuned runs' own, or that of a model tuned whole. trained: None where it does not train."""
    attached = model if isinstance(model, AttachedState) else getattr(model, NAME, None)
    modules = attached.active().modules() if attached is not None else find_head(model).values()  # type: ignore[arg-type]
    linears = [module for module in modules if isinstance(module, HeadLinear | nn.Linear)]
    return linears[-1] if linears and (linears[-1].weight.requires_grad or not trained) else None


@torch.no_grad()
def rescale_outputs(model: PreTrainedModel, scales: list[tuple[float, float]], *, trained: bool = True) -> None:
    """Rescale the output of each run's last linear, in place: y ← mean + deviation · y. scales: (mean, deviation) by run.

    trained: leave a linear that does not train as it is.
    """
    output = output_of(model, trained=trained)
    for run, (mean, deviation) in enumerate(scales):
        if output is None or (mean, deviation) == (0.0, 1.0):
            continue
        index = run if isinstance(output, HeadLinear) else slice(None)
        output.weight[index] *= deviation
        if output.bias is not None:
            output.bias[index] *= deviation
            output.bias[index] += mean
