"""What the tests of transformers' tools share: toy rows, an attached model to train on them, and a quiet Trainer."""

from pathlib import Path
from typing import Any

import tiny
import torch
from laws.lawbook import small
from safetensors import safe_open
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

import unipelt
from unipelt.inject.state import mixture_state

END = tiny.VOCABULARY - 1  # the last real word of each row, where a model asks for one


def rows(count: int, seed: int = 0, length: int = 8) -> list[dict[str, Any]]:
    """Padded texts of different lengths; their first word, one of two, gives the label away."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(count):
        label, real = i // 3 % 2, length - i % 3
        ids = torch.randint(tiny.SPECIAL + 2, END, (length,), generator=generator)
        ids[0], ids[real - 1] = tiny.SPECIAL + label, END
        mask = (torch.arange(length) < real).long()
        made.append({"input_ids": ids * mask, "attention_mask": mask, "labels": label})
    return made


def classifier(preset: str = "unipelt-apl", arch: str = "bert", **build: Any) -> nn.Module:
    """A tiny classifier of two labels with a preset attached, as a user makes it."""
    if arch == "bart":  # it reads the state at each row's one end
        build["eos_token_id"] = END
    return unipelt.attach(tiny.build(arch, num_labels=2, **build), small(preset))


def arguments(folder: Path, **given: Any) -> TrainingArguments:
    defaults = {
        "output_dir": str(folder),
        "use_cpu": True,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "num_train_epochs": 2,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "logging_strategy": "no",
    }
    return TrainingArguments(**(defaults | given))


def train(model: nn.Module, folder: Path, resume: Path | None = None, count: int = 48, **given: Any) -> Trainer:
    """A Trainer over toy rows that has trained; callbacks and compute_metrics go to it, all else to its arguments."""
    own = {name: given.pop(name) for name in ("callbacks", "compute_metrics") if name in given}
    trainer = Trainer(
        model=model, args=arguments(folder, **given), train_dataset=rows(count), eval_dataset=rows(24, seed=1), **own
    )
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


def tuned_state(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in mixture_state(model).named_parameters()}


def keys(folder: Path) -> set[str]:
    """The names in a folder's one safetensors file."""
    (path,) = folder.glob("*.safetensors")
    with safe_open(path, "pt") as file:
        return set(file.keys())


def tuned_keys(model: nn.Module) -> set[str]:
    return {f"unipelt.{name}" for name, _ in mixture_state(model).named_parameters()}
