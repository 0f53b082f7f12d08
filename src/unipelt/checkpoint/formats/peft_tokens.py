"""peft's folders of prefix tuning and prompt tuning.

peft keeps a prefix in the cache, so it moves the positions of all tokens by its length, and its keys have none. With rotary
positions only the distance counts: rotated backwards by the length, the keys are those of a prefix that moves nothing.
"""

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from unipelt import spec
from unipelt.errors import CheckpointError, SpecError
from unipelt.forms.prefix import HeadShape
from unipelt.inject.hooks import BoundChange
from unipelt.inject.resolve import ResolvedStack, by_head_shape

KEY = "prompt_embeddings"
SHAPE = {"num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers"}
READ = {
    "PROMPT_TUNING": SHAPE
    | {"prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"},
    "PREFIX_TUNING": SHAPE | {"encoder_hidden_size", "prefix_projection", "init_weights"},
}
"""options that are read, or that only matter at the start of training"""
Values = Callable[[dict[str, Tensor], list[BoundChange]], dict[str, Tensor]]
"""from the parameters and changes of a mixture on a base, without values, to values by name"""
Contents = tuple[tuple[spec.Change, ...], Values, dict[str, Tensor]]
"""changes, a function that gives their parameters, and the tensors that are left for the head"""


def read(
    stacks: list[ResolvedStack],
    model: PreTrainedModel,
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    folder: Path,
) -> Contents:
    """What a folder holds. Raises CheckpointError, or SpecError for a prefix that is none of ours."""
    length, vectors = config.get("num_virtual_tokens"), tensors.get(KEY)
    if type(length) is not int or length < 1:
        raise CheckpointError(f"{folder}: num_virtual_tokens={length!r}, expected a whole number from 1")
    if vectors is None or vectors.dim() != 2:
        raise CheckpointError(f"{folder}: has no {KEY!r} [token, number]; another method, or a damaged folder")
    parse = _prompt if config["peft_type"] == "PROMPT_TUNING" else _prefix
    change, parameters = parse(stacks, model, vectors, length, folder)

    def values(shapes: dict[str, Tensor], changes: list[BoundChange]) -> dict[str, Tensor]:
        return {name: parameters[name.rsplit(".", 1)[-1]] for name in shapes if not name.startswith("head.")}

    return (change,), values, {name: value for name, value in tensors.items() if name != KEY}


def _prefix(
    stacks: list[ResolvedStack], model: PreTrainedModel, vectors: Tensor, length: int, folder: Path
) -> tuple[spec.Change, dict[str, Tensor]]:
    """The change, and its parameters by their last name."""
    layout = PrefixLayout(model, stacks)
    if vectors.shape != (expected := (length, layout.layers * 2 * layout.width)):
        raise CheckpointError(f"{folder}: {KEY!r} is {tuple(vectors.shape)}, expected {expected}; load its own base")
    key, value = layout.of_peft(vectors)
    change = spec.Change(form=spec.Prefix(length=length, mlp=0), site="heads", reads="queries")
    return change, {"key": key, "value": value}


def _prompt(
    stacks: list[ResolvedStack], model: PreTrainedModel, vectors: Tensor, length: int, folder: Path
) -> tuple[spec.Change, dict[str, Tensor]]:
    table: Any = stacks[0].module.get_input_embeddings()  # type: ignore[operator]
    if len(vectors) % length or vectors.shape[1] != table.embedding_dim:
        expected = (length, table.embedding_dim)
        raise CheckpointError(f"{folder}: {KEY!r} is {tuple(vectors.shape)}, expected {expected}; load its own base")
    form = spec.Prompt(length=length, first=prompt_first(model, stacks))
    change = spec.Change(form=form, site="embeddings", reads="nothing")
    return change, {"vectors": vectors[:length]}  # behind them those of a decoder, which peft does not use


def prompt_first(model: PreTrainedModel, stacks: list[ResolvedStack]) -> Any:
    """`Prompt.first` as in peft, where a classifier on an encoder reads the prompt's first position."""
    alone = len(stacks) == 1 and not stacks[0].entry.causal
    return "prompt" if alone and type(model).__name__.endswith("ForSequenceClassification") else "input"


