"""Encoded examples, and batches that hold an equal block of examples per run. Padding changes no result."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unipelt.errors import DataError

MULTIPLE = 8  # on a GPU widths are rounded up to it: fewer shapes, and the matrix units' own granularity
PROMPT = "prompt_mask"  # of a batch's inputs: 1 at the tokens before the first answer, of a causal language model
POSITIONS = "answer_positions"  # of a batch's inputs: where the logits are read, of a causal language model
IGNORED = -100  # target of a position that no loss counts, as in transformers


@dataclass(frozen=True)
class Encoded:
    """Tokenised examples: per example its tokens by name, and its target."""

    features: dict[str, list[np.ndarray]]
    """one array `[tokens]` per example"""
    targets: list | None
    """as the metrics take them"""
    longest: int
    """tokens that an example was cut to: no batch is wider, so that no base runs out of positions"""
    first_tokens: Sequence[np.ndarray] = ()
    """where the inputs are lists of words: the first token of each word `[words]`, -1 for a word that was cut off"""
    positions: Sequence[np.ndarray] = ()
    """generated text: positions whose logits are read, `[answer]` per example"""
    answers: Sequence[np.ndarray] = ()
    """generated text: target tokens at these positions, `[answer]` per example"""
    prompts: Sequence[list[int]] = ()
    """generated text: tokens of the prompt"""
    gate_prompt_lengths: Sequence[int] = ()
    """how many of each prompt's tokens stand before the first answer: what gates with pool='prompt' average over"""
    decoder_start: int | None = None
    """decoder start token of an encoder-decoder; None for a causal model"""
    truncated: int = 0
    """examples that lost tokens to the largest length"""

    def __len__(self) -> int:
        return len(self.features["input_ids"])

    @cached_property
    def largest_token(self) -> int:
        """The largest token of all examples; 0 where they have none."""
        used: list[Any] = [*self.features["input_ids"], *self.answers, *self.prompts]
        return max((int(np.max(tokens)) for tokens in used if len(tokens)), default=0)

    def lengths(self) -> list[int]:
        """Tokens of each example; of an encoder-decoder, of its source or its answer, whichever has more."""
        lengths = [len(tokens) for tokens in self.features["input_ids"]]
        return [max(size, len(answer)) for size, answer in zip(lengths, self.answers)] if len(self.answers) else lengths

    def take(self, indices: Sequence[int]) -> "Encoded":
        """These examples, in this order."""
        names = ("targets", "first_tokens", "positions", "answers", "prompts", "gate_prompt_lengths")
        fields: dict[str, list] = {name: getattr(self, name) for name in names}
        chosen: dict[str, Any] = {name: [values[i] for i in indices] for name, values in fields.items() if values}
        features = {name: [values[i] for i in indices] for name, values in self.features.items()}
        return replace(self, features=features, **chosen)


def check_tokens(encoded: Encoded, model: PreTrainedModel, name: str) -> Encoded:
    """The examples themselves. Raises DataError where they have tokens for which a base has no embeddings: its tokenizer got
    more than the model."""
    rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    if rows is not None and (most := encoded.largest_token) >= rows:
        raise DataError(
            f"{name}: an example has token {most}, and the base has embeddings for tokens 0 to {rows - 1}: tokens were added to "
            "its tokenizer alone; put its own tokenizer back, or save the base after model.resize_token_embeddings"
        )
    return encoded


class Part(NamedTuple):
    """One run's share of a batch."""

    task: Any
    """the run's Task"""
    encoded: Encoded
    indices: Sequence[int]
    """examples of `encoded`"""


class Batch(NamedTuple):
    """Examples of several runs in equal blocks, one block per run."""

    inputs: dict[str, Int[Tensor, "run*block seq"]]
    """keyword arguments of the model"""
    targets: Tensor
    """`[run, block, …]`, as the task's loss reads them"""
    weights: Float[Tensor, "run block"]
    """1 for an example, 0 for filling"""
    outputs: Int[Tensor, " run"]
    """how many of the model's outputs are the run's own"""
    smoothing: float = 0.0
    """share of the probability that the loss of generated text spreads over the vocabulary"""


