"""A comparison's minutes: how many epochs they hold, told before anything is trained, and no moment in which they are not looked at."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli.conftest import SMALL

from study.conftest import results
from unipelt.cli.progress import format_duration
from unipelt.errors import SiteError
from unipelt.study import engine, trials
from unipelt.study.store import Store
from unipelt.study.trials import FILL, MethodTiming, epochs_within
from unipelt.train.fleet import Fleet

WORK = MethodTiming(method="lora", step=50.0, example=1.0, steps=10, epochs=50, every=2, validation=100, test=300)


@pytest.fixture
def ask(tiny_base: str, reviews: Path):
    given = [
        "--data",
        reviews,
        "--model",
        tiny_base,
        "--methods",
        "head",
        SMALL["lora"],
        "--num-rates",
        1,
        "--device",
        "cpu",
        "--folds",
        0,
        "--no-baselines",
    ]
    return lambda out, *more: ["compare", *map(str, given), "--out", str(out), *map(str, more)]


def test_what_epochs_take():
    assert WORK.seconds(1) == 1 * 500 + (1 * 100 + 300)
    assert WORK.seconds(5) == 5 * 500 + (3 * 100 + 300), "the last epoch is evaluated too"
    for epochs in (1, 7, 50):
        assert epochs_within([WORK, WORK], 2 * WORK.seconds(epochs) / FILL + 1e-6) == epochs
    assert epochs_within([WORK], 1e9) == 50 and epochs_within([WORK], 1.0) == 0


def test_minutes_choose_the_epochs_and_the_same_command_goes_on(ask, run, tmp_path: Path, monkeypatch):
    """The same budget again keeps the epochs, whatever fits now."""
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(trials, "time_method", lambda *given: WORK)
        said = run(*ask(out, "--seeds", 1, "--minutes", 100))
    epochs = epochs_within([WORK, WORK], 5600)
    assert said.code == 0 and 1 < epochs < 6, said.err
    assert f"--minutes 100: --epochs {epochs} instead of 50, so that one seed of every method fits" in said.err
    with monkeypatch.context() as patch:
        patch.setattr(trials, "time_method", lambda *given: WORK)
        patch.setattr(trials, "MIN_EPOCHS_FOR_TWO_SEEDS", 2)
        patch.setattr("unipelt.study.engine.run_study", lambda *given, **how: ())
        two = run(*ask(tmp_path / "two", "--seeds", 3, "--minutes", 200)).err
        assert f"--epochs {epochs} instead of 50, so that two seeds of every method fit" in two
        assert "so that one seed of every method fits" in run(*ask(tmp_path / "one", "--minutes", 100)).err
    again = run(*ask(out, "--seeds", 2, "--minutes", 100))
    assert again.code == 0 and f"--epochs {epochs}: as {out} was begun with" in again.err
    rows = Store.read(out).runs()
    assert len(rows) == 4 and {row["recipe"]["epochs"] for row in rows} == {epochs}


@pytest.mark.parametrize(("minutes", "longest"), [((), 50), (("--minutes", 110), 0), (("--minutes", 500), 1)])
def test_more_minutes_train_longer_where_it_is_worth_it(
    minutes: tuple, longest: int, ask, run, tmp_path: Path, monkeypatch
):
    """None: the recipe's own epochs. A little more: the runs that are there stay."""
    out = tmp_path / "out"
    monkeypatch.setattr(trials, "time_method", lambda *given: WORK)
    assert run(*ask(out, "--seeds", 1, "--minutes", 100)).code == 0
    held = Store.read(out).options["recipe"]["epochs"]
    again = run(*ask(out, "--seeds", 1, *minutes))
    rows, epochs = Store.read(out).runs(), longest or held
    if longest == 1:
        epochs = epochs_within([WORK, WORK], 500 * 56.4)
    assert again.code == 0 and {row["recipe"]["epochs"] for row in rows} == {epochs}
    if longest:
        assert f"--epochs {epochs} instead of {held}, as there is more time" in again.err
        assert "2 finished runs are trained again" in again.err
    else:
        assert f"--epochs {held}: as {out} was begun with" in again.err


