"""Time and memory of each method compared with full fine-tuning on this machine, as in table 4 of UniPELT.

Mao et al. 2022, arXiv:2110.07577. Methods are timed in turn, and each ratio compares steps of the same round, so that drift of
the machine cancels.
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
from transformers import PreTrainedModel

from unipelt import spec
from unipelt.checkpoint.disk import write_whole
from unipelt.data import Columns
from unipelt.errors import UserError
from unipelt.inject.shapes import most_tokens
from unipelt.study.store import EFFICIENCY
from unipelt.tasks.classification import Classification
from unipelt.train.forward import autocast
from unipelt.train.records import BASELINES, FULL, RunConfig
from unipelt.train.setup import load_and_attach

Step = Callable[[], None]
ModelInputs = dict[str, Tensor]


def training_step(model: nn.Module, batch: ModelInputs, precision: str = "auto") -> Step:
    """Return a function that runs one training step: forward, backward, AdamW. precision: as in a Recipe."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        model.train()
        with autocast(batch["labels"].device, precision):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def inference_step(model: nn.Module, batch: ModelInputs, precision: str = "auto") -> Step:
    """Return a function that runs one forward without gradients. precision: as in a Recipe."""
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
    """One row per method, full fine-tuning first: medians of the ratios over the rounds, and their lowest and highest.

    train_memory (GPU only): ratio of the peak memory of a training step, without the other models.
    """
    for name, value, least in (("batch-size", batch, 1), ("max-length", length, 2), ("rounds", rounds, 1)):
        if value < least:
            raise UserError(f"--{name} {value}: expected at least {least}")
    names = list(dict.fromkeys((FULL, *(method.strip() for method in methods))))
    for name in names:  # checked before anything is loaded
        if name in BASELINES:
            raise UserError(f"--methods {name}: has no training step to measure; expected methods of `unipelt methods`")
        if name != FULL:
            spec.mixture(name)
    task = Classification(name="efficiency", metric="accuracy", columns=Columns(text="text"), labels=("0", "1"))
    steps: dict[tuple[str, str], Step] = {}
    memory: dict[str, int] = {}
    for name in names:
        log(f"{name} on {model}")
        before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        config = RunConfig(model=model, task="sst2", method=name)
        attached_model = load_and_attach(config, task, outputs=2, seeds=[0], device=device).model
        if length > (positions := most_tokens(attached_model, length)):
            raise UserError(f"--max-length {length}: {model} has {positions} positions; expected at most that")
        inputs = _random_batch(attached_model, batch, length)
        steps[name, "train"], steps[name, "inference"] = (
            training_step(attached_model, inputs),
            inference_step(attached_model, inputs),
        )
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            for _ in range(2):  # the first creates the optimizer's state
                steps[name, "train"]()
            memory[name] = torch.cuda.max_memory_allocated(device) - before
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in steps}
    for round_index in range(rounds + 1):  # the first warms up
        for key, step in steps.items():
            seconds[key].append(_seconds(step, device))
        log(f"round {round_index} of {rounds}")
    settings = {
        "model": model, "batch": batch, "length": length, "rounds": rounds, "machine": _machine(device), "torch": torch.__version__,
    }  # fmt: skip
    table = []
    for name in names:
        row: dict[str, Any] = {"method": name}
        for mode in ("train", "inference"):
            ratios = [
                method_seconds / full_seconds
                for method_seconds, full_seconds in zip(seconds[name, mode][1:], seconds[FULL, mode][1:])
            ]
            row |= {mode: median(ratios), f"{mode}_range": [min(ratios), max(ratios)], f"{mode}_seconds": median(seconds[name, mode][1:])}  # fmt: skip
        if memory:
            row |= {"train_memory": memory[name] / memory[FULL], "train_memory_bytes": memory[name]}
        table.append(row | settings)
    return table


def write_efficiency(folder: Path, table: list[dict[str, Any]]) -> None:
    """Write the table into the folder of a study, where `unipelt report` finds it."""
    write_whole(folder, {EFFICIENCY: json.dumps(table, indent=1).encode()})


def _random_batch(model: PreTrainedModel, batch: int, length: int) -> ModelInputs:
    """A batch of random tokens without padding, with labels."""
    config, generator = model.config, torch.Generator().manual_seed(0)
    ids = torch.randint(min(5, config.vocab_size - 1), config.vocab_size, (batch, length), generator=generator)
    if config.pad_token_id is None:
        config.pad_token_id = 0
    if config.eos_token_id is not None:
        ids[:, -1] = config.eos_token_id  # some models pool at the eos token
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
