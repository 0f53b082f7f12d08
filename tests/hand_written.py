"""Entries that running a model does not find. `make census` checks them and writes them into the table."""

from unipelt import Attention, Stack

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
