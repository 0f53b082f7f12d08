"""Where each architecture keeps its parts: one entry of paths per stack and `config.model_type`.

A table and no behaviour: it imports neither torch nor transformers, and knows nothing of changes. architectures.json holds the
entries that `make census` found by running tiny models, and that the checks of verify.py accepted.
"""

import json
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields, replace
from importlib import resources
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Where one attention block of a layer keeps its parts; paths are relative to the layer."""

    # the module whose forward calls the attention function (gets hidden_states first, or as keyword hidden_states)
    module: str
    # linears; equal paths are one fused projection
    query: str
    key: str
    value: str
    # the output projection: its input is the concatenated heads, its output the attention output
    out: str
    # post-LN models: the LayerNorm applied to (attention output + residual); None for pre-LN
    norm: str | None = None
    # fused projections: how their output features are laid out, the parts (query, key, value, other) in each group
    order: tuple[str, ...] = ("query", "key", "value")
    # fused projections: how many such groups: a number, or "heads" for one per key/value head (GPT-NeoX, Falcon)
    groups: int | str = 1
    # key/value heads, width of a key, width of a value, each a number or the name of an attribute of the module or the
    # config; None where the projections' sizes and the usual names of the number of heads say it
    shape: tuple[int | str, int | str, int | str] | None = None
    # prefixes can enter: the module dispatches through AttentionInterface and hands keywords on to it, or see softmax
    prefix: bool = True
    # attention that computes its own softmax: of scores q kᵀ divided by √d ("scaled"), of q kᵀ as it is ("plain"), or in one
    # call of torch's scaled_dot_product_attention ("fused"); None where it dispatches through AttentionInterface
    softmax: str | None = None


@dataclass(frozen=True, kw_only=True)
class Stack:
    """One encoder or decoder: a list of equal layers over one stream of hidden states."""

    # "encoder" or "decoder"
    name: str
    # path, from the base model (model.base_model), of the module that receives the 2D attention_mask; "" is the base
    module: str
    # path of the layers from the base model: a ModuleList; each * stands for every child, in order, so that shared
    # layers are listed once
    layers: str
    # a token sees only what comes before it
    causal: bool
    attention: Attention
    # over the encoder's output
    cross: Attention | None = None
    # module (relative to the layer) whose first argument is the FFN's direct input (after the pre-norm in pre-LN models)
    ffn_input: str
    # module whose output is the FFN's output before residual (and before any post-norm); equals ffn_input where the FFN
    # is one module
    ffn_output: str
    # post-LN models: LayerNorm over (FFN output + residual), the layer's last norm
    ffn_norm: str | None = None
    # pre-LN models: the module whose first argument is the residual stream entering the FFN block; None for post-LN
    ffn_residual: str | None = None
    # every LayerNorm or RMSNorm of a layer, those of queries and keys apart
    norms: tuple[str, ...]
    # ends of the paths of modules that relative positions pass through too, where config.relative_attention is set
    positions: tuple[str, ...] = ()
    # the stack's module and its layers hand keywords on to the attention blocks
    keywords: bool = True

    def attentions(self) -> list[tuple[str, Attention]]:
        return [("self", self.attention), *([("cross", self.cross)] if self.cross else [])]

    def with_attentions(self, change: Callable[[Attention], Attention], **values: Any) -> "Stack":
        """The same entry with each attention as `change` gives it, and with these values of other fields."""
        return replace(self, attention=change(self.attention), cross=self.cross and change(self.cross), **values)


Kind = type[Attention] | type[Stack]
DEFAULTS: dict[Kind, dict[str, Any]] = {
    kind: {f.name: f.default for f in fields(kind) if f.default is not MISSING} for kind in (Attention, Stack)
}


def entries_to_json(entries: tuple[Stack, ...]) -> list[dict[str, Any]]:
    """The entries as JSON, without fields that have their default value."""
    return [_short(Stack, asdict(entry)) for entry in entries]


def _short(kind: Kind, values: dict[str, Any]) -> dict[str, Any]:
    short = {
        name: _short(Attention, value) if isinstance(value, dict) else value
        for name, value in values.items()
        if name not in DEFAULTS[kind] or value != DEFAULTS[kind][name]
    }
    return {name: list(value) if isinstance(value, tuple) else value for name, value in short.items()}


def entries_from_json(entries: Any) -> tuple[Stack, ...]:
    """The entries that `entries_to_json` has written. Raises ValueError for anything else."""
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"stacks: expected a list of entries, got {type(entries).__name__}")
    return tuple(_read(Stack, entry) for entry in entries)


def _read(kind: Kind, values: Any) -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"stacks: expected an object with the fields of {kind.__name__}, got {type(values).__name__}")
    hints = get_type_hints(kind)
    if unknown := values.keys() - hints.keys():
        raise ValueError(f"stacks: {kind.__name__} has the unknown field {min(unknown)!r}")
    if missing := hints.keys() - values.keys() - DEFAULTS[kind].keys():
        raise ValueError(f"stacks: {kind.__name__} lacks the field {min(missing)!r}")
    return kind(**{name: _value(hints[name], value, f"{kind.__name__}.{name}") for name, value in values.items()})


def _value(hint: Any, value: Any, field_name: str) -> Any:
    """A value of JSON as a field of this type."""
    for kind in get_args(hint) if isinstance(hint, UnionType) else (hint,):
        if kind is Attention and value is not None:
            return _read(Attention, value)
        if get_origin(kind) is tuple and isinstance(value, list):
            return tuple(_value(get_args(kind)[0], item, field_name) for item in value)
        if type(value) is kind:
            return value
    raise ValueError(f"stacks: {field_name}={value!r}: expected {hint}")


@dataclass(frozen=True)
class Known:
    """What the census says of one model type."""

    entries: tuple[Stack, ...] = ()
    """empty where none was found"""
    flags: dict[str, bool | str] | None = None
    """the switches of the config under which the entries were found"""
    refuses: dict[str, str] | None = None
    """methods that do not work, and why"""
    why: str = ""
    """why it has no entry"""


def _census() -> tuple[str, dict[str, Known]]:
    data = json.loads(resources.files("unipelt.inject").joinpath("architectures.json").read_text(encoding="utf-8"))
    known: dict[str, Known] = {}
    for name, item in data["types"].items():
        entries = item.get("entries", [])
        stacks = known[entries].entries if isinstance(entries, str) else entries_from_json(entries) if entries else ()
        known[name] = Known(stacks, item.get("flags"), item.get("refuses", {}), item.get("why", ""))
    return data["transformers"], known


CENSUS_OF, CENSUS = _census()
"""the version of transformers that the census is of, and what it found of each of its model types"""

ARCHITECTURES: dict[str, tuple[Stack, ...]] = {name: known.entries for name, known in CENSUS.items() if known.entries}

NO_SWITCHES = ("act", "bias", "cache", "dropout", "dtype", "init", "label", "loss", "output", "problem", "return", "scale",
               "tie", "topk", "torch", "_name", "transformers_version", "attn_impl", "model_type", "chunk", "feat_extract",
               "language")  # fmt: skip
"""parts of names of config fields that move no module"""


USUAL = {"add_cross_attention": False, "is_causal": True, "is_decoder": False, "use_bidirectional_attention": False}
"""switches that any config may have"""


def flags_of(config: Any) -> dict[str, bool | str]:
    """The switches of a config that may change where its parts are, or whether tokens see later ones."""
    values = {name: value for name, value in vars(config).items() if isinstance(value, bool | str)}
    return {n: v for n, v in sorted(values.items()) if n[0] != "_" and not any(part in n for part in NO_SWITCHES)}


def entries_for(config: Any) -> tuple[Stack, ...] | None:
    """The entries of the table for a model's config; None where it has none, or found them under other switches."""
    return None if other_switch(config) is not None else ARCHITECTURES.get(config.model_type)


def other_switch(config: Any) -> str | None:
    """The first switch of a config that is not as it was when the entries of its type were found, with its value."""
    known = CENSUS.get(config.model_type)
    if known is None or known.flags is None or config.model_type not in ARCHITECTURES:
        return None
    flags, expected = USUAL | flags_of(config), USUAL | known.flags
    return next((f"{name}={flags[name]!r}" for name, was in expected.items() if flags.get(name, was) != was), None)