class PrefixLayout:
    """How peft lays out a prefix: for each token all layers' keys and values in turn, and how it turns the keys.

    Raises SpecError where a prefix of peft is no prefix of ours.
    """

    def __init__(self, model: PreTrainedModel, stacks: list[ResolvedStack]):
        config: Any = model.base_model.config  # type: ignore[union-attr]
        (stack, *others), name = stacks, config.model_type
        if others or not stack.entry.causal:
            architecture = "is an encoder-decoder" if others else "is an encoder"
            reason = "reaches only its decoder's self-attention" if others else "moves the positions of its tokens"
            raise SpecError(
                f"a prefix of peft's on {name!r}, which {architecture}: there it {reason}; peft itself can use it"
            )
        groups = by_head_shape(stack.layers, stack.entry.attention, config)
        if len(groups) > 1 or groups[0][0].key != groups[0][0].value:
            raise SpecError(f"a prefix of peft's on {name!r}: its layers or its keys and values are of unlike widths")
        self.shape: HeadShape = groups[0][0]
        self.model, self.stack, self.config = model, stack, config
        self.layers, self.width = len(stack.layers), self.shape.heads * self.shape.key
        self.rotary = getattr(stack.module, "rotary_emb", None)
        kinds = {kind.get("rope_type") for kind in self._rope()}
        modelling = sys.modules[type(stack.layers[0].get(stack.entry.attention.module)).__module__]
        self.rotate: Any = getattr(modelling, "apply_rotary_pos_emb", None)
        if self.rotary is None or self.rotate is None or kinds & {"dynamic", "longrope", "yarn"}:
            positions = (
                "no rotary positions" if self.rotary is None else f"positions of kind {', '.join(map(str, kinds))}"
            )
            raise SpecError(
                f"a prefix of peft's moves the positions of all tokens by its length, and {name!r} has {positions}, so no prefix of "
                "ours does the same; peft itself can use it"
            )

    def _rope(self) -> list[dict[str, Any]]:
        """Its parameters, of each kind of layer where these differ."""
        rope_parameters = getattr(self.config, "rope_parameters", None) or {}
        nested = [value for value in rope_parameters.values() if isinstance(value, dict)]
        return nested or [rope_parameters]

    def of_peft(
        self, vectors: Float[Tensor, "prefix both"]
    ) -> tuple[Float[Tensor, "layer prefix width"], Float[Tensor, "layer prefix width"]]:
        """Keys and values of each layer, from peft's, whose keys have no position and whose tokens are further on."""
        key, value = vectors.unflatten(1, (self.layers, 2, self.width)).permute(2, 1, 0, 3)
        return self._rotated(key, -len(vectors)), value.contiguous()

    def to_peft(
        self, key: Float[Tensor, "layer prefix width"], value: Float[Tensor, "layer prefix width"]
    ) -> Float[Tensor, "prefix both"]:
        """The inverse."""
        both = torch.stack([self._rotated(key, key.shape[1]), value])
        return both.permute(2, 1, 0, 3).flatten(1)

    def _rotated(self, key: Float[Tensor, "layer prefix width"], by: int) -> Float[Tensor, "layer prefix width"]:
        """Keys rotated as a token's at position `by` are, in float64."""
        heads, rotated, device = self.shape.heads, [], next(self.model.parameters()).device
        kinds = getattr(self.config, "layer_types", None)
        rotary: Any = self.rotary
        typed = "layer_type" in inspect.signature(type(rotary).forward).parameters
        position = torch.full((1, key.shape[1]), by, device=device)
        for layer, k in zip(self.stack.layers, key):
            x = k.detach().to(device).double().unflatten(-1, (heads, -1)).transpose(0, 1)[None]  # batch head prefix d
            extra = {"layer_type": kinds[layer.index]} if typed and kinds else {}
            cos, sin = rotary(x, position, **extra)
            rotated.append(self.rotate(x, x, cos, sin)[1][0].transpose(0, 1).flatten(1))
        return torch.stack(rotated).to(key)
