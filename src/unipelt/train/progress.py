"""How far a training is, as its saved state says; read without torch."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unipelt.checkpoint.header import tensors_header
from unipelt.checkpoint.json_types import fits, typed
from unipelt.errors import CheckpointError

STATE = "training.safetensors"


@dataclass
class Progress:
    """The state of one run in the loop."""

    step: int = 0
    best: float = -math.inf
    """best validation metric, where best_epoch is not negative"""
    best_epoch: int = -1
    waited: int = 0
    ended: str = ""
    """status at the end: finished, stopped early, or `failed: ` and the reason; empty while the run trains or waits"""
    losses: float = 0.0
    """sum of the losses of `steps` steps since the last evaluation"""
    steps: int = 0
    seconds: float = 0.0
    """the run's share of the time"""
    curve: list[dict[str, float]] = field(default_factory=list)
    """one entry per evaluation: epoch, step, loss, metrics"""
    temperature: float | None = None
    """of the best parameters, fitted on the validation examples; None where there are no probabilities"""


@dataclass
class Loop:
    """The state of a fleet's loop, beside its tensors."""

    runs: list[int]
    """the plan that each run of the model trains"""
    width: int
    """runs at once when the training began"""
    waiting: list[int]
    """plans that have no run yet"""
    seconds: float
    identity: dict[str, str]
    """what the training depends on, by name: base, tokenizer, plans"""
    progress: list[Progress]
    """of every plan"""

    @classmethod
    def from_json(cls, text: str) -> "Loop":
        """Raises ValueError where the text is not what a training wrote."""
        found = json.loads(text)
        if not isinstance(found, dict) or not fits(found.get("progress"), list[dict[str, Any]]):
            raise ValueError("its progress is missing")
        found["progress"] = [typed(Progress, one) for one in found["progress"]]
        loop = typed(cls, {name: value for name, value in found.items() if name != "progress"} | {"progress": []})
        loop.progress = found["progress"]
        places = {*range(len(loop.progress))}
        if not loop.runs or {*loop.runs, *loop.waiting} - places or len({*loop.runs}) != len(loop.runs):
            raise ValueError(f"its runs {loop.runs} and {loop.waiting} are not among its {len(places)} plans")
        return loop


def last_state(folder: Path) -> Loop | None:
    """The loop of an unfinished training; None before its first state."""
    path = folder / STATE
    if not path.exists():
        return None
    found = tensors_header(path).get("__metadata__")
    try:
        return Loop.from_json(found["loop"] if isinstance(found, dict) else "")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); remove {folder} to start again") from None


def format_duration(seconds: float) -> str:
    """A duration in seconds, minutes or hours, with two digits."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.2g} {unit}" if seconds < 100 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
