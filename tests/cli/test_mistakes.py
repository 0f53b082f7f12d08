"""Every mistake gets one line that says what came, what was expected and what to do, and exit code 2; no traceback."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from values import rewrite

from cli.conftest import same_result, write_reviews
from unipelt.train.run_folder import locked_folder


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'? see `unipelt --help`"),
        (["train", "--modle", "x"], "No such option: --modle (Possible options: --method, --model); see `unipelt train --help`"),
        (["predict"], "Missing argument 'run'; see `unipelt predict --help`"),
        (["train", "--lr", "much"], "'--lr'"),
        (["train", "--seed", "one"], "'--seed'"),
        (["train"], "--data is missing: expected a GLUE task, docstrings, or a file"),
        (["train", "--data", "sst2"], "--out is missing: expected a folder for the run"),
        (["train", "--data", "sst2", "--out", "x", "--k", "many"], "--train-rows many: expected a whole number from 1, or all"),
        (["train", "--data", "sst2", "--out", "x", "--k", "²"], "--train-rows ²: expected a whole number from 1, or all"),
        (["train", "--data", "sst2", "--out", "x", "--k", "9" * 5000], ": expected a whole number from 1, or all"),
        (["train", "--data", "sst2", "--out", "x", "--seed", "-1"], "--seed -1: expected 0 to 4294967295"),
        (["train", "--data", "sst2", "--out", "x", "--seed", "4294967296"], "--seed 4294967296: expected 0 to 4294967295"),
        (["train", "--data", "sst2", "--out", "x", "--lr", "0"], "--lr 0.0: expected a number above 0, at most 10"),
        (["train", "--data", "sst2", "--out", "x", "--warmup", "2"], "--warmup 2.0: expected 0.0 to 1.0"),
        (["train", "--data", "sst2", "--out", "x", "--pooling", "meen"], "--pooling meen: did you mean 'mean'?"),
        (["train", "--data", "sst2", "--out", "x", "--head", "freeze"], "--head freeze: did you mean 'frozen'?"),
        (["train", "--data", "sst2", "--out", "x", "--kind", "regresion"], "--kind regresion: did you mean 'regression'?"),
        (["compare", "--data", "nosuch.csv", "--out", "x"], "'nosuch.csv' is not a task or a file; known: "),
        (["study", "sweep", "--method", "lora", "--option", "alpha", "--out", "x"], "--values is missing: expected values of alpha"),
        (["inspect", "x", "--figure", "gates.pgn"], "--figure gates.pgn: ends in '.pgn'; expected .pdf, .png, .svg"),
        (["inspect", "x", "--figure", "gates"], "--figure gates: ends in 'no suffix'; expected .pdf, .png, .svg"),
        (["inspect", "x", "--figure", "gates.png"], "--figure needs --data"),
        (["inspect", "no-such-run"], "no-such-run: no such folder"),
        (["predict", "no-such-run", "--data", "x.csv"], "no-such-run: no such folder"),
        (["report", "no-such-study"], "no-such-study: no such study; expected the folder that"),
        (["methods", "--model", "./no-such-base"], "--model ./no-such-base: no such base"),
    ],
)  # fmt: skip
def test_mistaken_words(words: list[str], expected: str, run):
    assert expected in run(*words).line


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--method", "lroa"], "method 'lroa': did you mean 'lora'"),
        (["--method", "fulll"], "method 'fulll': did you mean 'full'?"),
        (["--method", "LoRA"], "method 'LoRA': did you mean 'lora'"),
        (["--method", "lora(r=1000000000000000)"], "lora(r=1000000000000000): low_rank(r=1000000000000000): expected a whole number of at least 1, and at most"),
        (["--method", "lora(rank=4)"], "'rank'"),
        (["--method", "lora(r=0)"], "r"),
        (["--method", "lora(r=4"], "lora(r=4"),
        (["--method", "lora(r=2, target_modules='qeury')"], "'qeury'"),
        (["--data", "sst3"], "'sst3' is not a task, a file or a data set on the Hub (owner/name); did you mean 'sst2'"),
        (["--text", "reviw"], "has no column 'reviw' (--text-column); did you mean 'review'?"),
        (["--label", "star"], "has no column 'star' (--label-column); did you mean 'stars'?"),
        (["--text", "stars", "--label", "review"], "has 60 different labels in 60 examples; choose another with --label-column"),
        (["--model", "./nowhere"], "--model ./nowhere: no such base, neither a folder nor on the Hub"),
        (["--device", "tpu9"], "--device tpu9: not on this machine; expected auto, cpu"),
        (["--device", "meta"], "--device meta: not on this machine; expected auto, cpu"),
        (["--k", "5000"], "--train-rows 5000: reviews has 48 training examples, and 10 of them are kept for validation; expected up to 38"),
        (["--k", "1"], "--train-rows 1: reviews has 2 classes; expected 2 or more, an example of each"),
        (["--k", "0"], "--train-rows 0: expected a whole number from 1, or all"),
        (["--data-dir", "glue"], "is a file, and --data-dir is where GLUE's files are; leave out --data-dir"),
        (["--kind", "regression"], "expected a number for a regression"),
        (["--method", "head", "--head", "frozen"], "'head': nothing would train"),
        (["--data-dir", "x", "--data", "sst2"], "--data-dir must hold sst2/train.parquet"),
    ],
)  # fmt: skip
def test_mistakes_in_a_training(more: list[str], expected: str, run, train_words, tmp_path: Path):
    line = run(*train_words(tmp_path / "run", "lora", *more)).line
    assert expected in line
    assert not (tmp_path / "run").exists(), "nothing is written for a mistake"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_device_that_is_not_there(run, train_words, tmp_path: Path):
    expected = "--device cuda: not on this machine; expected auto, cpu"
    assert expected in run(*train_words(tmp_path / "run", "lora", "--device", "cuda")).line


@pytest.mark.parametrize(
    ("name", "contents", "expected"),
    [
        ("none.csv", None, "does not exist; give the path of a file: .csv, .tsv, .json"),
        ("empty.csv", b"", "is empty; expected a header and examples"),
        ("header.csv", b"text,label\n", "has a header and no examples"),
        ("zero.csv", b"text,label\na\0b,1\n", "is a binary file (a zero at character 12), expected text"),
        ("excel.csv", b"PK\x03\x04 not a table", "begins like a zip or Excel file, not like text"),
        ("latin.csv", "text,label\ncafé,1\n".encode("latin-1"), "is not UTF-8: byte 0xe9 at position 14 (line 2); save it as UTF-8"),
        ("notes.docx", b"text", "ends in '.docx'; expected .csv, .tsv, .json, .jsonl, .parquet, .xlsx, .conll, .bio: convert or rename it"),
        ("gap.csv", b"text,label\nfine,1\n,0\n", "example 2 (line 3): no value in column 'text'; fill it in or remove the example, or add --skip-empty"),
        ("gaps.csv", b"text,label\nfine,1\n,0\n  ,1\n", "example 2 (line 3): no value in column 'text', nor in 1 more (example 3); fill in or remove them"),
        ("empties.csv", b"text,label\n" + b"fine,\n" * 12, "example 1 (line 2): no value in column 'label', nor in 11 more (example 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, …);"),
        ("unlabelled.csv", b"text,label\nfine,1\nbad,\n", "example 2 (line 3): no value in column 'label'; fill it in"),
        ("one.csv", b"text,label\n" + b"fine day,yes\n" * 40, "every label in column 'label' is 'yes'; training needs two classes or more"),
        ("few.csv", b"text,label\nfine day,a\nbad day,b\n", "few has 2 examples and no test set; give a --test file, or at least 30 examples"),
        ("broken.parquet", b"PAR1 but no more", "is no readable Parquet file"),
        ("broken.jsonl", b'{"text": "fine", "label": 1\n', "line 1"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_used(
    name: str, contents: bytes | None, expected: str, run, tiny_base: str, tmp_path: Path
):
    path = tmp_path / name
    if contents is not None:
        path.write_bytes(contents)
    line = run(
        "train", "--model", tiny_base, "--data", path, "--out", tmp_path / "run", "--label", "label", "--text", "text"
    ).line
    assert expected in line and name.split(".")[0] in line
    assert not (tmp_path / "run").exists()


def test_a_label_that_training_has_not_seen(run, train_words, tmp_path: Path):
    test = tmp_path / "test.csv"
    test.write_text("review,stars\nword1 good,yes\nword2 bad,maybe\n")
    line = run(*train_words(tmp_path / "run", "lora", "--test", test)).line
    assert "test.csv, example 2 (line 3): label 'maybe' in column 'stars' did not occur in training" in line


@pytest.mark.parametrize(
    ("arch", "method", "expected"),
    [
        ("llama", "bitfit", "no bias"),
        (
            "deberta-v2",
            "unipelt-apl(bottleneck=4, prefix=2, mlp=8, r=2)",
            "calls none of transformers' attention functions",
        ),
    ],
)
def test_a_preset_that_an_architecture_cannot_take(
    arch: str, method: str, expected: str, run, base_of, train_words, tmp_path: Path
):
    line = run(*train_words(tmp_path / "run", method, "--model", base_of(arch))).line
    assert expected in line and not (tmp_path / "run").exists()
    assert run(*train_words(tmp_path / "run", "lora", "--model", base_of(arch))).code == 0


@pytest.mark.parametrize(("method", "more"), [("lora", ("--weight-decay", "10")), ("full", ("--weight-decay", "10"))])
def test_a_loss_that_is_not_finite(
    method: str, more: tuple[str, ...], run, train_words, unlabelled: Path, tmp_path: Path
):
    words = train_words(tmp_path / "run", method, "--lr", "10", "--epochs", "60", "--clip", "0", *more)
    line = run(*words).line
    assert "is not finite" in line and "at step" in line and "try a lower --lr than 10" in line
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"].startswith("failed: ") and not (tmp_path / "run" / "training.safetensors").exists()
    assert "is not finite" in run(*words).line, "asked again, it says so again"
    assert "is not finite" in run("predict", tmp_path / "run", "--data", unlabelled).line
    assert "is not finite" in run("inspect", tmp_path / "run").out


def test_folders_that_are_not_this_runs(run, finished, train_words, tmp_path: Path):
    line = run(*train_words(finished("lora"), "lora", "--seed", "5")).line
    assert "holds a run with seed=0, this command has seed=5; use another folder, or delete this one" in line
    line = run(*train_words(finished("lora"), "lora", "--text", "review", "--warmup", "0.5")).line
    assert "holds a run with text_column=its default, this command has text_column=review" in line
    line = run(*train_words(finished("lora"), "lora", "--warmup", "0.5")).line
    assert "holds a run with warmup=its default, this command has warmup=0.5" in line
    (tmp_path / "thesis.doc").write_text("of great worth")
    assert "not empty, and holds no run; expected a new folder" in run(*train_words(tmp_path, "lora")).line
    assert "is a file; expected a folder" in run(*train_words(tmp_path / "thesis.doc", "lora")).line
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.doc"]
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.json").write_text('{"request": ')
    assert "run.json: damaged" in run(*train_words(tmp_path / "damaged", "lora")).line


def test_one_training_at_a_time_in_a_folder(run, train_words, tmp_path: Path):
    out = tmp_path / "deep" / "run"
    with locked_folder(out):
        line = run(*train_words(out, "lora")).line
    assert f"--out {out}: another training is at work in it; wait for its end, or take another folder" in line
    assert not out.parent.exists(), "what a training made and left empty goes again"
    assert run(*train_words(out, "lora")).code == 0


def test_other_rows_under_the_same_name_are_another_run(run, train_words, tmp_path: Path):
    data = write_reviews(tmp_path / "data.csv")
    words = train_words(tmp_path / "run", "lora", "--data", data)
    assert run(*words).code == 0
    record, before = tmp_path / "run" / "run.json", data.read_text()
    for status in ("finished", "running"):
        record.write_text(json.dumps(json.loads(record.read_text()) | {"status": status}))
        for changed in (before.replace("yes", "ja"), before.replace("good", "fine", 1), before + before):
            data.write_text(changed)
            assert "was started on other examples of" in run(*words).line


def checkpoint(finished, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished("lora"), tmp_path / "run"))


@pytest.mark.parametrize(
    "damage", ["truncated", "missing", "version", "json", "key", "unknown", "shape", "field", "preset", "nameless"]
)
def test_damaged_checkpoints(damage: str, run, finished, unlabelled: Path, tmp_path: Path):
    folder = checkpoint(finished, tmp_path)
    path, tensors = folder / "unipelt.safetensors", load_file(folder / "unipelt.safetensors")
    name = next(name for name in tensors if "down" in name)
    expected = {
        "truncated": "unipelt.safetensors: damaged or not readable",
        "missing": "no unipelt.safetensors in it, though its run is finished; train it again",
        "version": "format 7, this version reads 4; install the unipelt that wrote it",
        "json": "unipelt.safetensors: ",
        "key": f"has no {name!r}",
        "unknown": "holds 'more', which its mixture does not have",
        "shape": f"{name!r} is (1, 2), expected {tuple(tensors[name].shape)}",
        "field": "is not as expected",
        "preset": "unipelt.safetensors: ",
        "nameless": "does not say where its base is; name it with --model",
    }[damage]
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-10])
    elif damage == "missing":
        path.unlink()
    elif damage == "version":
        rewrite(folder, change=lambda said: said | {"format": 7})
    elif damage == "json":
        rewrite(folder, change=lambda said: "{")
    elif damage == "field":
        rewrite(folder, change=lambda said: said | {"surprise": 1})
    elif damage == "nameless":
        rewrite(folder, change=lambda said: said | {"base": said["base"] | {"name": ""}})
    elif damage == "preset":
        mixture = {"name": "x", "changes": [{"form": {"name": "nothing known"}}]}
        rewrite(folder, change=lambda said: said | {"mixture": mixture})
    else:
        changed = {"key": {}, "unknown": {"more": torch.ones(1)}, "shape": {name: torch.ones(1, 2)}}[damage]
        rewrite(folder, {k: v for k, v in tensors.items() if damage != "key" or k != name} | changed)
    assert expected in run("predict", folder, "--data", unlabelled).line


def test_a_checkpoint_on_another_base(run, finished, base_of, tiny_base: str, unlabelled: Path, tmp_path: Path):
    line = run("predict", finished("lora"), "--data", unlabelled, "--model", base_of("roberta")).line
    assert f"made for base {tiny_base!r} (bert)" in line and "(roberta)" in line and "load that base instead" in line
    other = Path(shutil.copytree(tiny_base, tmp_path / "other"))
    save_file(
        {k: v * 1.5 for k, v in load_file(other / "model.safetensors").items()},
        other / "model.safetensors",
        {"format": "pt"},
    )
    line = run("predict", finished("lora"), "--data", unlabelled, "--model", other).line
    assert "the weights of" in line and "differ" in line and "load that base instead" in line
    (other / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes()[:-100])
    assert "cannot be read" in run("predict", finished("lora"), "--data", unlabelled, "--model", other).line


def test_a_run_that_is_not_finished_predicts_nothing(run, finished, unlabelled: Path, tmp_path: Path):
    for method in ("lora", "full"):
        record = json.loads((finished(method) / "run.json").read_text()) | {"status": "running"}
        (tmp_path / method).mkdir()
        (tmp_path / method / "run.json").write_text(json.dumps(record))
        line = run("predict", tmp_path / method, "--data", unlabelled).line
        assert "its run is not finished; repeat its `unipelt train` command to finish it" in line
        assert "not finished" in run("inspect", tmp_path / method).out
    (tmp_path / "nothing").mkdir()
    assert (
        "no unipelt.safetensors in it; expected a folder that `unipelt train`"
        in run("inspect", tmp_path / "nothing").line
    )
    (tmp_path / "nothing" / "winner").mkdir()
    (tmp_path / "nothing" / "winner" / "unipelt.safetensors").touch()
    assert run("inspect", tmp_path / "nothing").line.endswith(f"{tmp_path / 'nothing' / 'winner'} is one")


@pytest.mark.parametrize(
    ("header", "more", "expected"),
    [
        ("review", ["--text", "revew"], "has no column 'revew' (--text-column); did you mean 'review'?"),
        (
            "a good day",
            [],
            "has no column 'review', which the run was trained on, but 'a good day'; give it that header",
        ),
        ("review", ["--pair", "review"], "one column is named twice"),
        ("review,other", ["--pair", "other"], "has pairs of texts, the run was trained on single texts"),
        ("review,prediction", [], "has a column 'prediction' already, which predict writes; rename it"),
        ("review,p(no)", ["--proba"], "has a column 'p(no)' already"),
        ("gate(encoder.0.adapter),review", ["--gates"], "has a column 'gate(encoder.0.adapter)' already"),
    ],
)
def test_columns_that_cannot_be_predicted(header: str, more: list[str], expected: str, run, finished, tmp_path: Path):
    data = tmp_path / "new.csv"
    data.write_text(f"{header}\n" + ",".join(["word1"] * (header.count(",") + 1)) + "\n")
    assert expected in run("predict", finished("unipelt-apl"), "--data", data, *more).line
    if "--gates" not in more and "p(" not in header and "prediction" not in header:
        for command in ("inspect", "export"):
            asked = ["--merged", tmp_path / "no"] if command == "export" else []
            assert expected in run(command, finished("unipelt-apl"), "--data", data, *more, *asked).line


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("folder", "is a folder; expected a file, such as"),
        ("data", "is --data itself; take another file"),
        ("link", "not a regular file; expected a new file, or an old table to replace"),
        ("pipe", "not a regular file"),
    ],
)
def test_predictions_replace_nothing_but_a_table(
    place: str, expected: str, run, finished, unlabelled: Path, tmp_path: Path
):
    out = unlabelled if place == "data" else tmp_path / "out"
    (tmp_path / "target.csv").write_text("kept")
    make = {
        "folder": out.mkdir,
        "link": lambda: out.symlink_to(tmp_path / "target.csv"),
        "pipe": lambda: os.mkfifo(out),
    }
    make.get(place, lambda: None)()
    before, texts = out.lstat()[:7], unlabelled.read_text()
    line = run("predict", finished("lora"), "--data", unlabelled, "--out", out).line
    assert f"--out {out}: {expected}" in line and out.lstat()[:7] == before  # all but times: it may have been read
    assert unlabelled.read_text() == texts and (tmp_path / "target.csv").read_text() == "kept"


@pytest.mark.parametrize("name", ["answers.txt", "answers"])
def test_predictions_are_not_written_as_what_they_are_not(name: str, run, finished, unlabelled: Path, tmp_path: Path):
    line = run("predict", finished("lora"), "--data", unlabelled, "--out", tmp_path / name).line
    assert f"{name}: expected a file that ends in .csv, .tsv, .json" in line
    assert not (tmp_path / name).exists()


def test_debug_shows_the_traceback_and_the_line(run, finished, unlabelled: Path):
    said = run("predict", finished("lora"), "--data", "nothing.csv", "--debug")
    assert said.code == 2 and "Traceback" in said.err and "DataError" in said.err
    assert said.err.splitlines()[-1].startswith("unipelt: nothing.csv does not exist")


def test_a_place_that_cannot_be_written(run, finished, unlabelled: Path, train_words, tmp_path: Path):
    (tmp_path / "file").write_text("kept")
    line = run("predict", finished("lora"), "--data", unlabelled, "--out", tmp_path / "file" / "answers.csv").line
    assert "cannot write" in line and "what was there before is untouched" in line
    assert "cannot write" in run(*train_words(tmp_path / "file" / "run", "lora")).line
    assert (tmp_path / "file").read_text() == "kept"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of one page, which `resize` enlarges."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root mounts a file system")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no file system could be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def resize(folder: Path, kilobytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", folder], check=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("method", "more"), [("unipelt-apl", 8), ("full", 80)])
def test_a_full_disk_loses_nothing_and_the_same_command_goes_on(
    method: str, more: int, run, finished, train_words, unlabelled: Path, small_disk: Path
):
    """The disk grows a little after each refusal, so that one write after the other is the one that fails."""
    out, size, last, begun = small_disk / "run", 4, contents(small_disk), set()
    while (said := run(*train_words(out, method))).code == 2:
        assert "No space left on device" in said.line and (
            "run the same command again to continue" in said.line or "untouched" in said.line
        )
        begun.add((out / "training.safetensors").exists())
        now = contents(small_disk)
        assert not [name for name in last if not now.get(name)], "what had been written before is lost"
        assert not [name for name in now if name.endswith(".new")], "half a file stays"
        last, size = now, size + more
        assert size < 4000, said.err
        resize(small_disk, size)
    assert said.code == 0 and begun == {False, True}, "the first state is refused, and one that has a state before it"
    same_result(out, finished(method))

    (small_disk / "answers.csv").write_text("old\n")
    fill(small_disk)
    line = run("predict", out, "--data", unlabelled, "--out", small_disk / "answers.csv", "--overwrite").line
    assert "No space left on device" in line and (small_disk / "answers.csv").read_text() == "old\n"


@pytest.mark.parametrize("method", ["unipelt-apl", "full"])
def test_a_disk_that_is_full_at_the_end_keeps_the_training(
    method: str, run, finished, train_words, small_disk: Path, monkeypatch: pytest.MonkeyPatch
):
    resize(small_disk, 4000)
    out = small_disk / "run"

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("unipelt.train.train_run.save_checkpoint", stopped)
        assert run(*train_words(out, method)).code == 130
    fill(small_disk)
    line = run(*train_words(out, method)).line
    assert "No space left on device" in line and (
        "run the same command again to continue" in line or "untouched" in line
    )
    assert (out / "training.safetensors").exists()
    (small_disk / "filling").unlink()
    assert run(*train_words(out, method)).code == 0
    same_result(out, finished(method))


def fill(folder: Path) -> None:
    space = os.statvfs(folder)
    (folder / "filling").write_bytes(b"0" * (space.f_bavail * space.f_frsize))


def changed_base(base: str, part: str, folder: Path) -> None:
    """Other weights, or another vocabulary, under the same name."""
    if part == "weights":
        tensors = load_file(folder / "model.safetensors")
        name = next(name for name in tensors if name.endswith("query.weight"))
        tensors[name][-1, -1] += 1.0
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    else:
        path = folder / "tokenizer.json"
        path.write_text(path.read_text().replace('"good"', '"goof"'))


@pytest.mark.parametrize("part", ["weights", "tokenizer"])
def test_a_base_that_is_replaced_between_stop_and_resume_is_refused(
    part: str, run, train_words, tiny_base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    words = train_words(tmp_path / "run", "lora", "--model", base)

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("unipelt.train.train_run.save_checkpoint", stopped)
        assert run(*words).code == 130
    changed_base(tiny_base, part, base)
    said = {"weights": "its weights differ from those", "tokenizer": "its tokenizer differs from the one"}[part]
    assert f"--model {base}: {said} of the earlier runs; use the same model" in run(*words).line
    shutil.rmtree(base)
    shutil.copytree(tiny_base, base)
    assert run(*words).code == 0


def test_tokens_that_only_the_tokenizer_has_are_named(run, tiny_base: str, train_words, finished, tmp_path: Path):
    """They were added, and the model was not resized: no index error from inside of it."""
    base, data = Path(shutil.copytree(tiny_base, tmp_path / "base")), tmp_path / "new.csv"
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens([f"<new{i}>" for i in range(40)])
    tokenizer.save_pretrained(base)
    data.write_text("review,stars\n" + "".join(f"<new39> word{i},{'ab'[i % 2]}\n" for i in range(40)))
    line = run(*train_words(tmp_path / "run", "lora", "--model", base, "--data", data)).line
    assert f"--model {base}: an example has token" in line and "tokens were added to its tokenizer alone" in line


def test_what_cannot_be_exported_is_said_before_anything_is_trained(
    run, reviews: Path, tiny_base: str, train_words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A base whose head reads the mean, as sentence encoders declare it."""
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    said = f"the head reads the mean of the tokens, as the settings of {base} say, which plain transformers models cannot do"

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("unipelt.train.fleet.Fleet.train", stopped)
    monkeypatch.setattr("unipelt.study.engine.run_study", stopped)
    compare = ("compare", "--data", reviews, "--methods", "head", "--epochs", 1, "--device", "cpu")
    for words in (
        train_words(tmp_path / "run", "lora", "--model", base),
        [*compare, "--model", base, "--out", tmp_path / "c"],
    ):
        stopped_at = run(*words)
        assert stopped_at.code == 130 and said in stopped_at.err and "train with --pooling model" in stopped_at.err
        assert said not in run(*words, "--pooling", "model").err


