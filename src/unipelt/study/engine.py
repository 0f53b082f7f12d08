"""Trains the fleets of a study in this process. Fleets are claimed one by one, so that several processes share the work."""

import platform
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import safetensors
import torch
import transformers

import unipelt
from unipelt.checkpoint.bases import from_hub
from unipelt.errors import CheckpointError, DataError, StoreError, UserError, out_of_memory
from unipelt.study.plan import StudyConfig
from unipelt.study.store import Store
from unipelt.study.trials import measure_runs_at_once
from unipelt.train.baselines import train_baselines
from unipelt.train.fleet import Observer, OutOfTime
from unipelt.train.records import FAILED, RunKey, RunRecord
from unipelt.train.run_folder import Busy, locked_folder
from unipelt.train.runs import FinishedRun
from unipelt.train.setup import DatasetCache, build_fleet, device_of
from unipelt.train.state import clear_state

WAIT = 1.0  # seconds between looks at fleets that another process trains


def run_study(
    store: Store, study: StudyConfig, *, device: str = "auto", log: Callable[[str], None] = print,
    on_step: Observer | None = None, deadline: float | None = None, cache: DatasetCache | None = None,
    only: Callable[[RunKey], bool] = lambda key: True,
) -> Iterator[FinishedRun]:  # fmt: skip
    """Train every fleet of a store that is not done, and yield each run that has a result, before its record is stored.

    deadline: moment of time.monotonic() after which no fleet begins and the one at work stops. only: which fleets are trained,
    by one of their runs.
    """
    target, cache = device_of(device), cache or DatasetCache()
    for ((folder, keys),) in claimed_fleets(store, log=log, deadline=deadline, only=only):
        with suppress(DataError):  # another command's file that has gone: its runs will say so
            store.check_datasets(dataset_identities(keys, study, cache))
        todo = set(store.pending()) & set(keys)
        for run in train_fleet(
            keys,
            todo,
            study,
            target,
            cache,
            folder=folder,
            on_step=on_step,
            deadline=deadline,
            identity=store.base_identity(),
        ):
            if run.record.done:
                yield run
            store.finish({run.key: run.record})


def claimed_fleets(
    store: Store, *, log: Callable[[str], None], at_once: bool = False, deadline: float | None = None,
    only: Callable[[RunKey], bool] = lambda key: True,
) -> Iterator[list[tuple[Path, list[RunKey]]]]:  # fmt: skip
    """Folder and runs of each fleet that is not done, no other process's until the next is asked for; waits for those of others.

    at_once: all that are free together, instead of one after another. deadline, only: as in run_study.
    """
    waited = False
    while pending := {key for key in store.pending() if only(key)}:
        claimed: list[tuple[Path, list[RunKey]]] = []
        worked = False
        with ExitStack() as claims:
            for fleet, keys in store.fleets().items():
                if deadline is not None and time.monotonic() > deadline:
                    return
                folder = store.path.parent / "fleets" / fleet
                if not pending.isdisjoint(keys):
                    with suppress(Busy):
                        claims.enter_context(locked_folder(folder))
                        if not set(store.pending()).isdisjoint(keys):  # another process may have ended it
                            claimed.append((folder, keys))
                if claimed and not at_once:
                    yield claimed
                    claims.close()
                    claimed, worked = [], True
            if claimed:
                yield claimed
                worked = True
        if not worked and (waiting_for := [key for key in store.pending() if only(key)]):
            if not waited:
                log(f"{len(waiting_for)} runs are being trained by another process; waiting for it")
            waited = True
            time.sleep(WAIT)


def dataset_identities(keys: Iterable[RunKey], study: StudyConfig, cache: DatasetCache) -> dict[str, str]:
    """The identity of the examples of each task, on this machine."""
    key_of_task = {key.task: key for key in keys}
    return {task: cache.dataset(study.config(key)).identity for task, key in key_of_task.items()}


def train_fleet(
    keys: list[RunKey], todo: set[RunKey], study: StudyConfig, device: torch.device, cache: DatasetCache, *,
    folder: Path | None = None, on_step: Observer | None = None, deadline: float | None = None, share: float = 1.0,
    identity: dict[str, str] | None = None,
) -> Iterator[FinishedRun]:  # fmt: skip
    """Train one fleet, and yield those runs of `todo` that have ended; until the deadline.

    After any disturbance the whole fleet is trained again as planned, since dropout is drawn for all runs of a step
    together: a run's result is that of an undisturbed fleet of as many runs at once as its record says. Too little
    memory halves their number. A run that cannot be trained is yielded as failed. folder: where the state is saved. share: of a GPU.
    identity: fingerprints of the base and tokenizer of the study's other runs.

    Raises what says nothing about the runs, such as a full disk.
    """
    todo, configs = set(todo), []

    def failed_runs(chosen: Iterable[RunKey], reason: str) -> Iterator[FinishedRun]:
        for key in chosen:
            if key in todo:
                todo.discard(key)
                yield FinishedRun(RunRecord(config=study.config(key), status=FAILED + reason))

    for key in keys:
        config = study.config(key)
        try:
            cache.splits(config)
        except DataError as error:
            yield from failed_runs([key], str(error))
        else:
            configs.append(config)
    runs_at_once = 1 if keys[0].full else min(len(configs), study.most_at_once(device.type))
    while todo:
        try:
            if keys[0].baseline:
                finished = train_baselines(configs, device, cache, identity)
            else:
                if device.type == "cuda" and runs_at_once > 1 and not study.runs_at_once:
                    runs_at_once = measure_runs_at_once(configs, cache, device, runs_at_once, share)
                finished = build_fleet(
                    configs, runs_at_once=runs_at_once, device=device, cache=cache, folder=folder, on_step=on_step, deadline=deadline,
                    identity=identity,
                ).train()  # fmt: skip
            for run in finished:
                if run.key in todo:
                    todo.discard(run.key)
                    run.record.versions = versions()
                    yield run
        except OutOfTime:
            return
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            _clear_state(folder)
            if runs_at_once == 1:
                yield from failed_runs(
                    keys, "no memory for one run; try a smaller --batch-size or --max-length, with another --out"
                )
            runs_at_once //= 2
            if device.type == "cuda":
                torch.cuda.empty_cache()
        except (StoreError, CheckpointError):  # a disk is full: the same command continues from here
            raise
        except UserError as error:  # the base cannot take this method: said in each row, and the study goes on
            yield from failed_runs(keys, str(error))
    _clear_state(folder)


def _clear_state(folder: Path | None) -> None:
    if folder is not None:
        clear_state(folder)


def versions() -> dict[str, str]:
    """Versions of what a result was made with."""
    return {
        "unipelt": unipelt.__version__, "torch": torch.__version__, "transformers": transformers.__version__,
        "safetensors": safetensors.__version__, "python": platform.python_version(),
    }  # fmt: skip


def hidden_size(model: str) -> int:
    """Hidden size of a base, from its config alone: the recipes' default rates depend on it."""
    return from_hub(model, transformers.AutoConfig.from_pretrained).hidden_size
