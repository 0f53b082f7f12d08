"""Which examples make a batch: in training in an order of the seed's own, in evaluation from the longest to the shortest."""

from collections.abc import Callable, Iterator, Sequence

import torch

CHUNK = 8  # batches that are sorted by length together: padding is short, and examples still come together at random


def epoch_order(
    lengths: Sequence[int], batch_size: int, seed: int, epoch: int, batch_tokens: int = 0
) -> list[list[int]]:
    """The batches of one epoch: rows in an order of the seed's own, like lengths together within a few batches.

    batch_tokens: where it is given, a batch has as many rows as have so many tokens, padding included, and one at least.
    Where short and long batches stand follows from the epoch alone, so that runs of like sizes are short together.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    if batch_tokens:
        batch_size = max(1, batch_tokens * len(order) // sum(lengths))
    size, batches = CHUNK * batch_size, []
    for start in range(0, len(order), size):
        chunk = sorted(order[start : start + size], key=lambda row: lengths[row])
        if batch_tokens:
            batches += _by_tokens(chunk, lengths, batch_tokens)
        else:
            batches += [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
    *full, last = batches  # the last may be smaller
    places = torch.randperm(len(batches), generator=torch.Generator().manual_seed(epoch)).tolist()
    ranked = [*sorted(full, key=lambda rows: sum(lengths[row] for row in rows)), last]
    return [ranked[place] for place in places]


def _by_tokens(rows: list[int], lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Batches of rows that are sorted by length, each as large as `tokens` allow."""
    batches: list[list[int]] = [[]]
    for row in rows:
        if batches[-1] and (len(batches[-1]) + 1) * lengths[row] > tokens:
            batches.append([])
        batches[-1].append(row)
    return batches


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
