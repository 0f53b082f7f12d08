"""A training that is stopped goes on as if it had not been: bit-identical, dropout included, wherever it was stopped."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from train.fleets import fleet, plan, train
from unipelt.errors import CheckpointError
from unipelt.train.fleet import Fleet
from unipelt.train.run_folder import STATE, LoopState, last_state, tensors_header
from unipelt.train.runs import FinishedRun
from unipelt.train.state import clear_state, restore_state, save_state

EVALUATED = 6  # the step of the first run's first evaluation: two epochs of three batches


class Stopped(Exception):
    pass


def steps_of(trained: Fleet) -> int:
    return sum(record.steps for record in trained.records)


def stop_at(steps: int):
    """Raises once all runs have taken so many steps together, after the state was saved."""

    def on_step(trained: Fleet, event: str) -> None:
        if steps_of(trained) >= steps:
            raise Stopped

    return on_step


def plans(runs: int) -> list:
    return [plan(seed=seed, train=9 + 8 * seed, epochs=3, evaluate_every=2, patience=2) for seed in range(1, runs + 1)]


Runs = dict[int, FinishedRun]


def finish(folder: Path | None, preset: str, runs: int, seed: int = 0, kept: Runs | None = None, **how) -> Runs:
    """Train to the end, or to a stop. kept: what had ended before, to which these runs are added."""
    torch.manual_seed(seed)
    kept = {} if kept is None else kept
    for run in fleet(plans(runs), preset, dropout=True, folder=folder, runs_at_once=min(runs, 2), **how).train():
        kept[run.plan_index] = run
    return kept


def assert_same(one: Runs, other: Runs) -> None:
    """The same bits, but for the time."""
    assert one.keys() == other.keys()
    for place, run in one.items():
        mine, theirs = (replace(one.record, seconds=0, predicting=0) for one in (run, other[place]))
        assert mine == theirs
        for name, value in run.state.items():
            assert torch.equal(value, other[place].state[name]), f"parameters differ: {name}"


@pytest.mark.parametrize("every_step", [True, False], ids=["saved at every step", "saved at evaluations"])
@pytest.mark.parametrize(("preset", "runs"), [("unipelt-apl", 1), ("lora", 3), ("full", 1)])
def test_stopped_at_any_step_it_continues_to_the_same_bits(
    preset: str, runs: int, every_step: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("unipelt.train.fleet.SAVE_EVERY", -1.0 if every_step else 1e9)
    monkeypatch.setattr("unipelt.train.fleet.SAVE_SHARE", 1e9)
    whole = finish(None, preset, runs)
    steps = sum(run.record.steps or 0 for run in whole.values())
    for step in range(1, steps, runs if every_step else 3):
        folder, kept = tmp_path / str(step), Runs()
        with pytest.raises(Stopped):
            finish(folder, preset, runs, kept=kept, on_step=stop_at(step))
        # what the process held is lost, the random state too; before the first state all begins again
        begun = (folder / STATE).exists()
        assert_same(finish(folder, preset, runs, seed=99 if begun else 0, kept=kept), whole)


def test_a_fleet_that_was_begun_narrower_continues_so_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As after too little memory: the command that continues attaches as many runs as the plan has."""
    monkeypatch.setattr("unipelt.train.fleet.SAVE_SHARE", 1e9)
    whole, kept = finish(None, "lora", 3), Runs()
    with pytest.raises(Stopped):
        finish(tmp_path, "lora", 3, kept=kept, on_step=stop_at(EVALUATED * 2))
    wide = fleet(plans(3), "lora", dropout=True, folder=tmp_path)
    assert_same(kept | train(wide), whole)
    assert wide.runs_at_once == 2


def test_stopped_at_every_step_of_one_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("unipelt.train.fleet.SAVE_EVERY", -1.0)
    monkeypatch.setattr("unipelt.train.fleet.SAVE_SHARE", 1e9)
    whole, kept = finish(None, "unipelt-apl", 2), Runs()
    for step in range(1, sum(run.record.steps or 0 for run in whole.values()), 2):
        with pytest.raises(Stopped):
            finish(tmp_path, "unipelt-apl", 2, seed=step if step > 1 else 0, kept=kept, on_step=stop_at(step))
    assert_same(finish(tmp_path, "unipelt-apl", 2, seed=77, kept=kept), whole)
    assert finish(tmp_path, "unipelt-apl", 2, seed=78), "the last state is of a training that has ended: yielded again"


def test_dropout_is_there_and_matters():
    """Else the tests above would hold for a loop that forgets the random state."""
    one, other = finish(None, "lora", 1), finish(None, "lora", 1, seed=1)
    assert one[0].record.curve != other[0].record.curve


def test_time_adds_up_over_the_stops(tmp_path: Path):
    with pytest.raises(Stopped):
        finish(tmp_path, "lora", 1, on_step=stop_at(EVALUATED))
    before = fleet(plans(1), "lora", folder=tmp_path)
    before._restore()
    assert 0 < before.seconds < finish(tmp_path, "lora", 1)[0].record.seconds


def with_loop(path: Path, **changes) -> None:
    """The same tensors beside other facts."""
    tensors, facts = load_file(path), json.loads(tensors_header(path)["__metadata__"]["loop"])
    text = json.dumps({name: value for name, value in (facts | changes).items() if value is not ...})
    save_file(tensors, path, metadata={"loop": text})


