"""Killed at any moment, the same command goes on, and ends bit-identical to a run that nothing disturbed, dropout included."""

import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from cli.conftest import same_result
from unipelt.train.run_folder import STATE

KILLS = 5
EPOCHS = 40
PATIENCE = 60.0  # seconds until something must have come
Kill = Callable[[int], None]


@pytest.fixture(scope="session")
def child() -> Iterator[Callable[[list[str], Path, Kill], int]]:
    """Runs a command line in a process of its own, which `kill` is told the id of."""
    source = Path(__file__).with_name("forks.py")
    server = subprocess.Popen([sys.executable, source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin is not None and server.stdout is not None
    assert server.stdout.readline() == "ready\n"

    def call(words: list[str], log: Path, kill: Kill = lambda process: None) -> int:
        print(json.dumps({"words": words, "log": str(log)}), file=server.stdin, flush=True)
        kill(int(server.stdout.readline()))
        return int(server.stdout.readline())

    yield call
    server.communicate(timeout=PATIENCE)
    assert server.returncode == 0


def after(how: signal.Signals, state: Path, changes: int, seconds: float) -> Kill:
    """Kills once the state was written again so many times, and so many seconds have passed since."""

    def written() -> int:
        return state.stat().st_mtime_ns if state.exists() else 0

    def kill(process: int) -> None:
        end, seen, left = time.monotonic() + PATIENCE, written(), changes
        while left and time.monotonic() < end:
            if (now := written()) != seen:
                seen, left = now, left - 1
            time.sleep(0.001)
        time.sleep(seconds)
        os.kill(process, how)  # one that has ended is not yet waited for, or was a moment ago: the id is no other's

    return kill


@pytest.mark.parametrize("method", ["unipelt-apl", "full"])
def test_killed_again_and_again_a_run_ends_with_the_same_bits(method: str, child, train_words, tmp_path: Path):
    """Ctrl-C and kill -9 at random moments, the first before there is a state, and while files are written or not."""
    long = ("--epochs", EPOCHS, "--seed", 3, "--lr", 1e-3)
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    assert child(train_words(undisturbed, method, *long), tmp_path / "log") == 0, (tmp_path / "log").read_text()
    chance, stood = random.Random(method), []
    for number in range(KILLS):
        how, log = (signal.SIGKILL, signal.SIGINT)[number % 2], tmp_path / f"log {number}"
        changes, seconds = (chance.randint(1, 3), chance.uniform(0, 0.02)) if number else (0, 0.3)
        kill = after(how, disturbed / STATE, changes, seconds)
        code = child(train_words(disturbed, method, *long), log, kill)
        said = log.read_text()
        if code == 0:  # a quick machine: it was done before the kill came
            break
        assert code == (130 if how == signal.SIGINT else -9) and "Traceback" not in said, said
        if how == signal.SIGINT:
            assert said.endswith("unipelt: stopped; run the same command again to continue\n")
        stood.append(saved_loop(disturbed / STATE)["records"][0]["steps"] if (disturbed / STATE).exists() else 0)
    assert stood == sorted(stood) and len(set(stood)) >= 3, f"the kills did not come at different steps: {stood}"
    assert child(train_words(disturbed, method, *long), tmp_path / "last log") == 0
    same_result(disturbed, undisturbed)
    assert len(json.loads((disturbed / "run.json").read_text())["curve"]) == EPOCHS
    assert not [path.name for path in disturbed.iterdir() if path.name.startswith((".", "training"))]


def saved_loop(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["loop"])


@pytest.mark.parametrize(
    "moment",
    [
        "before the record is there",
        "before the first state",
        "before the checkpoint",
        "before the record",
        "before the tidying",
    ],
)
@pytest.mark.parametrize("method", ["unipelt-apl", "full"])
def test_killed_between_two_writes(
    moment: str, method: str, run, finished, train_words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The moments that a random kill seldom hits."""
    words = train_words(tmp_path / "run", method)
    where = {
        "before the record is there": ("os.replace", 0),
        "before the first state": ("unipelt.train.fleet.save_state", 0),
        "before the checkpoint": ("unipelt.train.train_run.save_checkpoint", 0),
        "before the record": ("unipelt.train.train_run.write_record", 1),
        "before the tidying": ("pathlib.Path.unlink", 0),
    }[moment]
    module, _, name = where[0].rpartition(".")
    target = Path if module == "pathlib.Path" else importlib.import_module(module)
    real, calls = getattr(target, name), []

    def killed(*given, **named):
        calls.append(given)
        if len(calls) > where[1]:
            raise KeyboardInterrupt
        return real(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(target, name, killed)
        assert run(*words).code == 130
    state = tmp_path / "run" / STATE
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / ".run.json.0123456789ab.new").write_text("{")  # as kill -9 leaves it
    if moment == "before the checkpoint":
        loop, shown = saved_loop(state), run("inspect", tmp_path / "run").out
        assert (
            "not finished" in shown
            and f" {loop['records'][0]['seconds']:.1f} s\n" in shown
            and "(after epoch 4 of 4)" in shown
        )
    there, said = state.exists(), run(*words)
    assert said.code == 0, said.err
    assert ("resumed after step 20 of 20, in epoch 4 of 4" in said.err) == (there and moment != "before the tidying")
    same_result(tmp_path / "run", finished(method))
    assert not [path.name for path in (tmp_path / "run").iterdir() if path.name.startswith((".", "training"))]


def test_killed_while_a_state_is_written(run, finished, train_words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """safetensors writes a file of a name of its own beside the one that was asked for."""
    words = train_words(tmp_path / "run", "full")

    def killed(tensors: Any, path: Path, **_: Any) -> None:
        path.with_name(".tmpXYZ").write_bytes(b"half of it")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("unipelt.train.state.save_file", killed)
        patch.setattr("unipelt.train.state.shutil.rmtree", lambda *_, **__: None)
        assert run(*words).code == 130
    assert [path.name for path in (tmp_path / "run").rglob(".tmp*")] == [".tmpXYZ"]
    assert run(*words).code == 0
    same_result(tmp_path / "run", finished("full"))
    assert not [path.name for path in (tmp_path / "run").iterdir() if path.name.startswith((".", "training"))]


def test_the_command_itself_stops_at_ctrl_c_with_one_line(train_words, tmp_path: Path):
    """The installed command in a shell of its own; killed once it trains, and then it goes on."""
    command = Path(sys.executable).with_name("unipelt")
    words = [str(command), *train_words(tmp_path / "run", "lora", "--epochs", "2000")]
    ask = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), "text": True}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **ask)
    started = time.monotonic()
    while not (tmp_path / "run" / STATE).exists():
        assert process.poll() is None and time.monotonic() - started < PATIENCE, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (130, "") and err.splitlines()[
        -1
    ] == "unipelt: stopped; run the same command again to continue"
    assert "Traceback" not in err
