"""A golden case: its base, its mixture in our algebra, and the names of its tensors. The format stands in the README beside
the cases. What is not understood here is an error, never left out.
"""

import json
import re
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from safetensors.torch import load_file
from torch import Tensor

from unipelt.inject.architectures import ARCHITECTURES
from unipelt.spec import Bottleneck, Change, Gate, Location, LowRank, Mixture, Prefix

DESCRIPTIVE = (  # of the reference's own options, whose meaning the other keys give
    "note",
    "reduction_factor",
    "reference_config",
    "reference_config_class",
    "reference_default_mlp_hidden",
    "reference_flags",
    "reference_options",
)
READS = {"pfeiffer": "normed sum", "pfeiffer_no_ln": "normed sum", "sequential": "output", "parallel": "input"}

PLACES = {  # of one stack: ours, without stack and layer, and theirs
    "bottleneck_ffn.ffn": "adapter",
    "bottleneck_attention.attention": "adapter_attn",
    "prefix_heads.heads": "prefix",
    "low_rank_query.query": "lora.query",
    "low_rank_value.value": "lora.value",
    "low_rank_query_value.query": "lora.query",
    "low_rank_query_value.value": "lora.value",
    "central": "central",
}
PLACES_OF_TWO = {  # of an encoder and a decoder
    "bottleneck_ffn.ffn": "adapter",
    "bottleneck_attention.attention": "adapter_self_attn",
    "bottleneck_attention.cross_attention": "adapter_cross_attn",
    "bottleneck_heads.heads": "adapter_self_attn",
    "bottleneck_heads.cross_heads": "adapter_cross_attn",
    "prefix_heads.heads": "prefix.self_attn",
    "prefix_heads.cross_heads": "prefix.cross_attn",
    "low_rank_query.query": "lora.self_attn.query",
    "low_rank_query.cross_query": "lora.cross_attn.query",
    "low_rank_value.value": "lora.self_attn.value",
    "low_rank_value.cross_value": "lora.cross_attn.value",
    "low_rank_linear.fc1": "lora.fc1",
    "low_rank_linear_2.fc2": "lora.fc2",
}
FORMS: dict[str, dict[str, Any]] = {  # of prefixes
    "concatenated": {"function": "softmax"},
    "explicit gated addition": {"function": "softmax"},  # the λ form: the same function
    "multi-head parallel adapter (relu)": {"function": "relu", "norm": True},
}
PREFIX_SITES = {"encoder.self": "encoder", "decoder.self": "decoder_self", "decoder.cross": "decoder_cross"}
PREFIX_PARTS = {"embedding": "embedding", "hidden": "mlp.fc1", "outputs": "mlp.fc2"}


