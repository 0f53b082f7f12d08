"""The names of our parameters in files of `adapters` 1.x."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from unipelt import spec
from unipelt.errors import CheckpointError
from unipelt.inject.resolve import ResolvedStack

BERTS = ("bert", "roberta", "xlm-roberta", "electra", "deberta-v2")
GATE = {"gate.score.weight": "gate.weight", "gate.score.bias": "gate.bias"}
BOTTLENECK = GATE | {
    "down.weight": "adapter_down.0.weight",
    "down.bias": "adapter_down.0.bias",
    "up.weight": "adapter_up.weight",
    "up.bias": "adapter_up.bias",
}
LOW_RANK = GATE | {"down.weight": "lora_A", "up.weight": "lora_B"}
PREFIX = {"embedding": "wte.weight", "hidden": "control_trans.0", "outputs": "control_trans.2"}
FLAT = "control_trans"


@dataclass
class Names:
    """The names of one adapter on one base; `key` and `value` take the name of one of our parameters."""

    kind: str
    """model_type of the base"""
    adapter: str
    """its own name, which is in every key"""
    changes: dict[str, spec.Change]
    stacks: list[ResolvedStack]

    def key(self, name: str) -> str:
        location = spec.Location.parse(name)
        if location.layer is None:
            return self._prefix(location.stack, *location.part.split("."))
        stack = next(stack for stack in self.stacks if stack.entry.name == location.stack)
        base = stack.path.removesuffix(stack.entry.module).rstrip(".")
        layer = stack.layers[location.layer].path.removeprefix(base + "." if base else "")
        change, site = self.changes[location.change], location.part
        if change.form.name == "bottleneck":
            if site.endswith("scale.scale"):
                site, part = site.removesuffix("scale.scale") + str(change.site), "scaling"
            else:
                site, part = _split(site, BOTTLENECK)
            return f"{layer}.{self._owner(stack, site)}.adapters.{self.adapter}.{part}"
        site, part = _split(site, LOW_RANK)
        attention = stack.entry.cross if site.startswith("cross_") else stack.entry.attention
        if change.form.name == "prefix":
            return f"{layer}.{attention.module}.prefix_tuning.prefix_gates.{self.adapter}.{part.removeprefix('gate.')}"  # type: ignore[union-attr]
        linear = getattr(attention, site.removeprefix("cross_"), site)
        return f"{layer}.{linear}.loras.{self.adapter}.{part}"

    def value(self, name: str, tensor: Tensor) -> Tensor:
        """Their tensor in our shape; where it cannot have it, as it is."""
        location = spec.Location.parse(name)
        if location.part.endswith("scale.scale"):
            return tensor.squeeze()
        if location.layer is not None:
            return tensor
        depth, rest = self._depth(location.stack, location.change), location.part.split(".")
        if rest[-1] in ("key", "value"):
            length, slot = self.changes[location.change].form.length, ("key", "value").index(rest[-1])  # type: ignore[union-attr]
            if tensor.numel() % (length * depth * 2) == 0:
                return tensor.view(length, depth, 2, -1)[:, :, slot].transpose(0, 1)
        if "outputs" in rest and len(tensor) % depth == 0:
            return tensor.unflatten(0, (depth, -1))[int(rest[-2])]
        return tensor

    def _depth(self, stack: str, change: str) -> int:
        """Number of layers that a change is in."""
        return len(self.changes[change].layers or next(s for s in self.stacks if s.entry.name == stack).layers)

    def _prefix(self, stack: str, attention: str, part: str, *leaf: str) -> str:
        leaf = leaf[-1:] if part == "outputs" else leaf  # theirs is one matrix for all layers
        if attention == "cross":
            location = "cross_prefix"
        elif stack == "encoder" and len(self.stacks) > 1:
            location = "encoder_prefix"
        else:
            location = "self" if self.kind == "distilbert" else "self_prefix"
        return ".".join(["prefix_tunings", self.adapter, location, PREFIX.get(part, FLAT), *leaf])

    def _owner(self, stack: ResolvedStack, site: str) -> str:
        """The module of a layer that holds the adapters of a site: ffn, attention or cross_attention."""
        entry = stack.entry
        if self.kind in BERTS:
            return {"attention": "attention.output", "ffn": "output"}[site]
        if self.kind == "t5":
            module = {"ffn": entry.ffn_output, "attention": entry.attention.module}
            return (module.get(site) or entry.cross.module).rpartition(".")[0]  # type: ignore[union-attr]
        inner = "attention." if self.kind == "albert" and site == "attention" else ""
        return inner + {"ffn": "output_adapters"}.get(site, f"{site}_adapters")


def _split(site: str, parts: dict[str, str]) -> tuple[str, str]:
    """The site in one of our names, and their name for its part."""
    end = next(end for end in parts if site.endswith("." + end))
    return site.removesuffix("." + end), parts[end]


def plain_keys(model: PreTrainedModel, tensors: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Keys counted from the base model, each prefix once: `adapters` saves it again for every layer that shares it."""
    plain: dict[str, Tensor] = {}
    for key, value in tensors.items():
        name = key.removeprefix(f"{model.base_model_prefix}.")
        name = re.sub(r"^(?:.*\.)?prefix_tuning\.(?:pool\.)?prefix_tunings\.", "prefix_tunings.", name)
        if name in plain and not torch.equal(plain[name], value):
            raise CheckpointError(f"{folder}: its copies of {name!r} differ")
        plain[name] = value
    return plain
