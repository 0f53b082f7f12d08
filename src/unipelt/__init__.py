"""Tune a frozen language model with adapters, prefixes, LoRA, biases, or gated mixtures of them.

    model = AutoModelForSequenceClassification.from_pretrained(…)
    unipelt.attach(model, "unipelt-apl")      # stays a PreTrainedModel: any Trainer works
    unipelt.save(model, "runs/sst2")

The names below are loaded when they are first used, so that `import unipelt` costs next to nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "attach": "inject.attach",
    "detach": "inject.attach",
    "disabled": "inject.state",
    "dropped": "inject.state",
    "route": "inject.state",
    "prompt": "inject.state",
    "compile": "inject.compiled",
    "fix_gates": "inject.fixed_gates",
    "save": "checkpoint.folder",
    "load": "checkpoint.loading",
    "add": "checkpoint.loading",
    "remove": "checkpoint.loading",
    "pipeline": "checkpoint.pipeline",
    "merge": "inject.merge",
    "simplify_gates": "train.simplify",
    "export_merged": "checkpoint.export",
    "export_peft": "checkpoint.formats.peft_export",
    "load_peft": "checkpoint.formats.peft",
    "load_adapterhub": "checkpoint.formats.adapterhub",
    "record_gates": "inject.record",
    "trainable_parameters": "inject.record",
    "Attention": "inject.architectures",
    "Stack": "inject.architectures",
    "Route": "forms.routed",
    "UserError": "errors",
    **dict.fromkeys(
        (
            "Bias",
            "Bottleneck",
            "Change",
            "Gate",
            "Kronecker",
            "Learned",
            "LowRank",
            "Mixture",
            "Norm",
            "Prefix",
            "Prompt",
            "PRESETS",
            "mixture",
        ),
        "spec",
    ),
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'unipelt' has no attribute {name!r}")
    return getattr(import_module(f"unipelt.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
