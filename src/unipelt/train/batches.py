"""Texts become tokens, tokens become batches of rows of like length, whose padding no result depends on."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unipelt.data import Examples

MULTIPLE = 8  # on a GPU lengths are rounded up to it: fewer shapes, and the matrix units' own granularity
CHUNK = 8  # batches that are sorted by length together: like lengths meet, and rows still meet at random


@dataclass(frozen=True)
class Encoded:
    """Tokenised rows: per row its tokens by name, and its label or target."""

    features: dict[str, list[np.ndarray]]
    """`[tokens]` each: a fleet's batch is a thousand of them, joined by one copy"""
    labels: list[int] | list[float] | None
    longest: int
    """tokens that a row was cut to: no batch is wider, so that no base runs out of positions"""

    def __len__(self) -> int:
        return len(self.features["input_ids"])

    def lengths(self) -> list[int]:
        return [len(row) for row in self.features["input_ids"]]


def encode(tokenizer: Any, rows: Examples, max_length: int) -> Encoded:
    """Tokenise rows, single texts or pairs, cut to `max_length` tokens."""
    limit = min(max_length, tokenizer.model_max_length)
    coded = tokenizer(rows.first, rows.second, truncation=True, max_length=limit, padding=False)
    features = {name: [np.array(row, dtype=np.int32) for row in coded[name]] for name in coded}
    return Encoded(features, rows.labels, limit)


def epoch_order(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The batches of one epoch: rows in an order of the seed's own, like lengths together within a few batches.

    Where short and long batches stand follows from the epoch alone, so that runs of like sizes are short together.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    size, batches = CHUNK * batch_size, []
    for start in range(0, len(order), size):
        chunk = sorted(order[start : start + size], key=lambda row: lengths[row])
        batches += [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
    *full, last = batches  # the last may be smaller
    places = torch.randperm(len(batches), generator=torch.Generator().manual_seed(epoch)).tolist()
    ranked = [*sorted(full, key=lambda rows: sum(lengths[row] for row in rows)), last]
    return [ranked[place] for place in places]


def longest_first(lengths: Sequence[Sequence[int]], rows: Callable[[int], int]) -> Iterator[list[list[int]]]:
    """For evaluation: the next rows of each run, from its longest to its shortest, which comes again where none are left.

    rows: how many of each run a batch has, by its longest; the first batch needs the most memory.
    """
    orders = [sorted(range(len(mine)), key=lambda row: -mine[row]) for mine in lengths]
    start = 0
    while start < max(map(len, orders)):
        taken = rows(max(mine[order[min(start, len(order) - 1)]] for mine, order in zip(lengths, orders)))
        yield [order[start : start + taken] or order[-1:] for order in orders]
        start += taken


def collate(
    parts: Sequence[tuple[Encoded, list[int]]], tokenizer: Any, device: torch.device
) -> tuple[dict[str, Tensor], Tensor]:
    """One batch of several runs' rows in equal blocks, and which rows count: a shorter block is filled with its first row.

    Padding is on the right, whichever side the tokenizer names: bases that number positions from the left, such as GPT-2,
    would else give a row another result in another batch.

    Returns the model's inputs `[run · block, seq]` and weights `[run, block]`, 1 for a row and 0 for filling.
    """
    block = max(len(rows) for _, rows in parts)
    filled = [(data, [*rows, *rows[:1] * (block - len(rows))]) for data, rows in parts]
    weights = torch.tensor([[1.0] * len(rows) + [0.0] * (block - len(rows)) for _, rows in parts])
    lengths = np.array([len(data.features["input_ids"][row]) for data, rows in filled for row in rows])
    longest = int(lengths.max())
    multiple = 1 if device.type == "cpu" else MULTIPLE
    width = max(longest, min(-(-longest // multiple) * multiple, *(data.longest for data, _ in filled)))
    real = np.arange(width) < lengths[:, None]
    pads = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
    inputs = {}
    for name in filled[0][0].features:
        padded = np.full(real.shape, pads.get(name, 0))
        padded[real] = np.concatenate([data.features[name][row] for data, rows in filled for row in rows])
        inputs[name] = torch.from_numpy(padded)
    return {name: value.to(device) for name, value in inputs.items()}, weights.to(device)
