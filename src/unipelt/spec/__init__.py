"""What a mixture is. This package imports only the standard library: no torch, no transformers."""

from unipelt.spec.change import Change, Gate, Learned, Mixture, Weight
from unipelt.spec.compatibility import RULES, equation
from unipelt.spec.forms import FORMS, Bias, Bottleneck, Dora, Form, Kronecker, LowRank, Norm, Prefix, Prompt, Scaling
from unipelt.spec.location import Location
from unipelt.spec.presets import DEFAULT, PRESETS, canonical, mixture, settings

__all__ = [
    "DEFAULT", "FORMS", "PRESETS", "RULES", "Bias", "Bottleneck", "Change", "Dora", "Form", "Gate", "Kronecker", "Learned",
    "Location", "LowRank", "Mixture", "Norm", "Prefix", "Prompt", "Scaling", "Weight", "canonical", "equation", "mixture",
    "settings",
]  # fmt: skip
