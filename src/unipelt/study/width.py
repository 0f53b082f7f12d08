"""How many runs a device trains at once: a trial step of one and of two runs tells what each needs."""

import gc
from collections.abc import Sequence
from dataclasses import replace

import torch

from unipelt.checkpoint.bases import load_both
from unipelt.errors import DataError
from unipelt.train.batches import Encoded
from unipelt.train.fleet import Fleet, Plan
from unipelt.train.records import Request
from unipelt.train.runner import DatasetCache, methods_of, prepare_run
from unipelt.train.setup import prepare

SHARE = 0.8  # of the free memory: evaluations, captured steps and what an allocator cannot fill have the rest


def fitting(free: int, one: int, two: int, most: int) -> int:
    """The largest power of two of runs, 1 to `most`, for which fixed + runs · each ≤ SHARE · free.

    free: bytes; one and two: the most bytes that a step of one and of two runs has held, so that each = two − one.
    """
    each = max(1, two - one)
    runs = int(SHARE * free - (one - each)) // each
    return 1 << (max(1, min(runs, most)).bit_length() - 1)


def measured(
    requests: Sequence[Request], corpus: DatasetCache, device: torch.device, most: int, share: float = 1.0
) -> int:
    """The width of a GPU's fleet that trains these requests, by a step at their longest rows; 1 where two have no room.

    share: of the GPU that is this fleet's; others fill the rest at the same time.
    """
    try:
        free, whole = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = min(free, int(share * whole))
        one, two = (_peak(requests, corpus, device, runs) for runs in (1, 2))
        methods = len(methods_of(requests))
        return methods * fitting(free, one, two, most // methods)
    except torch.OutOfMemoryError:
        return 1
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def _peak(requests: Sequence[Request], corpus: DatasetCache, device: torch.device, runs: int) -> int:
    """Bytes that a training step holds at most, weights included."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    trial(requests, corpus, device, runs)
    return torch.cuda.max_memory_allocated(device) - before


def trial(requests: Sequence[Request], corpus: DatasetCache, device: torch.device, runs: int) -> tuple[int, int]:
    """Take one step of so many runs of each method, at the longest rows of all requests: (rows, tokens) of each run."""
    first = requests[0]
    model, tokenizer = load_both(first.model, classes=2, seed=first.seed)
    methods = methods_of(requests)
    prepare(model, methods, first, seeds=[[first.seed] * runs for _ in methods])
    model.to(device)
    longest: tuple[int, Plan] | None = None
    for request in requests:
        try:
            member = prepare_run(request, corpus.splits(request), corpus, model, tokenizer)
        except DataError:  # said when the fleet is trained
            continue
        recipe, coded = member.recipe, member.encoded["train"]
        place = max(range(len(coded)), key=coded.lengths().__getitem__)
        rows = min(recipe.batch_size, len(coded))
        size = rows * len(coded.features["input_ids"][place])
        if longest is None or size > longest[0]:
            features = {name: [part[place]] * rows for name, part in coded.features.items()}
            taken = Encoded(features, [0] * rows, coded.longest)
            task = replace(member.splits.task, kind="classification", labels=("no", "yes"))
            longest = size, Plan(task=task, train=taken, validation=taken, recipe=recipe, seed=first.seed)
    if longest is None:
        return 0, 0
    plans = [replace(longest[1], mixture=mixture) for mixture in range(len(methods)) for _ in range(runs)]
    Fleet(model, plans, tokenizer).step()
    return len(longest[1].train), max(longest[1].train.lengths())