def test_a_trial_tells_what_a_method_takes(ask, run, tmp_path: Path, monkeypatch):
    """On this machine a tiny base has time for everything."""
    found, real = [], trials.time_method
    monkeypatch.setattr(trials, "time_method", lambda *given: found.append(real(*given)) or found[-1])
    said = run(*ask(tmp_path / "out", "--seeds", 1, "--minutes", 20))
    assert said.code == 0 and " instead of " not in said.err
    rows = Store.read(tmp_path / "out").runs()
    assert [one.method for one in found] == ["head", SMALL["lora"]]
    for one, row in zip(found, rows):
        assert 0 < one.step < 5 and 0 < one.example < 1 and one.epochs == row["recipe"]["epochs"]
        assert one.steps * one.epochs >= row["steps"] and one.test == len(row["targets"])


def test_a_method_that_cannot_be_tried_stops_nothing(ask, run, tmp_path: Path, monkeypatch):
    """Why it cannot be trained is said of its runs."""

    def time_method(keys, *_: object) -> MethodTiming:
        if keys[0].method != "head":
            raise SiteError("no space for it")
        return WORK

    monkeypatch.setattr(trials, "time_method", time_method)
    assert run(*ask(tmp_path / "out", "--seeds", 1, "--minutes", 100)).code == 0
    held = [row["recipe"]["epochs"] for row in Store.read(tmp_path / "out").runs()]
    assert held == [epochs_within([WORK], 5600)] * 2


def test_minutes_that_hold_no_run_are_told_before_one_is_begun(ask, run, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(trials, "time_method", lambda *given: WORK)
    line = run(*ask(tmp_path / "out", "--seeds", 1, "--minutes", 10)).line
    assert line.startswith(
        "unipelt: --minutes 10: one epoch of lora, with 100 validation and 300 test examples, takes about 15 minutes"
    )
    assert not (tmp_path / "out").exists()


def test_time_that_ends_in_the_test_rows_loses_nothing(ask, run, tmp_path: Path, monkeypatch):
    """The clock is looked at between two batches of predictions; what was trained is not trained again."""
    given = ("--seeds", 1, "--epochs", 3, "--evaluate-every", 1)
    assert run(*ask(tmp_path / "undisturbed", *given)).code == 0
    looks, real, clock = [], Fleet._after, SimpleNamespace(monotonic=time.monotonic)

    def over(self, event: str) -> None:
        looks.append(event)
        if event == "prediction" and all(one.ended for one in self.records):
            clock.monotonic = lambda: self.deadline + 1
        real(self, event)

    with monkeypatch.context() as patch:
        patch.setattr(Fleet, "_after", over)
        patch.setattr("unipelt.train.fleet.time", clock)
        patch.setattr(engine, "time", SimpleNamespace(monotonic=lambda: clock.monotonic(), sleep=time.sleep))
        assert "too short for one run" in run(*ask(tmp_path / "out", *given, "--minutes", 50)).line
    steps = looks.count("step") + looks.count("evaluation")
    trained, step = set(), Fleet.step

    def told(self) -> None:
        trained.add(self.plans[0].key.method)
        step(self)

    monkeypatch.setattr(Fleet, "step", told)
    assert steps and run(*ask(tmp_path / "out", *given)).code == 0
    assert trained == {SMALL["lora"]}, "head was trained already"
    assert results(tmp_path / "out") == results(tmp_path / "undisturbed")


def test_a_duration_has_two_digits():
    assert [format_duration(seconds) for seconds in (3, 119, 150, 7300, 7e5)] == ["3 seconds", "119 seconds", "2.5 minutes", "2 hours", "194 hours"]  # fmt: skip
