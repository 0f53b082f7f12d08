"""How many runs a GPU trains at once, from the memory of a trial step of one run and of two runs."""

import gc
from collections.abc import Sequence
from dataclasses import replace

import torch

from unipelt.train.records import RunConfig
from unipelt.train.runs import Plan
from unipelt.train.setup import DatasetCache, build_fleet

SHARE = 0.8  # of the free memory: evaluations, captured steps and what an allocator cannot fill take the rest


def fitting(free: int, one: int, two: int, most: int) -> int:
    """The largest power of two of runs, 1 to `most`, for which fixed + runs · each ≤ SHARE · free.

    free: bytes. one, two: peak bytes of a step of one and of two runs, so that each = two − one.
    """
    each = max(1, two - one)
    runs = int(SHARE * free - (one - each)) // each
    return 1 << (max(1, min(runs, most)).bit_length() - 1)


def measure_width(
    configs: Sequence[RunConfig], cache: DatasetCache, device: torch.device, most: int, share: float = 1.0
) -> int:
    """Width of a GPU's fleet for these runs, by a step at their longest examples; 1 where two do not fit.

    share: of the GPU that is this fleet's; others fill the rest at the same time.
    """
    try:
        free, whole = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = min(free, int(share * whole))
        one, two = (_peak(configs, cache, device, runs) for runs in (1, 2))
        return fitting(free, one, two, most)
    except torch.OutOfMemoryError:
        return 1
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def _peak(configs: Sequence[RunConfig], cache: DatasetCache, device: torch.device, runs: int) -> int:
    """Peak bytes of a training step, weights included."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    trial(configs, cache, device, runs)
    return torch.cuda.max_memory_allocated(device) - before


def trial(configs: Sequence[RunConfig], cache: DatasetCache, device: torch.device, runs: int) -> tuple[int, int]:
    """Take one step of so many runs at the longest examples of all: (examples, tokens) of each run."""
    fleet = build_fleet(configs, width=runs, device=device, cache=cache)
    largest = max(map(_longest, fleet.plans), key=lambda plan: len(plan.train) * plan.train.lengths()[0])
    fleet.plans = [largest] * len(fleet.plans)
    fleet.step()
    return len(largest.train), largest.train.lengths()[0]


def _longest(plan: Plan) -> Plan:
    """The plan with one batch that repeats its longest example."""
    coded = plan.train
    index = max(range(len(coded)), key=coded.lengths().__getitem__)
    most = plan.recipe.batch_tokens // coded.lengths()[index] or 1
    size = min(most if plan.recipe.batch_tokens else plan.recipe.batch_size, len(coded))
    return replace(plan, train=coded.take([index] * size))