@dataclass
class Case:
    """One folder. `tensors` empties as the test takes from it; what is left at the end was not compared."""

    model: dict[str, Any]
    method: dict[str, Any]
    tensors: dict[str, Tensor]

    @classmethod
    def read(cls, folder: Path) -> "Case":
        facts = json.loads((folder / "case.json").read_text())
        assert facts["format_version"] == 1
        case = cls(facts["model"], facts["method"], load_file(folder / "tensors.safetensors"))
        assert {name for name in case.tensors if name.startswith("pelt.")} == set(facts.get("pelt", ()))
        return case

    def take(self, kind: str) -> dict[str, Tensor]:
        """Every tensor of one kind, such as `pelt.`, by the rest of its name; they count as used."""
        names = [name for name in self.tensors if name.startswith(kind)]
        return {name.removeprefix(kind): self.tensors.pop(name) for name in names}

    def base(self) -> transformers.PreTrainedModel:
        base = getattr(transformers, self.model["class"])
        return base._from_config(base.config_class(**self.model["config"]), attn_implementation="eager").double().eval()

    @property
    def has_head(self) -> bool:
        """Whether the case knows a classification head: the language models' own outputs stay as they are."""
        return any(name.startswith(("grad.base.", "pelt.head.")) for name in self.tensors)

    @property
    def hidden_columns(self) -> int:
        """How many columns of our attention weights the reference does not show: it adds the prefix to the base's attention."""
        prefix = self.method.get("prefix", {})
        return prefix["length"] if prefix.get("form") == "explicit gated addition" else 0

    @property
    def stacks(self) -> tuple:
        return ARCHITECTURES[self.model["model_type"]]

    def mixture(self) -> Mixture:
        method = deepcopy(self.method)
        group = "central" if method.pop("central_gate", False) else ""
        changes: list[Change] = []
        for key in BUILDERS:
            settings = method.pop(key, {"enabled": False})
            if settings.pop("enabled"):
                changes.extend(BUILDERS[key](self, settings, group))
            assert_only_descriptive(settings, key)
        assert_only_descriptive(method, "method")
        return Mixture(tuple(changes))

    def everywhere(self, settings: dict) -> None:
        """A change without `layers` is in every attention: the settings must say so where they speak of it."""
        sites = [
            f"{s.name} {kind}_attn" for s in self.stacks for kind in ("self", "cross") if kind == "self" or s.cross
        ]
        short = [site.split()[-1] for site in sites]  # an encoder's alone need not say that it is one
        one_of(settings, "sites", sites, *([short] if len(self.stacks) == 1 else ()))

    def prefix_site(self, path: str) -> str:
        """Their name of the attentions that a prefix of ours is in, with a dot; nothing where there is one stack."""
        stack, _, _, part = Location.parse(path)
        return PREFIX_SITES[f"{stack}.{part.split('.')[0]}"] + "." if len(self.stacks) > 1 else ""

    def names(self, path: str, parameter: Tensor) -> list[tuple[int | None, str]]:
        """Their names of a parameter of ours, each with the layer of it that it names; None: all of it."""
        _, layer, _, part = Location.parse(path)
        if layer is None and (found := re.fullmatch(r"(?:self|cross)\.(key|value|norm_weight|norm_bias)", part)):
            site, leaf = self.prefix_site(path), found[1]
            if leaf.startswith("norm"):
                return [(i, self.norm_name(path, i, leaf.removeprefix("norm_"))) for i in range(parameter.shape[1])]
            return [(i, f"prefix.{site}layer.{i}.{leaf}") for i in range(parameter.shape[1])]
        return [(None, self.name(path))]

    def norm_name(self, path: str, layer: int, leaf: str) -> str:
        """Their name of the LayerNorm before a prefix's query: with the prefix of its attention, or in the layer of its stack."""
        stack, _, _, part = Location.parse(path)
        two, kind = len(self.stacks) > 1, part.split(".")[0]
        beside = rf"prefix\.{re.escape(self.prefix_site(path))}layer\.{layer}\."
        inside = rf"{stack + '.' if two else ''}layer\.{layer}\.\w*{kind if two else ''}\w*\."
        wanted = re.compile(rf"pelt\.((?:{beside}|{inside})(?:\w+\.)*layer_norm\.{leaf})")
        found = [match[1] for name in self.tensors if (match := wanted.fullmatch(name))]
        assert len(found) == 1, f"{path!r} of layer {layer}: {found or 'no tensor'} for its LayerNorm"
        return found[0]

    def name(self, path: str) -> str:
        """Their name of our parameter or gate."""
        stack, layer, change, part = Location.parse(path)
        two = len(self.stacks) > 1
        if change == "head":
            return path
        if layer is None and (found := re.fullmatch(r"(self|cross)\.(embedding|hidden|outputs)(?:\.\d+)?(.*)", part)):
            return f"prefix.{self.prefix_site(path)}{PREFIX_PARTS[found[2]]}{found[3]}"
        place = f"{change}.{part}"
        places = PLACES_OF_TWO if two else PLACES
        ours = max((p for p in places if place.startswith(p + ".")), key=len, default=None)
        assert ours is not None, f"{path!r} has no golden name"
        leaf, theirs = place.removeprefix(ours + "."), places[ours]
        if leaf.startswith("gate"):
            theirs, leaf = f"gate.{theirs.replace('.', '_')}", leaf.removeprefix("gate").removeprefix(".score.")
        elif theirs.startswith("lora"):
            leaf = leaf.removesuffix(".weight")
        elif leaf in ("weight", "bias"):
            leaf = f"layer_norm.{leaf}"
        return f"{stack + '.' if two else ''}layer.{layer}.{theirs}.{leaf.removeprefix('form.')}".rstrip(".")