def test_a_damaged_state_is_named(tmp_path: Path):
    """Whatever is wrong with it: bytes, tensors, or the type of anything in it."""
    with pytest.raises(Stopped):
        finish(tmp_path, "lora", 1, on_step=stop_at(EVALUATED))
    path = tmp_path / STATE
    data = path.read_bytes()
    tensors = {name: value for name, value in load_file(path).items() if name != "random.cpu"}
    facts = tensors_header(path)["__metadata__"]["loop"]
    damages = {
        "truncated": lambda: path.write_bytes(data[:-9]),
        "empty": lambda: path.write_bytes(b""),
        "text": lambda: path.write_bytes(b"not a state"),
        "no facts": lambda: save_file(load_file(path), path),
        "no random state": lambda: save_file(tensors, path, metadata={"loop": facts}),
        **{
            f"{name}={value!r}": lambda name=name, value=value: with_loop(path, **{name: value})
            for name, value in [
                ("plan_indices", "0"), ("plan_indices", []), ("plan_indices", [7]), ("plan_indices", [0, 0]), ("plan_indices", [-1]), ("plan_indices", [None]),
                ("records", []), ("records", {}), ("records", [5]), ("records", [{"steps": "1"}]), ("records", [{"curve": [3]}]),
                ("records", [{}]), ("records", [{"seconds": "1"}]), ("records", ...), ("plan_indices", ...), ("surprise", 1),
            ]
        },
    }  # fmt: skip
    for name, damage in damages.items():
        path.write_bytes(data)
        damage()
        with pytest.raises(CheckpointError, match=rf"{STATE}: damaged"):
            finish(tmp_path, "lora", 1)
        if name not in ("truncated", "no random state"):  # whose header is whole
            with pytest.raises(CheckpointError, match=rf"{STATE}: damaged"):
                last_state(tmp_path)


def test_a_state_of_another_base_or_tokenizer_is_refused(tmp_path: Path):
    with pytest.raises(Stopped):
        finish(tmp_path, "lora", 1, on_step=stop_at(EVALUATED))
    for name in ("base", "tokenizer"):
        one = plans(1)[0]
        one = replace(one, initial_record=replace(one.initial_record, identity={name: "another"}))
        with pytest.raises(CheckpointError, match=f"its training began with another {name}; put that back, or remove"):
            train(fleet([one], "lora", dropout=True, folder=tmp_path))


def test_a_state_of_fewer_epochs_is_not_resumed(tmp_path: Path):
    with pytest.raises(Stopped):
        finish(tmp_path, "lora", 1, on_step=stop_at(EVALUATED))
    longer = plan(seed=1, train=17, epochs=5, evaluate_every=2, patience=2)
    torch.manual_seed(1)
    again = train(fleet([longer], "lora", dropout=True))
    torch.manual_seed(1)
    assert_same(train(fleet([longer], "lora", dropout=True, folder=tmp_path)), again)


def test_a_state_is_that_of_the_same_run_recipe_and_examples_alone(tmp_path: Path):
    record = replace(plan(seed=1).initial_record, examples={"train": {"fingerprint": "a"}})
    torch.manual_seed(5)
    save_state(tmp_path, {"values": torch.ones(1, 4)}, LoopState([0], [record]))
    drawn = torch.rand(3)
    found = restore_state(tmp_path, [record], ["values"], 4)
    assert found is not None and found[0].keys() == {"values"} and found[1] == LoopState([0], [record])
    assert torch.equal(torch.rand(3), drawn), "and its random numbers go on"
    for other in (
        replace(record, config=replace(record.config, seed=2)),
        replace(record, recipe=record.recipe | {"batch_size": 3}),
        replace(record, examples={"train": {"fingerprint": "b"}}),
    ):
        assert restore_state(tmp_path, [other], ["values"], 4) is None
    assert restore_state(tmp_path, [record, record], ["values"], 4) is None


def test_a_link_under_a_temporary_name_is_not_followed(tmp_path: Path):
    """Whatever stands where a state is written stays as it is outside the folder."""
    folder, outside = tmp_path / "run", tmp_path / "outside"
    folder.mkdir(), outside.mkdir()
    (outside / STATE).write_text("kept")
    for name in (f".{STATE}.new", f".{STATE}.tmp"):
        (folder / name).symlink_to(outside)
    (folder / STATE).symlink_to(outside / "none")
    finish(folder, "lora", 1)
    clear_state(folder)
    assert (outside / STATE).read_text() == "kept" and [path.name for path in outside.iterdir()] == [STATE]
    assert not list(folder.iterdir())


def test_a_state_of_another_method_is_refused(tmp_path: Path):
    with pytest.raises(Stopped):
        finish(tmp_path, "lora", 1, on_step=stop_at(EVALUATED))
    with pytest.raises(CheckpointError, match=r"another base or method; remove .* to start again"):
        finish(tmp_path, "bitfit", 1)


def test_a_kill_while_the_state_is_written_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(Stopped):
        finish(tmp_path, "lora", 1, on_step=stop_at(EVALUATED))
    shutil.copy(tmp_path / STATE, tmp_path / "kept")

    def killed(*_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        finish(tmp_path, "lora", 1)
    assert (tmp_path / STATE).read_bytes() == (tmp_path / "kept").read_bytes()
    monkeypatch.undo()
    assert_same(finish(tmp_path, "lora", 1), finish(None, "lora", 1))
