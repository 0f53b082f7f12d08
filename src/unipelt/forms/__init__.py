"""What a change computes. Every form is written once, on the run axis; nothing here knows transformers."""

from collections.abc import Callable

from torch import nn

from unipelt import spec
from unipelt.errors import SiteError
from unipelt.forms.bottleneck import Bottleneck, NormedInput
from unipelt.forms.kronecker import Kronecker
from unipelt.forms.low_rank import LowRank
from unipelt.forms.routed import Route, RoutedLinear
from unipelt.forms.scaling import Scaling


def _bottleneck(form: spec.Bottleneck, runs: int, inputs: int, outputs: int) -> nn.Module:
    built = Bottleneck(runs, inputs, outputs, form.size, form.activation, form.init, form.dropout)
    return NormedInput(runs, inputs, built) if form.norm else built


def _kronecker(form: spec.Kronecker, runs: int, inputs: int, outputs: int) -> nn.Module:
    if inputs % form.terms or outputs % form.terms:
        raise SiteError(f"kronecker(terms={form.terms}) from {inputs} to {outputs} features: terms must divide both")
    return Kronecker(runs, inputs, outputs, form.size, form.terms, form.rank, form.activation)


def _low_rank(form: spec.LowRank, runs: int, inputs: int, outputs: int) -> nn.Module:
    return LowRank(runs, inputs, outputs, form.r, form.alpha, form.dropout)


def _scaling(form: spec.Scaling, runs: int, inputs: int, outputs: int) -> nn.Module:
    return Scaling(runs, outputs)


MAPS: dict[str, Callable[..., nn.Module]] = {
    "bottleneck": _bottleneck,
    "kronecker": _kronecker,
    "low_rank": _low_rank,
    "scaling": _scaling,
}
"""The forms that are maps from `inputs` to `outputs` features, each with the function that builds it from its settings."""

LAST: dict[str, tuple[str, ...]] = {
    "bottleneck": ("up.weight", "up.bias"),
    "kronecker": ("up.right", "up.bias"),
    "low_rank": ("up.weight",),
    "scaling": ("offset",),
    "prefix": ("key", "value"),
}
"""The parameters, of each form that may be gated, that a constant weight can be multiplied into."""


def takes_weight(form: spec.Form, path: str) -> bool:
    """Whether this parameter of a form is among those that a constant weight multiplies."""
    last = ("value",) if isinstance(form, spec.Prefix) and form.function == "relu" else LAST[form.name]
    return path.endswith(tuple("." + name for name in last))


__all__ = ["MAPS", "Route", "RoutedLinear", "takes_weight"]