@pytest.mark.parametrize("part", ["weights", "tokenizer"])
def test_a_base_that_is_replaced_between_training_and_prediction_is_refused(
    part: str, run, finished, tiny_base: str, unlabelled: Path, tmp_path: Path
):
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    words = ("predict", finished("lora"), "--data", unlabelled, "--model", base)
    assert run(*words).code == 0
    changed_base(tiny_base, part, base)
    said = {"weights": "the weights of base", "tokenizer": "was trained with another tokenizer"}[part]
    assert said in run(*words).line


def test_a_run_that_began_in_another_precision_says_that_it_trains_again(run, finished, train_words, tmp_path: Path):
    out = Path(shutil.copytree(finished("lora"), tmp_path / "run"))
    record = json.loads((out / "run.json").read_text())
    record["recipe"]["precision"], record["status"] = "bf16", "running"
    (out / "run.json").write_text(json.dumps(record))
    said = run(*train_words(out, "lora"))
    assert said.code == 0 and "--precision fp32 instead of bf16: trains again from the first step" in said.err
    same_result(out, finished("lora"))


def test_more_epochs_train_a_finished_run_again(run, finished, train_words, tmp_path: Path):
    """The result is that of a run of so many epochs; the checkpoint stays until then; fewer epochs are refused."""
    out = tmp_path / "run"
    assert run(*train_words(out, "lora")).code == 0
    said = run(*train_words(out, "lora", "--epochs", "6"))
    assert said.code == 0 and "--epochs 6 instead of 4: trains again from the first step" in said.err
    assert "its checkpoint stays until the new one is written" in said.err
    assert run(*train_words(tmp_path / "six", "lora", "--epochs", "6")).code == 0
    same_result(out, tmp_path / "six")
    assert "already finished" in run(*train_words(out, "lora", "--epochs", "6")).err
    line = run(*train_words(out, "lora", "--epochs", "5")).line
    assert f"--out {out}: holds a run of 6 epochs; got --epochs 5, expected more" in line
