"""run.json: what is written is read, and whatever is wrong with a file is one line."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from unipelt.errors import CheckpointError, UserError
from unipelt.train.recipes import Recipe
from unipelt.train.records import RunConfig, RunRecord
from unipelt.train.run_folder import RECORD, LoopState, read_record, write_record
from unipelt.train.state import save_state

CONFIG = RunConfig(task="rte", recipe={"epochs": 3})
EVALUATED = {"epoch": 1, "accuracy": 0.5}
DONE = RunRecord(
    config=CONFIG, description={"labels": ["no", "yes"]}, status="finished", metric="accuracy", validation=0.5,
    validation_metrics=EVALUATED, curve=[{"step": 3, "train_loss": 0.7, **EVALUATED}], recipe=asdict(Recipe()), seconds=1.0,
)  # fmt: skip


def test_what_is_written_is_read(tmp_path: Path):
    write_record(tmp_path, DONE)
    assert read_record(tmp_path) == read_record(tmp_path, CONFIG) == DONE
    assert read_record(tmp_path, RunConfig(task="rte", recipe={"epochs": 9})) == DONE, "more epochs may be asked for"
    with pytest.raises(CheckpointError, match="holds a run with task=rte, this command has task=mrpc"):
        read_record(tmp_path, RunConfig(task="mrpc", recipe={"epochs": 3}))


def test_an_unfinished_run_has_the_curve_and_the_time_of_its_last_state(tmp_path: Path):
    """The time of all runs that its training had, of which it is the first."""
    running = [
        replace(DONE, status="running", seconds=seconds, curve=DONE.curve * n) for n, seconds in ((2, 3.0), (1, 4.0))
    ]
    save_state(tmp_path, {}, LoopState([0], running))
    write_record(tmp_path, replace(running[0], seconds=0.0, curve=[]))
    assert read_record(tmp_path) == replace(running[0], seconds=7.0)
    write_record(tmp_path, DONE)
    assert read_record(tmp_path) == DONE, "of a finished one the state is of no interest"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("status", 5), ("format", "3"), ("format", 2), ("validation", "high"), ("seconds", True), ("curve", {}), ("curve", [1]),
        ("curve", [{"epoch": "one"}]), ("curve", [{"train_loss": 1}]), ("validation_metrics", None), ("validation_metrics", {"epoch": 1}),
        ("parameters", {"head": 1.5}), ("labels", "yes"), ("predictions", "none"), ("examples", 3), ("description", []), ("surprise", 1),
        ("config", {}), ("config", {"task": 3}), ("config", {"task": "rte", "recipe": 5}), ("config", {"task": "rte", "head": "x"}),
        ("config", {"task": "rte", "lr": 1}), ("recipe", {"epochs": "3"}), ("recipe", {"epochs": 0}), ("recipe", {"speed": 1}),
        ("identity", {"base": 1}),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named(field: str, value: object, tmp_path: Path):
    (tmp_path / RECORD).write_text(json.dumps(asdict(DONE) | {field: value}))
    with pytest.raises(CheckpointError, match=rf"{RECORD}: damaged \(.+\); remove .* to start again"):
        read_record(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "5", '"x"', "null", "[" * 100_000, "\udcff"])
def test_what_is_no_record_is_named(text: str, tmp_path: Path):
    (tmp_path / RECORD).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=rf"{RECORD}: damaged"):
        read_record(tmp_path)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_would_not_fit_beside_its_epochs_is_refused(seed: int):
    with pytest.raises(UserError, match=f"--seed {seed}: expected 0 to 4294967295"):
        RunConfig(task="rte", seed=seed)
    assert RunConfig(task="rte", seed=2**32 - 1).key.seed == 2**32 - 1
