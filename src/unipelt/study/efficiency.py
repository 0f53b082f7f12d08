"""What a method costs on this machine: the training step and inference beside full fine-tuning, in one run.

UniPELT's table 4 (Mao et al. 2022, arXiv:2110.07577). Methods take turns, and a ratio is one of steps of the same turn, so that
the machine's drift cancels.
"""

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from unipelt import spec
from unipelt.checkpoint.disk import write_whole
from unipelt.data import Columns
from unipelt.errors import UserError
from unipelt.inject.shapes import most_tokens
from unipelt.study.store import EFFICIENCY
from unipelt.tasks.classification import Classification
from unipelt.train.precision import autocast
from unipelt.train.records import FULL, RunConfig
from unipelt.train.setup import load_and_attach

Step = Callable[[], None]
Batch = dict[str, Tensor]


def training(model: nn.Module, batch: Batch, precision: str = "auto") -> Step:
    """Forward, backward, AdamW. precision: as in a Recipe."""
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        model.train()
        with autocast(batch["labels"].device, precision):
            loss = model(**batch).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def inference(model: nn.Module, batch: Batch, precision: str = "auto") -> Step:
    """Forward alone, without gradients. precision: as in a Recipe."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}

    @torch.no_grad()
    def step() -> None:
        model.eval()
        with autocast(batch["labels"].device, precision):
            model(**inputs)

    return step


def measure(
    model: str, methods: Sequence[str], *, batch: int, length: int, rounds: int, device: torch.device,
    log: Callable[[str], None] = print,
) -> list[dict[str, Any]]:  # fmt: skip
    """One row a method, full fine-tuning first: medians of the ratios over the rounds, and their lowest and highest.

    train_memory, on a GPU: the most that a training step holds beyond the other models, as a ratio too.
    """
    for name, value, least in (("batch-size", batch, 1), ("max-length", length, 2), ("rounds", rounds, 1)):
        if value < least:
            raise UserError(f"--{name} {value}: expected at least {least}")
    names = list(dict.fromkeys((FULL, *(method.strip() for method in methods))))
    for name in names:
        if name != FULL:
            spec.mixture(name)  # a misspelt one is said before anything is loaded
    task = Classification(name="efficiency", metric="accuracy", columns=Columns(text="text"), labels=("0", "1"))
    steps: dict[tuple[str, str], Step] = {}
    memory: dict[str, int] = {}
    for name in names:
        log(f"{name} on {model}")
        before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        config = RunConfig(model=model, task="sst2", method=name)
        made, *_ = load_and_attach(config, task, outputs=2, seeds=[0], device=device)
        if length > (most := most_tokens(made, length)):
            raise UserError(f"--max-length {length}: {model} has {most} positions; expected at most that")
        rows = _rows(made, batch, length)
        steps[name, "train"], steps[name, "inference"] = training(made, rows), inference(made, rows)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            for _ in range(2):  # the optimiser's state is made in the first
                steps[name, "train"]()
            memory[name] = torch.cuda.max_memory_allocated(device) - before
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in steps}
    for turn in range(rounds + 1):  # the first warms up
        for key, step in steps.items():
            taken[key].append(_seconds(step, device))
        log(f"round {turn} of {rounds}")
    facts = {
        "model": model, "batch": batch, "length": length, "rounds": rounds, "machine": _machine(device), "torch": torch.__version__,
    }  # fmt: skip
    found = []
    for name in names:
        row: dict[str, Any] = {"method": name}
        for kind in ("train", "inference"):
            ratios = [mine / full for mine, full in zip(taken[name, kind][1:], taken[FULL, kind][1:])]
            row |= {kind: median(ratios), f"{kind}_range": [min(ratios), max(ratios)], f"{kind}_seconds": median(taken[name, kind][1:])}  # fmt: skip
        if memory:
            row |= {"train_memory": memory[name] / memory[FULL], "train_memory_bytes": memory[name]}
        found.append(row | facts)
    return found


def write_efficiency(folder: Path, found: list[dict[str, Any]]) -> None:
    """Put the file beside a study's store, where `unipelt report` looks for it."""
    write_whole(folder, {EFFICIENCY: json.dumps(found, indent=1).encode()})


def _rows(model: Any, batch: int, length: int) -> Batch:
    """Random words, no padding."""
    config, chance = model.config, torch.Generator().manual_seed(0)
    ids = torch.randint(min(5, config.vocab_size - 1), config.vocab_size, (batch, length), generator=chance)
    if config.pad_token_id is None:
        config.pad_token_id = 0
    if config.eos_token_id is not None:
        ids[:, -1] = config.eos_token_id  # where some bases pool
    rows = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(batch) % 2}
    return {name: value.to(model.device) for name, value in rows.items()}


def _seconds(step: Step, device: torch.device) -> float:
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    step()
    wait()
    return time.perf_counter() - start


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} of {os.cpu_count()} threads"
