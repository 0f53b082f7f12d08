"""The folder of a run: its record, how far a training had come that was stopped, and its lock. Read without torch."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

from unipelt.checkpoint.disk import folder_lock, remove_unfinished, write_whole
from unipelt.checkpoint.header import tensors_header
from unipelt.checkpoint.json_types import check_fields, typed
from unipelt.errors import CheckpointError, UserError
from unipelt.train.recipes import Recipe
from unipelt.train.records import FORMAT, PATHS, RunConfig, RunRecord

RECORD, STATE = "run.json", "training.safetensors"
WEEK = 7 * 24 * 3600.0  # seconds
DEFAULTS = {field.name: field.default for field in fields(RunConfig) if field.default is not MISSING}


class LoopState(NamedTuple):
    """The state of a fleet's loop, beside its tensors."""

    plan_indices: list[int]
    """by index on the model's run axis: index of the plan that is trained there"""
    records: list[RunRecord]
    """of every plan"""

    @classmethod
    def from_json(cls, text: str) -> "LoopState":
        """Raises ValueError or UserError where the text is not what a training wrote."""
        values = json.loads(text)
        types = {"plan_indices": list[int], "records": list[dict[str, Any]]}
        if not isinstance(values, dict) or values.keys() != types.keys():
            raise ValueError(f"expected an object with {' and '.join(types)}")
        check_fields(values, types)
        indices, records = values["plan_indices"], [_record(record) for record in values["records"]]
        if not indices or set(indices) - {*range(len(records))} or len(set(indices)) != len(indices):
            raise ValueError(f"its plan indices {indices} are not among its {len(records)} plans")
        return cls(indices, records)


def last_state(folder: Path) -> LoopState | None:
    """The loop of an unfinished training; None before its first state. Raises CheckpointError where the state is damaged."""
    path = folder / STATE
    if not path.exists():
        return None
    metadata = tensors_header(path).get("__metadata__")
    try:
        return LoopState.from_json(metadata["loop"] if isinstance(metadata, dict) else "")
    except (KeyError, TypeError, ValueError, RecursionError, UserError) as error:
        raise damaged_error(path, error) from None


def damaged_error(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path}: damaged ({error}); remove {path.parent} to start again")


def write_record(folder: Path, record: RunRecord) -> None:
    """Write a run's record, and remove what a kill has left of another; for the process that has the folder's lock."""
    remove_unfinished(folder, [RECORD])
    write_whole(folder, {RECORD: json.dumps(asdict(record), indent=1).encode()})


def read_record(folder: Path, config: RunConfig | None = None) -> RunRecord | None:
    """Read a folder's record; an unfinished run has the curve and time of its last state. None where there is no run yet.

    Hidden files do not count as content: a kill may have left them.

    Raises CheckpointError where the folder holds something else, or a run that differs from `config` in more than epochs.
    """
    path = folder / RECORD
    if not path.exists():
        if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise CheckpointError(
                f"--out {folder}: not empty, and holds no run; expected a new folder, or one of this command's runs"
            )
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        record = _record(values)
    except (ValueError, OSError, RecursionError, UserError) as error:
        raise damaged_error(path, error) from None
    if config is not None:
        difference = first_difference(asdict(record)["config"], json.loads(json.dumps(asdict(config))), but="epochs")
        if difference:
            raise CheckpointError(
                f"--out {folder}: holds a run with {difference}; use another folder, or delete this one"
            )
    if not record.done and (state := last_state(folder)) is not None:
        record.seconds, record.curve = sum(run.seconds for run in state.records), state.records[0].curve
    return record


def _record(values: Any) -> RunRecord:
    """A record from JSON, its options complete. Raises ValueError or UserError where something in it is wrong."""
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        version = values.get("format") if isinstance(values, dict) else None
        raise ValueError(f"format {version!r}, this version reads format {FORMAT}")
    record = typed(RunRecord, values | {"config": typed(RunConfig, values.get("config"))})
    if record.recipe is not None:
        record.recipe = asdict(typed(Recipe, record.recipe))
    for entry in (*record.curve, *([record.validation_metrics] if record.done else ())):
        if not record.key.baseline and (entry is None or not {"epoch", record.metric} <= entry.keys()):
            raise ValueError(f"has no epoch or {record.metric or 'metric'} where an evaluation should be")
    return record


def first_difference(stored: dict[str, Any], requested: dict[str, Any], but: str = "") -> str:
    """`seed=0, this command has seed=5` for the first option that differs, those of a recipe and of columns one by one; else empty.

    but: an option that may differ.
    """
    old, new = _options(stored), _options(requested)
    for name in new | old:
        if name != but and _resolved(name, old) != _resolved(name, new):
            return f"{name}={_shown(old.get(name))}, this command has {name}={_shown(new.get(name))}"
    return ""


def _options(options: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in options.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return flat


def _resolved(name: str, options: dict[str, Any]) -> Any:
    """An option or its default; a path that exists is made absolute: reviews.csv is ./reviews.csv."""
    value = options.get(name, DEFAULTS.get(name))
    return os.path.realpath(value) if name in PATHS and value and os.path.exists(value) else value


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "its default" if value is None or value == "" else str(value)


class Busy(CheckpointError):
    """Another process has the lock of a folder."""


@contextmanager
def locked_folder(folder: Path, wait: bool = False) -> Iterator[None]:
    """Make a folder and lock it until the block ends; a folder that was made and stays empty is removed again.

    Only other processes are kept out. The lock ends with its process. wait: for another process's lock to end.

    Raises Busy where another process has the lock, CheckpointError where the folder cannot be made.
    """
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise CheckpointError(f"--out {folder}: is a file; expected a folder") from None
        except OSError as error:
            raise CheckpointError(
                f"--out {folder}: cannot write ({error.strerror}); what was there before is untouched"
            ) from None
        with ExitStack() as stack:
            try:
                stack.enter_context(folder_lock(folder, WEEK if wait else 0.0, nested=False))
            except BlockingIOError:
                raise Busy(
                    f"--out {folder}: another training is at work in it; wait for its end, or take another folder"
                ) from None
            yield
    finally:
        for path in created:
            with suppress(OSError):  # not empty: something was written
                path.rmdir()