def one_of(settings: dict, key: str, *known: Any) -> Any:
    """A setting that may be absent, and has one of a few values else."""
    value = settings.pop(key, known[0])
    assert value in known, f"{key}={value!r}: expected one of {known}"
    return value


def assert_only_descriptive(settings: dict, what: str) -> None:
    unknown = set(settings) - set(DESCRIPTIVE)
    assert not unknown, f"{what} has settings that this test does not understand: {sorted(unknown)}"


def _weight(settings: dict, group: str, otherwise: float) -> float | Gate:
    return Gate(pool="reference", group=group) if settings.pop("gated", False) or group else otherwise


def _adapter(case: Case, settings: dict, group: str) -> list[Change]:
    """At the FFN; no group of gates has it as a member."""
    one_of(settings, "site", "ffn")
    reads = READS[settings.pop("kind")]
    if reads == "input" and case.model["config"].get("pre_layer_norm"):
        reads = "residual"  # M's code for mBART
    return [_bottleneck(case, settings, "ffn", reads)]


def _adapter_attn(case: Case, settings: dict, group: str) -> list[Change]:
    one_of(settings, "site", "self_attn")
    case.everywhere(settings)
    reads = READS[settings.pop("kind")]
    return [_bottleneck(case, settings, {"output": "attention", "input": "heads"}[reads], reads)]


def _bottleneck(case: Case, settings: dict, site: str, reads: str) -> Change:
    size, activation, scale = (settings.pop(key) for key in ("bottleneck", "activation", "scale"))
    weight = _weight(settings, "", scale)
    assert weight == scale or scale == 1, "a gate and a scale on one adapter: its weight is one of them"
    form = Bottleneck(size=size, activation=activation, norm=one_of(settings, "ln", "none", "in") == "in")
    return Change(form=form, site=site, reads=reads, weight=weight)


def _lora(case: Case, settings: dict, group: str) -> list[Change]:
    case.everywhere(settings)
    weight = _weight(settings, group, 1.0)
    r, alpha, scale, targets = (settings.pop(key) for key in ("r", "alpha", "scale", "targets"))
    gated = isinstance(weight, Gate)
    assert scale == (None if gated else alpha / r)
    form = LowRank(r=r, alpha=float(r if gated else alpha))  # the gate takes the place of α/r
    sites = [target if target in ("query", "value") else f"linear:{target}" for target in targets]
    joined = [tuple(sites)] if group else sites
    return [Change(form=form, site=site, reads="input", weight=weight) for site in joined]


def _prefix(case: Case, settings: dict, group: str) -> list[Change]:
    case.everywhere(settings)
    one_of(settings, "mlp_activation", "tanh")
    function = FORMS[one_of(settings, "form", *FORMS)]
    if not any(".layer_norm." in name for name in case.tensors):
        function = function | {"norm": False} if "norm" in function else function
    form = Prefix(length=settings.pop("length"), mlp=settings.pop("mlp_hidden", 0), **function)
    return [Change(form=form, site="heads", reads="queries", weight=_weight(settings, group, 1.0))]


BUILDERS = {  # in the order of the mixture: a central gate's first row is LoRA's, its second the prefix's
    "adapter": _adapter,
    "adapter_attn": _adapter_attn,
    "lora": _lora,
    "prefix": _prefix,
}
