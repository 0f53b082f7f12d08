"""Fleets become rows of a store, in this process: claimed one by one, so that two processes share a study's work."""

import platform
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors
import torch
import transformers

import unipelt
from unipelt.checkpoint.bases import from_hub
from unipelt.errors import CheckpointError, DataError, StoreError, UserError, out_of_memory
from unipelt.study.plan import Setting
from unipelt.study.store import Cell, Result, Store
from unipelt.study.width import measured
from unipelt.train.lock import Busy, alone_in
from unipelt.train.records import FULL, STATE
from unipelt.train.runner import DatasetCache, methods_of, train_together
from unipelt.train.setup import device_of

CPU_WIDTH = 4  # 64 rows a step: more are no faster there, and the longest of more batches is longer
GPU_WIDTH = 64  # at most: beyond, a step's time grows with the rows
WAIT = 1.0  # seconds between looks at fleets that another process trains

Keep = Callable[[Any, int, Cell, Result], None]
"""keep(model, run, cell, finished): called while the model's run holds the best parameters of a run that has just ended"""


def planned_width(setting: Setting, device: torch.device) -> int:
    """Runs to be trained at once: as given, else by the device; a GPU's fleet has fewer where no more fit."""
    return setting.width or (CPU_WIDTH if device.type == "cpu" else GPU_WIDTH)


def run_study(
    store: Store, setting: Setting, *, device: str = "auto", tell: Callable[[str], None] = print, watch: Any = None,
    keep: Keep = lambda *_: None, until: float | None = None, corpus: DatasetCache | None = None,
) -> None:  # fmt: skip
    """Train every fleet of a store that is not done, until none is left; fleets of other processes are waited for.

    until: the moment (time.monotonic) after which no fleet is begun and the one at work is given up.
    """
    target, corpus, waited = device_of(device), corpus or DatasetCache(), False
    while pending := set(store.pending()):
        worked = False
        for fleet, cells in store.fleets().items():
            if pending.isdisjoint(cells) or (until is not None and time.monotonic() > until):
                continue
            folder = store.path.parent / "fleets" / fleet
            with suppress(Busy), alone_in(folder):
                if todo := set(store.pending()) & set(cells):
                    with suppress(DataError):  # another command's file that has gone: said in each of its runs' rows
                        store.check(identities(cells, setting, corpus))
                    train_fleet(store.finish, cells, todo, setting, target, corpus, folder, watch, keep, until)
                    worked = True
        if until is not None and time.monotonic() > until:
            return
        if not worked and store.pending():
            if not waited:
                tell(f"{len(store.pending())} runs are being trained by another process; waiting for it")
            waited = True
            time.sleep(WAIT)


def identities(cells: Iterable[Cell], setting: Setting, corpus: DatasetCache) -> dict[str, str]:
    """What the rows of each of the cells' tasks are, on this machine."""
    each = {cell.task: cell for cell in cells}
    return {task: corpus.dataset(setting.request(cell)).identity for task, cell in each.items()}


def train_fleet(
    finish: Callable[[dict[Cell, Result]], None], cells: list[Cell], todo: set[Cell], setting: Setting, device: torch.device,
    corpus: DatasetCache, folder: Path | None = None, watch: Any = None, keep: Keep = lambda *_: None, until: float | None = None,
    share: float = 1.0,
) -> None:  # fmt: skip
    """Train one fleet, of which `todo` is not done yet; where the device's memory is too small, again with half as many runs,
    and methods that cannot be trained side by side, each apart.

    Whatever disturbs it, the fleet as planned is redone whole, since dropout is drawn for all runs of a step together: what
    comes out of a run is what an undisturbed fleet of the width that it names gives. What is done stays as it is.
    finish(results) is called when some runs have ended. folder: where the state is kept, and found again. share: of a GPU
    that is this fleet's. Raises what says nothing of the runs, such as a full disk.
    """
    requests, todo = [setting.request(cell) for cell in cells], set(todo)
    full = cells[0].method.strip() == FULL
    methods = methods_of(requests)
    width = 1 if full else min(len(cells), max(planned_width(setting, device), len(methods)))
    if device.type == "cuda" and width > 1 and not setting.width:
        with suppress(UserError):  # said below
            width = measured(requests, corpus, device, width, share)

    def ended(model: Any, places: list[int], finished: list[Result]) -> None:
        for run, (place, one) in enumerate(zip(places, finished)):
            if cells[place] in todo:
                keep(model, run, cells[place], one)
        results = {cells[place]: replace(one, versions=versions()) for place, one in zip(places, finished)}
        finish(results)
        todo.difference_update(results)

    def forget() -> None:
        if folder is not None:
            (folder / STATE).unlink(missing_ok=True)

    while True:
        try:
            train_together(
                requests, width=width, ended=ended, corpus=corpus, device=device, folder=folder,
                watch=_Watch(watch, until),
            )  # fmt: skip
        except OutOfTime:
            return
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            forget()
            if width == 1:
                said = failed("no memory for one run; lower --batch-size or --max-length, with another --out")
                finish(dict.fromkeys(todo, said))
                break
            width //= 2
            torch.cuda.empty_cache()
            continue
        except (StoreError, CheckpointError):  # a disk is full: the same command goes on from here
            raise
        except UserError as error:  # the base cannot take this method: said in each row, and the study goes on
            if len(methods) == 1:
                finish({cell: failed(str(error)) for cell in cells if cell in todo})
            else:  # or one of these, or there is no room for a run of each
                for number, method in enumerate(methods):
                    mine = [cell for cell, request in zip(cells, requests) if request.method.strip() == method]
                    if left := todo.intersection(mine):
                        alone = folder / str(number) if folder is not None else None
                        train_fleet(finish, mine, left, setting, device, corpus, alone, watch, keep, until, share)
        break
    forget()


class OutOfTime(Exception):
    """The time that was given has passed."""


class _Watch:
    """Looks at the clock after each step and each batch of predictions, and hands on."""

    def __init__(self, watch: Any, until: float | None):
        self.watch, self.until = watch, until

    def __call__(self, fleet: Any, event: str) -> None:
        if self.watch is not None:
            self.watch(fleet, event)
        if self.until is not None and time.monotonic() > self.until:
            raise OutOfTime


def versions() -> dict[str, str]:
    """What a result was made with."""
    return {
        "unipelt": unipelt.__version__, "torch": torch.__version__, "transformers": transformers.__version__,
        "safetensors": safetensors.__version__, "python": platform.python_version(),
    }  # fmt: skip


def failed(reason: str) -> Result:
    """A run that cannot be."""
    return Result(status=f"failed: {reason}", metric="")


def hidden_size(model: str) -> int:
    """Width of a base, from its config alone: the recipes' default rates depend on it."""
    config: Any = from_hub(model, transformers.AutoConfig.from_pretrained)
    return config.hidden_size
