"""What a fleet's step costs beside the model: its batch, made on the host while a GPU would wait. No GPU needed.

    python benchmarks/host.py                            # 1, 4 and 64 runs of 16 rows, of 128 tokens and of 20 to 60

Beside it, in turns, the same batch made of lists of ints, as it once was.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from unipelt.tasks.batches import Encoded, Part, model_inputs

WORDS = SimpleNamespace(pad_token_id=0, pad_token_type_id=0)
CPU = torch.device("cpu")
Parts = list[Part]


def made(runs: int, shortest: int, longest: int, rows: int = 16, every: int = 1000) -> Parts:
    """One step's rows of each run: a run has its own `every` rows of random words."""
    chance, parts = np.random.default_rng(0), []
    for _ in range(runs):
        ids = [chance.integers(1, 30_000, chance.integers(shortest, longest + 1)).astype(np.int32) for _ in range(every)]  # fmt: skip
        ones, zeros = [np.ones_like(row) for row in ids], [np.zeros_like(row) for row in ids]
        coded = Encoded({"input_ids": ids, "token_type_ids": zeros, "attention_mask": ones}, None, longest)
        parts.append(Part(None, coded, chance.choice(every, rows, replace=False).tolist()))
    return parts


def of_lists(parts: list[tuple[dict[str, list[list[int]]], list[int]]]) -> dict[str, torch.Tensor]:
    """The batch of rows that are lists of ints."""
    width = max(len(features["input_ids"][row]) for features, rows in parts for row in rows)
    inputs = {}
    for name in parts[0][0]:
        lists = [features[name][row] for features, rows in parts for row in rows]
        inputs[name] = torch.tensor([row + [0] * (width - len(row)) for row in lists])
    return inputs


def milliseconds(make: Callable[[], Any]) -> float:
    start = time.perf_counter()
    make()
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[1, 4, 64])
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| runs × rows × tokens | arrays, ms | lists, ms | arrays ÷ lists |\n|---|---|---|---|")
    for shortest, longest in ((128, 128), (20, 60)):
        for runs in given.runs:
            parts = made(runs, shortest, longest)
            lists = [({n: [row.tolist() for row in rows] for n, rows in one.encoded.features.items()}, one.indices) for one in parts]  # fmt: skip
            ours, theirs = partial(model_inputs, parts, WORDS, CPU), partial(of_lists, lists)
            assert all(torch.equal(ours()[0][name], value) for name, value in theirs().items())
            turns = [(milliseconds(ours), milliseconds(theirs)) for _ in range(given.rounds)]
            times = [median(column) for column in zip(*turns)]
            ratio = median(one / other for one, other in turns)
            print(f"| {runs} × 16 × {shortest}–{longest} | {times[0]:.2f} | {times[1]:.2f} | {ratio:.3f} |")


if __name__ == "__main__":
    main()
