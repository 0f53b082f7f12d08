"""Where each architecture keeps its parts: one row of paths per stack and `config.model_type`.

A table and no behaviour: it imports neither torch nor transformers, and knows nothing of changes. architectures.json holds the
rows that `make census` found by running tiny models, and that the checks of verify.py accepted; here are those that running does not find.
"""

import json
from dataclasses import MISSING, asdict, dataclass, fields, replace
from importlib import resources
from typing import Any


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


_DEBERTA = Stack(  # the projections read relative positions too, which a norm outside the layers has made
    name="encoder",
    module="",
    layers="encoder.layer",
    causal=False,
    attention=Attention(
        module="attention.self",
        query="attention.self.query_proj",
        key="attention.self.key_proj",
        value="attention.self.value_proj",
        out="attention.output.dense",
        norm="attention.output.LayerNorm",
        prefix=False,
    ),
    ffn_input="intermediate.dense",
    ffn_output="output.dense",
    ffn_norm="output.LayerNorm",
    norms=("attention.output.LayerNorm", "output.LayerNorm"),
    positions=("query_proj", "key_proj", "pos_query_proj", "pos_key_proj", "encoder.LayerNorm"),
)

_CODEGEN = Stack(
    name="decoder",
    module="",
    layers="h",
    causal=True,
    attention=Attention(
        module="attn",
        query="attn.qkv_proj",
        key="attn.qkv_proj",
        value="attn.qkv_proj",
        out="attn.out_proj",
        order=("query", "value", "key"),
        groups=4,  # whatever the number of heads, which a model of four heads does not show
        softmax="scaled",
    ),
    ffn_input="mlp",
    ffn_output="mlp",
    ffn_residual="ln_1",
    norms=("ln_1",),
)

HAND_WRITTEN: dict[str, tuple[Stack, ...]] = {"deberta-v2": (_DEBERTA,), "codegen": (_CODEGEN,)}

Kind = type[Attention] | type[Stack]
DEFAULTS: dict[Kind, dict[str, Any]] = {
    kind: {f.name: f.default for f in fields(kind) if f.default is not MISSING} for kind in (Attention, Stack)
}
TEXT, TRUTH, NUMBER = (str,), (bool,), (int, str)
KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("name", "module", "layers", "query", "key", "value", "out", "ffn_input", "ffn_output"), TEXT),
    **dict.fromkeys(("norm", "ffn_norm", "ffn_residual", "softmax"), (str, type(None))),
    **dict.fromkeys(("causal", "prefix", "keywords"), TRUTH),
    "groups": NUMBER,
}
LISTS: dict[str, tuple[type, ...]] = {"norms": TEXT, "positions": TEXT, "order": TEXT, "shape": NUMBER}


def rows_to_json(rows: tuple[Stack, ...]) -> list[dict[str, Any]]:
    """Rows as JSON, without what is as by default."""
    return [_short(Stack, asdict(row)) for row in rows]


def _short(kind: Kind, values: dict[str, Any]) -> dict[str, Any]:
    short = {
        name: _short(Attention, value) if isinstance(value, dict) else value
        for name, value in values.items()
        if name not in DEFAULTS[kind] or value != DEFAULTS[kind][name]
    }
    return {name: list(value) if isinstance(value, tuple) else value for name, value in short.items()}


def rows_from_json(rows: Any) -> tuple[Stack, ...]:
    """The rows that `rows_to_json` has written. Raises ValueError for anything else."""
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"stacks: expected a list of rows, got {type(rows).__name__}")
    return tuple(_read(Stack, row) for row in rows)


def _read(kind: Kind, values: Any) -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"stacks: expected an object with the fields of {kind.__name__}, got {type(values).__name__}")
    known = {f.name for f in fields(kind)}
    if wrong := [*(values.keys() - known), *(known - values.keys() - DEFAULTS[kind].keys())]:
        raise ValueError(f"stacks: {kind.__name__} with or without {wrong[0]!r}")
    return kind(**{name: _value(kind, name, value) for name, value in values.items()})


def _value(kind: Kind, name: str, value: Any) -> Any:
    if kind is Stack and name in ("attention", "cross"):
        return None if name == "cross" and value is None else _read(Attention, value)
    allowed = LISTS[name] if name in LISTS else KINDS[name]
    each = value if name in LISTS and isinstance(value, list) else [value]
    if name in LISTS and value is None and name == "shape":
        return None
    if (name in LISTS) != isinstance(value, list) or any(type(one) not in allowed for one in each):
        raise ValueError(f"stacks: {kind.__name__}.{name}={value!r} is not of its kind")
    return tuple(value) if name in LISTS else value


def without_prefix(rows: tuple[Stack, ...]) -> tuple[Stack, ...]:
    """The same rows, with attention that no prefix enters."""
    return tuple(
        replace(
            row,
            attention=replace(row.attention, prefix=False, softmax=None),
            cross=row.cross and replace(row.cross, prefix=False, softmax=None),
            keywords=True,
        )
        for row in rows
    )


@dataclass(frozen=True)
class Known:
    """What the census says of one model type."""

    rows: tuple[Stack, ...] = ()
    """empty where none was found"""
    flags: dict[str, bool | str] | None = None
    """the switches of the config under which the rows were found"""
    refuses: dict[str, str] | None = None
    """methods that do not work, and why"""
    why: str = ""
    """why it has no row"""


def _census() -> tuple[str, dict[str, Known]]:
    data = json.loads(resources.files("unipelt.inject").joinpath("architectures.json").read_text(encoding="utf-8"))
    known: dict[str, Known] = {}
    for name, entry in data["types"].items():
        rows = entry.get("rows", [])
        found = known[rows].rows if isinstance(rows, str) else rows_from_json(rows) if rows else ()
        known[name] = Known(found, entry.get("flags"), entry.get("refuses", {}), entry.get("why", ""))
    return data["transformers"], known


CENSUS_OF, CENSUS = _census()
"""the version of transformers that the census is of, and what it found of each of its model types"""

ARCHITECTURES: dict[str, tuple[Stack, ...]] = {name: known.rows for name, known in CENSUS.items() if known.rows}
ARCHITECTURES |= HAND_WRITTEN

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


def rows_for(config: Any) -> tuple[Stack, ...] | None:
    """The rows of the table for a model's config; None where it has none, or found them under other switches."""
    return None if other_switch(config) is not None else ARCHITECTURES.get(config.model_type)


def other_switch(config: Any) -> str | None:
    """The first switch of a config that is not as it was when the rows of its type were found, with its value."""
    known = CENSUS.get(config.model_type)
    if known is None or known.flags is None or config.model_type not in ARCHITECTURES:
        return None
    now, before = USUAL | flags_of(config), USUAL | known.flags
    return next((f"{name}={now[name]!r}" for name, was in before.items() if now.get(name, was) != was), None)