def fill(parts: Sequence[Part]) -> tuple[list[Part], Float[Tensor, "run block"]]:
    """Parts of equal length, a shorter one filled with its first example, and which examples count."""
    block = max(len(part.indices) for part in parts)
    weights = [[1.0] * len(part.indices) + [0.0] * (block - len(part.indices)) for part in parts]
    filled = [
        part._replace(indices=[*part.indices, *[part.indices[0]] * (block - len(part.indices))]) for part in parts
    ]
    return filled, torch.tensor(weights)


def model_inputs(
    parts: Sequence[Part], tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> tuple[dict[str, Int[Tensor, "run*block seq"]], list[Part], Float[Tensor, "run block"]]:
    """The model's inputs for equal blocks of examples, one block per run, the parts after filling, and which examples count.

    Padding is on the right whichever side the tokenizer names: bases that number positions from the left, such as GPT-2, would
    else give an example another result in another batch.
    """
    filled, weights = fill(parts)
    padding = {"input_ids": tokenizer.pad_token_id or 0, "token_type_ids": tokenizer.pad_token_type_id}
    lengths = np.array([len(part.encoded.features["input_ids"][i]) for part in filled for i in part.indices])
    longest = int(lengths.max())
    multiple = 1 if device.type == "cpu" else MULTIPLE
    width = max(longest, min(-(-longest // multiple) * multiple, *(part.encoded.longest for part in filled)))
    real = np.arange(width) < lengths[:, None]
    inputs = {}
    for name in filled[0].encoded.features:
        padded = np.full(real.shape, padding.get(name, 0))
        padded[real] = np.concatenate([part.encoded.features[name][i] for part in filled for i in part.indices])
        inputs[name] = torch.from_numpy(padded).to(device)
    return inputs, filled, weights.to(device)


def first_tokens(words: Sequence[int | None], count: int) -> np.ndarray:
    """The first token of each of `count` words `[words]`, -1 for a word without one. words: of each token, None for special ones."""
    first = np.full(count, -1)
    for token in range(len(words) - 1, -1, -1):
        if (word := words[token]) is not None:
            first[word] = token
    return first


def replace_special_tokens(
    examples: Sequence[np.ndarray], added: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Replace special tokens that come from a text itself, such as a written `</s>`, by the unknown token, in place.

    Otherwise heads that pool at the end token, such as BART's, would find two. added: 1 at the tokens that the tokenizer added.
    Raises DataError where the tokenizer has no unknown token.
    """
    unknown = tokenizer.unk_token_id
    special = [token_id for token_id in tokenizer.all_special_ids if token_id != unknown]
    for number, (ids, mask) in enumerate(zip(examples, added)):
        written = np.isin(ids, special) & (np.array(mask) == 0)
        if written.any():
            if unknown is None:
                token = tokenizer.convert_ids_to_tokens(int(ids[written][0]))
                raise DataError(f"example {number + 1} holds {token!r}, a special token of the base; remove it")
            ids[written] = unknown


def weighted_mean(losses: Float[Tensor, "run ..."], weights: Float[Tensor, "run ..."]) -> Float[Tensor, " run"]:
    """Σ wᵢ ℓᵢ / Σ wᵢ over each run's own examples, or over their tokens; 0 for a run without any."""
    return share((losses * weights).flatten(1).sum(dim=1), weights.flatten(1).sum(dim=1))


def share(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, elementwise; 0 where both are 0."""
    return part / whole.where(whole > 0, 1)


def token_weights(batch: Batch) -> Float[Tensor, "run block seq"]:
    """1 at the tokens whose targets count, 0 elsewhere."""
    return (batch.targets != IGNORED) * batch.weights[..., None]


def unused_outputs(outputs: Int[Tensor, " run"], width: int) -> Bool[Tensor, "run width"]:
    """True at the outputs that are beyond a run's own, in a fleet whose head is as wide as its widest task."""
    return torch.arange(width, device=outputs.device) >= outputs[:, None]
