"""A study: every run of its grid once, whatever stops it; a run of it is the run that `train` makes."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from cli.conftest import SMALL

from study.conftest import results
from unipelt.study import compare, engine
from unipelt.study.plan import StudyConfig
from unipelt.study.store import Store
from unipelt.train.fleet import Fleet
from unipelt.train.records import RunKey
from unipelt.train.run_folder import STATE, locked_folder
from unipelt.train.runs import FinishedRun

KILLS = 5


def test_every_run_of_the_grid_is_there(undisturbed: Path):
    rows = Store.read(undisturbed).runs()
    assert len({(row["k"], row["method"], row["seed"], row["lr"]) for row in rows}) == 16
    for row in rows:
        assert row["status"] in ("finished", "stopped early") and 0 <= row["test"] <= 1
        assert row["validation"] == max(one["accuracy"] for one in row["curve"])
        assert len(row["predictions"]) == len(row["targets"]) == row["examples"]["test"]["number"]
        right = sum(a == b for a, b in zip(row["predictions"], row["targets"]))
        assert row["test"] == right / len(row["targets"])
        assert bool(row["gates"]) == row["method"].startswith("unipelt") and row["seconds"] > 0
    assert {row["runs_at_once"] for row in rows} == {3}
    assert not list((undisturbed / "fleets").glob(f"*/{STATE}")), "what is done leaves no state behind"


def test_a_run_of_a_study_is_the_run_that_train_makes(words, run, tiny_base: str, reviews: Path, tmp_path: Path):
    """One at a time, to the bit, dropout included."""
    more = ("--runs-at-once", 1, "--k", 24, "--seeds", 1, "--lr", 3e-3, "--methods", SMALL["unipelt-apl"])
    assert run(*words(tmp_path / "study", *more)).code == 0
    (row,) = Store.read(tmp_path / "study").runs()
    out = tmp_path / "run"
    given = [
        "--epochs",
        4,
        "--evaluate-every",
        1,
        "--batch-size",
        8,
        "--patience",
        2,
        "--lr",
        3e-3,
        "--precision",
        "fp32",
        "--device",
        "cpu",
    ]
    assert run("train", "--model", tiny_base, "--data", reviews, "--method", SMALL["unipelt-apl"], "--k", 24, *given, "--out", out).code == 0  # fmt: skip
    record = json.loads((out / "run.json").read_text())
    assert (
        record["curve"] == row["curve"]
        and record["test_metrics"] == row["test_metrics"]
        and record["predictions"] == row["predictions"]
        and record["examples"] == row["examples"]
    )


def soon(how: signal.Signals, out: Path, chance: random.Random) -> Callable[[int], None]:
    """Kills once what is written has changed a few times, or stood still for seconds, and a moment later."""

    def kill(process: int) -> None:
        left, seen, end = chance.randint(1, 12), None, time.monotonic() + 10
        while left and time.monotonic() < end:
            now = []
            for path in (out / "study.sqlite-wal", *out.glob(f"fleets/*/{STATE}")):
                with suppress(FileNotFoundError):  # a fleet that is done removes its state
                    now.append(path.stat().st_mtime_ns)
            if now != seen:
                seen, left = now, left - 1
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.05))
        with suppress(ProcessLookupError):  # done already
            os.kill(process, how)

    return kill


def test_killed_again_and_again_a_study_ends_with_the_same_store(undisturbed: Path, words, child, tmp_path: Path):
    out, chance, kills, stood = tmp_path / "disturbed", random.Random(0), 0, []
    for number in range(10 * KILLS):
        how, log = (signal.SIGKILL, signal.SIGINT)[number % 4 == 3], tmp_path / f"log {number}"
        code = child(words(out), log, soon(how, out, chance))
        if code == 0 and number:
            if kills >= KILLS:
                break
            shutil.rmtree(out)  # a quick machine: again from the start
            continue
        assert code in (130, -9) and "Traceback" not in log.read_text(), log.read_text()
        kills += 1
        if (out / "study.sqlite").exists():
            done = 16 - len(Store.read(out).pending()) if Store.read(out).statuses() else 0
            stood.append(done)
    assert kills >= KILLS and any(0 < done < 16 for done in stood), f"no kill came between two results: {stood}"
    assert results(out) == results(undisturbed)


def test_two_processes_share_the_work(undisturbed: Path, words, tmp_path: Path, child, monkeypatch: pytest.MonkeyPatch):
    """One here, one beside it: no run is trained twice, and the store is that of one process.

    The one here holds its first fleet until the other has finished one, whichever of them is the faster.
    """
    from unipelt.cli import main

    out, here = tmp_path / "shared", []
    original = engine.train_fleet
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(child, words(out), tmp_path / "log")
        while not (out / "study.sqlite").exists() and not other.done():
            time.sleep(0.01)

        def train_fleet(*given: Any, **how: Any) -> Iterator[FinishedRun]:
            while not here and len(Store.read(out).pending()) == 16 and not other.done():
                time.sleep(0.01)
            here.append(given[1])
            yield from original(*given, **how)

        monkeypatch.setattr(engine, "train_fleet", train_fleet)
        with pytest.raises(SystemExit) as ended:
            main(words(out))
    assert ended.value.code == 0 and other.result() == 0
    assert 0 < len(here) < len(Store.read(out).fleets()), "each trained some"
    assert results(out) == results(undisturbed)


def test_a_refit_waits_for_that_of_another_process(reviews: Path, tmp_path: Path):
    """And reads what it trained."""
    folder, said = tmp_path / "constant", []

    def refit() -> None:
        study = StudyConfig(folds=3, columns={"label_column": "stars"})
        compare.refit(study, "constant", None, str(reviews), folder, device="cpu", log=said.append)

    with ThreadPoolExecutor() as pool:
        with locked_folder(folder):
            waiting = [pool.submit(refit) for _ in range(2)]
            assert not wait(waiting, timeout=1).done
        for one in waiting:
            one.result()
    assert said.count(f"{folder}: already finished, nothing trained") == 1


def test_what_is_done_is_not_done_again(undisturbed: Path, words, run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine, "train_fleet", lambda *_, **how: pytest.fail("trained again"))
    said = run(*words(undisturbed))
    assert said.code == 0 and "16 of 16 runs done" in said.out and not said.err


def test_what_there_is_to_say_of_the_rows_is_said_once(words, run, reviews: Path, tmp_path: Path, monkeypatch):
    """And not once for each seed, method and rate; columns are the options that they are for one run."""
    text = reviews.read_text().replace("review,stars", "one,two")
    (tmp_path / "odd.csv").write_text(text + text.splitlines(keepends=True)[7])  # once more
    (tmp_path / "plan.toml").write_text('label_column = "one"\ntext_column = "one"\nvalidation_rows = 20')
    monkeypatch.setattr(engine, "run_study", lambda *_, **__: ())
    columns = ["--label", "two", "--plan", tmp_path / "plan.toml"]
    given = _with(words(tmp_path / "out"), "--data", tmp_path / "odd.csv", "--k", 16, 30, 5000)
    assert run(*given, *columns, "--validation-rows", 5).line.endswith("--validation-rows 5: expected 10 or more; with fewer, one example moves a metric by over a tenth")  # fmt: skip
    assert not (tmp_path / "out" / "study.sqlite").exists() or not Store.read(tmp_path / "out").runs()
    said = run(*_with(given, "--out", tmp_path / "second"), *columns)
    assert said.err.splitlines() == [
        f"{tmp_path / 'odd.csv'}: text 'one', label 'two'; classification, 2 labels: no, yes",
        "12 of the 61 examples of odd are held out as the test set.",
        "19 examples validate instead of 20: odd has no more.",
    ]


def test_a_run_that_cannot_be_is_a_row_that_says_why(words, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    given = words(tmp_path / "out")
    at = given.index("--k")
    given[at + 2] = "5000"
    said = run(*given)
    assert said.code == 0 and "8 of 16 runs done, 8 failed: --train-rows 5000" in said.out
    rows = Store.read(tmp_path / "out").runs(["k", "status"])
    assert {row["k"] for row in rows if row["status"].startswith("failed: --train-rows 5000")} == {5000}
    original, before = engine.train_fleet, results(tmp_path / "out")
    tried: list[RunKey] = []
    monkeypatch.setattr(
        engine, "train_fleet", lambda *given, **how: (tried.extend(given[1]), original(*given, **how))[1]
    )
    again = run(*given).out
    assert "8 of 16 runs done, 8 failed: --train-rows 5000" in again and "; repeat the command to try again\n" in again
    assert len(tried) == 8 and {key.k for key in tried} == {5000} and results(tmp_path / "out") == before


def test_a_study_of_which_no_run_can_be_fails(words, run, tmp_path: Path):
    said = run(*_with(words(tmp_path / "out"), "--k", 5000))
    assert said.code == 2 and "every run failed, the first because --train-rows 5000" in said.line


GPU_FULL = torch.OutOfMemoryError("CUDA out of memory")
CPU_FULL = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"
)  # as torch says


@pytest.mark.parametrize(("after", "full"), [(0, GPU_FULL), (3, GPU_FULL), (10, GPU_FULL), (3, CPU_FULL)])
def test_too_little_memory_halves_the_fleet(
    words, run, after: int, full: RuntimeError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Whenever it is too little, what comes out of a run is what a study with as many runs at once as the run names gives."""
    more = ("--k", 16, "--methods", SMALL["lora"], "--seeds", 4)  # a queue of eight runs, of eight steps each at most
    undisturbed = {}
    for at_once in (4, 2):
        said = run(*_with(words(tmp_path / f"of {at_once}"), *more, "--runs-at-once", at_once))
        assert said.code == 0 and "8 of 8 runs done" in said.out
        undisturbed[at_once] = {row["id"]: row for row in _results(tmp_path / f"of {at_once}")}
    step, taken = Fleet.step, []

    def small(self: Fleet) -> None:
        taken.append(len(self.plan_indices))
        if len(self.matrix.values) > 2 and len(taken) > after:
            raise full
        step(self)

    monkeypatch.setattr(Fleet, "step", small)
    said = run(*_with(words(tmp_path / "out"), *more, "--runs-at-once", 4))
    assert said.code == 0 and "8 of 8 runs done" in said.out
    rows = _results(tmp_path / "out")
    for row in rows:
        assert row == undisturbed[row["runs_at_once"]][row["id"]]
    assert {row["runs_at_once"] for row in rows} == ({2, 4} if after == 10 else {2}), "what was done stays"


def _with(given: list[str], *more: object) -> list[str]:
    """The same words with other options: a list of values replaces the list that was there."""
    at = {word: place for place, word in enumerate(given)}
    for place, word in enumerate(map(str, more)):
        if word.startswith("--"):
            end = next((i for i in range(at[word] + 1, len(given)) if given[i].startswith("--")), len(given))
            values = []
            for value in map(str, more[place + 1 :]):
                if value.startswith("--"):
                    break
                values.append(value)
            given = [*given[: at[word] + 1], *values, *given[end:]]
            at = {name: index for index, name in enumerate(given)}
    return given


def _results(out: Path) -> list[dict]:
    columns = ("id", "seed", "lr", "runs_at_once", "status", "validation", "test", "curve", "predictions", "gates")
    return Store.read(out).runs(columns)
