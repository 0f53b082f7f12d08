"""Fleets on Ray: the store is that of this process alone, whoever dies."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from study.conftest import results
from unipelt.errors import DataError
from unipelt.study.cluster import train
from unipelt.study.plan import StudyConfig
from unipelt.study.store import Store
from unipelt.train.records import RunKey

pytest.importorskip("ray", reason="Ray is not installed: pip install 'unipelt[ray]'")
PATIENCE = 300.0  # a busy machine starts Ray slowly


def waited_for(found: Callable[[], list]) -> Iterator:
    """What is found as long as it is looked for."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        yield from found()
        time.sleep(0.005)


def at_work(driver: int) -> list[psutil.Process]:
    """Ray's workers that train a fleet."""
    return [one for one in psutil.Process(driver).children(recursive=True) if one.name().startswith("ray::train")]


def test_a_worker_that_is_killed_changes_nothing(undisturbed: Path, words, child, tmp_path: Path):
    """Once a worker is seen at work: one may be killed that has just done its fleet, of whose death nothing comes."""
    for number in range(5):
        out, log, stood = tmp_path / f"ray {number}", tmp_path / f"log {number}", []

        def kill(driver: int, out: Path = out, stood: list[int] = stood) -> None:
            for worker in waited_for(lambda: at_work(driver)):
                stood.append(16 - len(Store.read(out).pending()))
                if stood[-1]:
                    return worker.kill()

        assert child([*words(out), "--engine", "ray"], log, kill) == 0, log.read_text()
        assert "16 of 16 runs done" in log.read_text() and stood[-1] > 0
        assert results(out) == results(undisturbed)
        if "a worker died with 4 runs of" in log.read_text():
            return
    pytest.fail(log.read_text())


def test_ctrl_c_leaves_no_worker(words, child, tmp_path: Path):
    log, workers = tmp_path / "log", []

    def stop(driver: int) -> None:
        next(waited_for(lambda: at_work(driver)))
        workers.extend(psutil.Process(driver).children(recursive=True))
        os.kill(driver, signal.SIGINT)

    assert child([*words(tmp_path / "ray"), "--engine", "ray"], log, stop) == 130, log.read_text()
    assert "Traceback" not in log.read_text()
    assert log.read_text().splitlines()[-1] == "unipelt: stopped; run the same command again to continue"
    gone, alive = psutil.wait_procs(workers, timeout=PATIENCE)
    assert len(gone) > 2 and not alive


def test_a_worker_with_other_rows_is_named(reviews: Path):
    task, setting = str(reviews), StudyConfig(columns={"label_column": "stars"})
    keys = [RunKey(task=task, k=16, method="head", seed=0, lr=1e-3)]
    with pytest.raises(
        DataError, match=rf"{socket.gethostname()}: its examples of {task} are 60 training .*the study's are ours"
    ):
        next(train(keys, set(keys), setting, "cpu", {task: "ours"}, 1.0))


@pytest.mark.parametrize("address", ["127.0.0.1:9", "127.0.0.1:99999", "nowhere", "ray://127.0.0.1:9"])
def test_a_cluster_that_is_not_there_is_one_line(address: str, words, run, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert f"RAY_ADDRESS={address}: " in run(*words(tmp_path), "--engine", "ray").line
    assert not list(tmp_path.iterdir())
