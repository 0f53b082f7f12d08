"""Files are written whole, by one writer at a time, through names that nobody can guess; readers never write."""

import multiprocessing
import os
import threading
from pathlib import Path

import pytest
import tiny
import torch
from values import logits, randomise

import unipelt
from unipelt.checkpoint.description import describe
from unipelt.checkpoint.disk import CARD, TENSORS, folder_lock, read_file, write_whole
from unipelt.errors import CheckpointError

FORK = multiprocessing.get_context("fork") if hasattr(os, "fork") else None


def write_often(folder: Path, letter: bytes) -> None:
    for _ in range(30):
        write_whole(folder, {"one": letter * 1000, "two": letter * 1000})


@pytest.mark.skipif(FORK is None, reason="processes are forked here")
def test_writers_at_once_leave_files_of_one_of_them(tmp_path: Path):
    writers = [FORK.Process(target=write_often, args=(tmp_path, letter)) for letter in (b"a", b"b", b"c")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}


def test_a_load_during_saves_gets_one_run_or_the_other(tmp_path: Path):
    models = [randomise(unipelt.attach(tiny.build("bert"), mixture), seed=3) for mixture in ("lora", "adapter")]
    expected = [logits(model, "bert") for model in models]
    unipelt.save(models[0], tmp_path)
    over = threading.Event()

    def save() -> None:
        for number in range(12):
            unipelt.save(models[number % 2], tmp_path)
        over.set()

    writer = threading.Thread(target=save)
    writer.start()
    while not over.is_set():
        found = logits(unipelt.load(tiny.build("bert"), tmp_path), "bert")
        assert any(torch.allclose(found, one) for one in expected)
    writer.join()


def test_a_load_writes_nothing(tmp_path: Path):
    unipelt.save(unipelt.attach(tiny.build("bert"), "lora"), tmp_path)
    (tmp_path / f".{TENSORS}.new").write_bytes(b"of another writer")
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    unipelt.load(tiny.build("bert"), tmp_path)
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()} == before


def test_no_link_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    outside.write_text("kept")
    folder.mkdir()
    (folder / TENSORS).symlink_to(outside)
    monkeypatch.setattr("secrets.token_hex", lambda _: "0" * 12)
    (folder / f".{TENSORS}.{'0' * 12}.new").symlink_to(outside)
    with pytest.raises(CheckpointError, match="cannot write"):
        write_whole(folder, {TENSORS: b"new"})
    monkeypatch.undo()
    write_whole(folder, {TENSORS: b"new"})
    assert (folder / TENSORS).read_text() == "new" and not (folder / TENSORS).is_symlink()
    assert outside.read_text() == "kept"


def test_what_a_killed_writer_left_is_removed_by_the_next_and_nothing_else(tmp_path: Path):
    for name in (f".{TENSORS}.0123456789ab.new", f".{TENSORS}.mine.new", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    unipelt.save(unipelt.attach(tiny.build("bert"), "lora"), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {TENSORS, CARD, f".{TENSORS}.mine.new", "notes.txt"}


def test_a_locked_folder_is_waited_for_and_then_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("unipelt.checkpoint.disk.WAIT", 0.2)
    said: list[str] = []

    def write() -> None:
        try:
            write_whole(tmp_path, {"one": b"", "two": b""})
        except CheckpointError as error:
            said.append(str(error))

    with folder_lock(tmp_path):
        write_whole(tmp_path, {"one": b"mine", "two": b"mine"})  # who holds it writes
        other = threading.Thread(target=write)
        other.start()
        other.join()
    assert "another process has been writing" in said[0] and (tmp_path / "one").read_bytes() == b"mine"
    write()
    assert len(said) == 1 and (tmp_path / "one").read_bytes() == b""


@pytest.mark.parametrize("edit", ["replaced", "appended"])
def test_a_readme_that_a_person_wrote_stays_and_ours_is_replaced(edit: str, tmp_path: Path):
    model = unipelt.attach(tiny.build("bert"), "lora")
    unipelt.save(model, tmp_path, results={"accuracy": 0.5})
    unipelt.save(model, tmp_path, results={"accuracy": 0.75})
    ours = (tmp_path / CARD).read_text()
    assert "0.7500" in ours and "0.5000" not in ours
    theirs = "# Mine\n" if edit == "replaced" else ours + "\nA note.\n"
    (tmp_path / CARD).write_text(theirs)
    unipelt.save(model, tmp_path, results={"accuracy": 0.25})
    assert (tmp_path / CARD).read_text() == theirs


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_in_the_place_of_a_file_is_refused(tmp_path: Path):
    os.mkfifo(tmp_path / TENSORS)
    for read in (describe, lambda folder: unipelt.load(tiny.build("bert"), folder)):
        with pytest.raises(CheckpointError, match="not a regular file"):
            read(tmp_path)


def test_a_file_longer_than_the_limit_is_refused(tmp_path: Path):
    (tmp_path / "long").write_bytes(b"12345")
    assert read_file(tmp_path / "long", 5) == b"12345"
    with pytest.raises(OSError, match="larger than 4 bytes"):
        read_file(tmp_path / "long", 4)
