"""Mistakes in a study's words or plan: one line, before anything is trained; a full disk loses nothing."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cli.conftest import SMALL, replaced
from safetensors.torch import load_file, save_file

from study.conftest import results
from unipelt.errors import CheckpointError, UserError
from unipelt.spec import mixture
from unipelt.study import engine
from unipelt.study.plan import Grid, StudyConfig, canonical_method, normalise_path
from unipelt.study.store import Store
from unipelt.train import fleet as loop
from unipelt.train.records import RunKey


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "train_fleet", lambda *_, **how: pytest.fail("trained"))


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--k", "²"], "--train-rows ²: expected a whole number from 1, or all"),
        (["--k", "0"], "--train-rows 0: expected a whole number from 1, or all"),
        (["--k", "9" * 5000], ": expected a whole number from 1, or all"),
        (["--k", "16.5"], "--train-rows 16.5: expected a whole number from 1, or all"),
        (["--data", "sts2"], "'sts2' is not a task or a file; did you mean 'stsb' or 'sst2'?"),
        (["--data", "UNLABELLED"], "no label column besides the text 'review'"),
        (["--data", "SHORT"], "has 12 examples and no test set"),
        (["--methods", "lroa"], "method 'lroa': did you mean 'lora'?"),
        (["--methods", "lora(r=)"], "'lora(r=)': expected NAME(option=value, …)"),
        (["--seeds", "0"], "--seeds 0: expected 1 to 10000"),
        (["--seeds", "10001"], "--seeds 10001: expected 1 to 10000"),
        (["--lr", "nan"], "--lr nan: expected a number above 0"),
        (["--num-rates", "2"], "--num-rates 2: cannot be combined with --lr; give one of them"),
        (["--num-rates", "6"], "--num-rates 6: expected 1 to 5"),
        (["--kind", "regresion"], "--kind regresion: did you mean 'regression'?"),
        (["--label", "star"], "has no column 'star' (--label-column); did you mean 'stars'?"),
        (["--data", "docstrings", "--text", "review"], "--text-column is for files only, and --data docstrings names none; remove it"),
        (["--data", "docstrings", "--validation", "UNLABELLED"], "--validation is for files only, and --data docstrings names none; remove it"),
        (["--epochs", "0"], "--epochs 0: expected 1 to"),
        (["--runs-at-once", "-1"], "--runs-at-once -1: expected at least 0"),
        (["--pooling", "meen"], "--pooling meen: did you mean 'mean'?"),
        (["--head", "freeze"], "--head freeze: did you mean 'frozen'?"),
        (["--out", "UNLABELLED"], "cannot be created (File exists); use another folder"),
        (["--out", ""], "--out is missing"),
        (["--engine", "moon"], "--engine moon: expected local or ray"),
        (["--gpus-per-fleet", "7"], "--gpus-per-fleet 7: needs --engine ray; add it, or leave --gpus-per-fleet out"),
        (["--engine", "ray", "--gpus-per-fleet", "2"], "--gpus-per-fleet 2.0: expected a number above 0 and at most 1"),
        (["--engine", "ray", "--device", "tpu"], "--device tpu: expected auto, cpu or cuda"),
        (["--plan", "no.toml"], "--plan no.toml: No such file or directory; expected a TOML file"),
    ],
)  # fmt: skip
def test_mistaken_words(more: list[str], expected: str, words, run, unlabelled: Path, reviews: Path, tmp_path: Path):
    short = tmp_path / "short.csv"
    short.write_text("".join(reviews.read_text().splitlines(keepends=True)[:13]))
    files = {"UNLABELLED": str(unlabelled), "SHORT": str(short)}
    assert expected in run(*words(tmp_path / "out", *(files.get(word, word) for word in more))).line
    left = tmp_path / "out"
    assert not left.exists() or not Store.read(left).runs(), "its options would have to be kept"


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train_rows = 100", "train_rows = 100: expected a list, each a whole number or a text"),
        ('train_rows = ["x"]', "--train-rows x: expected a whole number from 1, or all"),
        ("train_rows = [true]", "train_rows = [True]: expected a list, each a whole number or a text"),
        ("train_rows = []", "--train-rows: nothing given; expected at least one value"),
        ('seeds = "many"', "seeds = 'many': expected a whole number"),
        ("seeds = 1.5", "seeds = 1.5: expected a whole number"),
        ('lr = ["a"]', "lr = ['a']: expected a list, each a number"),
        ("lr = 1e-3", "lr = 0.001: expected a list, each a number"),
        ('methods = "lora"', "methods = 'lora': expected a list, each a text"),
        ("data = [3]", "data = [3]: expected a list, each a text"),
        ("model = 3", "model = 3: expected a text"),
        ("data_dir = 3", "data_dir = 3: expected a text"),
        ("label_column = 3", "label_column = 3: expected a text"),
        ("validation = 3", "validation = 3: expected a text"),
        ('stratify = "yes"', "stratify = 'yes': expected true or false"),
        ('validation_rows = "many"', "validation_rows = 'many': expected a whole number"),
        ("num_rates = 0", "--num-rates 0: expected 1 to 5"),
        ("runs_at_once = -1", "--runs-at-once -1: expected at least 0"),
        ("batch_size = 1.5", "batch_size = 1.5: expected a whole number"),
        ("clip = nan", "--clip nan: expected 0.0 to inf"),
        ('head = "freeze"', "--head freeze: did you mean 'frozen'?"),
        ("max_lenght = 64", "'max_lenght': did you mean 'max_length'"),
        ("recipe = 3", "'recipe': did you mean 'clip'?"),
        ("k", "not TOML"),
    ],
)  # fmt: skip
def test_mistaken_plans(text: str, expected: str, run, tmp_path: Path):
    (tmp_path / "plan.toml").write_text(text)
    assert expected in run("study", "grid", "--plan", tmp_path / "plan.toml", "--out", tmp_path / "out").line
    assert not (tmp_path / "out").exists()


def test_without_ray_one_line_says_how_to_get_it(words, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "--engine ray needs Ray: pip install 'unipelt[ray]'" in run(*words(tmp_path), "--engine", "ray").line


def test_a_plan_is_its_flags_and_flags_take_precedence(words, run, tiny_base: str, reviews: Path, tmp_path: Path):
    """Whatever their value, the default's too; what is named twice is one run."""
    tasks, methods = (
        [str(reviews), f"{reviews.parent}/./{reviews.name}"],
        ["lora(r=2, alpha=4.0)", " lora( alpha=4e0,r=2)"],
    )
    plan = {"model": "nowhere", "seeds": 7, "data": tasks, "train_rows": [16, 16], "methods": methods, "lr": [1e-3, 0.001], "epochs": 1, "head": "train"}  # fmt: skip
    (tmp_path / "plan.toml").write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in plan.items()))
    flags = ["--model", tiny_base, "--seeds", 5, "--batch-size", 8, "--device", "cpu", "--out", tmp_path / "out"]
    said = run("study", "grid", "--plan", tmp_path / "plan.toml", *flags)
    assert said.code == 0 and "5 of 5 runs done" in said.out
    assert {row["method"] for row in Store.read(tmp_path / "out").runs()} == {"lora(r=2, alpha=4.0)"}
    assert Store.read(tmp_path / "out").options["recipe"] == {"epochs": 1, "batch_size": 8}


def test_a_study_has_one_set_of_rows(words, run, reviews: Path, tmp_path: Path, monkeypatch):
    """Another seed of an edited file would be another data set's; another task is allowed, and so is a file of which no run
    could be: mended, the same command trains it."""
    mine, other, out = tmp_path / "mine.csv", tmp_path / "other.csv", tmp_path / "out"
    lines = reviews.read_text().splitlines(keepends=True)
    mine.write_text("".join(lines[:31]))
    other.write_text("".join(lines))
    less = ["study", "grid", *words(out)[2:4], "--methods", "head", "--seeds", 1, "--epochs", 1, "--device", "cpu"]

    def ask(*more):
        return run(*replaced(less, more), "--out", out)

    assert "every run failed, the first because --train-rows 16" in ask("--data", mine, "--k", 16).line
    mine.write_text("".join(lines))
    assert "1 of 1 runs done" in ask("--data", mine, "--k", 16).out
    with monkeypatch.context() as patch:
        patch.setattr(engine, "train_fleet", lambda *_, **how: pytest.fail("trained"))
        for kept in (lines[:-1], [lines[0], lines[1].replace("yes", "no"), *lines[2:]], lines[:1] + lines[:0:-1]):
            mine.write_text("".join(kept))
            said = ask("--data", mine, "--k", 16, "--seeds", 2).line
            assert (
                f"--out {out}: its runs of {mine} were trained on other examples: 60 training and no test examples, sha256 "
                in said
            )
            assert f"; got {len(kept) - 1} training" in said and "restore those examples, or use another folder" in said
        assert ask("--data", other, mine, "--k", 16, "--seeds", 2).line == said
        assert len(Store.read(out).runs()) == 1, "what is refused plans nothing"
    assert "3 of 3 runs done" in ask("--data", other, "--k", 16, "--seeds", 2).out
    mine.write_text("".join(lines))
    assert "4 of 4 runs done" in ask("--data", mine, "--k", 16, "--seeds", 2).out


def test_what_another_command_planned_is_trained_on_its_rows_alone(words, run, reviews: Path, tmp_path: Path):
    """Where its file has gone, its runs fail and the others go on."""
    setting = StudyConfig(model=words(tmp_path)[3])
    asked = ["study", "grid", "--model", setting.model, "--data", "docstrings", "--k", 100, "--methods", "head", "--seeds", 1, "--validation-rows", 10]  # fmt: skip
    setting = replace(setting, columns={"validation_rows": 10})
    for task in (str(reviews), f"{tmp_path}/gone.csv"):
        store = Store.create(tmp_path / Path(task).stem, setting.options)
        store.plan([RunKey(task=task, k=16, method="head", seed=0, lr=1e-3)], {task: "60 other rows"})
        store.assign(lambda free: {"one": free})
    line = run(*asked, "--out", tmp_path / "reviews").line
    assert f"its runs of {reviews} were trained on other examples: 60 other rows; got 60 training" in line
    said = run(*asked, "--out", tmp_path / "gone")
    assert f"1 of 2 runs done, 1 failed: {tmp_path}/gone.csv does not exist" in said.out, said.err


def test_options_of_files_and_of_glue_are_for_those_that_take_them(words, run, reviews: Path, tmp_path: Path):
    """A file whose columns are named beside the built-in task; alone, each is told what is not its own, and the folder is free."""
    tasks = ["sst2", "docstrings", str(reviews)]
    setting = StudyConfig(data_dir="glue", columns={"text_column": "review", "validation_rows": 20})
    asked = [setting.config(RunKey(task=task, k=16, method="head", seed=0, lr=1e-3)) for task in tasks]
    assert [one.data_dir for one in asked] == ["glue", None, None] and {one.validation_rows for one in asked} == {20}
    assert [one.text_column for one in asked] == [None, None, "review"]
    less = ["study", "grid", "--model", words(tmp_path)[3], "--methods", "head", "--seeds", 1, "--epochs", 1, "--device", "cpu"]  # fmt: skip
    few = [*less, "--k", 32, "--validation-rows", 10, "--stratify", "--max-length", 8, "--out", tmp_path / "out", "--data", "docstrings"]  # fmt: skip
    assert (
        "--kind is for files only, and --data docstrings names none; remove it"
        in run(*few, "--kind", "regression").line
    )
    assert "2 of 2 runs done" in run(*few, reviews, "--text", "review").out, (
        "what was refused has left no options behind"
    )
    assert "holds a study with text_column=review, this command has text_column=its default" in run(*few).line


def test_each_method_has_rates_of_its_own():
    """The study's are those of a comparison; given ones are every method's."""
    grid = Grid(tasks=["rte"], k=["all"], methods=["full ", "head"], seeds=1, rates=3)
    assert {(key.method, key.lr) for key in grid.keys(384)} == {
        ("full", 1e-4), ("full", 3.3e-5), ("full", 1.1e-5), ("head", 1e-2), ("head", 3.3e-3), ("head", 1.1e-3),
    }  # fmt: skip
    assert {key.lr for key in replace(grid, lr=[1e-3], rates=1).keys(384)} == {1e-3}
    with pytest.raises(UserError, match="--num-rates 0: expected 1 to 5"):
        replace(grid, rates=0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" lora ", "lora"), ("lora()", "lora"), (" full", "full"), ("lora( alpha=4,r=2 )", "lora(r=2, alpha=4)"),
        ('adapter(layers = 3 - 11, init="lora")', "adapter(init='lora', layers=3-11)"), (SMALL["unipelt-apl"], SMALL["unipelt-apl"]),
        ("lora(target_modules=['query','value'])", "lora(target_modules=['query', 'value'])"),
        ("mam(prefix=30, mlp=800, bottleneck=512, s=4.0)", "mam(prefix=30, mlp=800, bottleneck=512, s=4.0)"),
    ],
)  # fmt: skip
def test_a_method_has_one_spelling(text: str, expected: str):
    assert canonical_method(text) == expected == canonical_method(expected)
    assert expected == "full" or mixture(expected).changes == mixture(text).changes


def test_a_file_has_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("rte", "a.csv", "under/b.csv"):
        (tmp_path / "here" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "here" / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "link")
    for task in ("a.csv", "./a.csv", "under/../a.csv", f"{tmp_path}/here/a.csv", f"{tmp_path}/link/a.csv"):
        assert normalise_path(task) == "a.csv"
    assert [normalise_path(task) for task in ("rte", "./under//b.csv", "owner/name")] == [
        "rte",
        "under/b.csv",
        "owner/name",
    ]
    monkeypatch.chdir(tmp_path / "here" / "under")
    assert normalise_path("../a.csv") == f"{tmp_path}/here/a.csv"


@pytest.mark.parametrize("where", ["store", "state"])
def test_a_full_disk_loses_nothing_and_fails_no_run(
    where: str, words, run, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    finish = Store.finish

    def full(store: Store, found: dict) -> None:
        finish(store, found)
        store._connection.execute("PRAGMA max_page_count = 1")  # no more than there are

    def no_state(*_) -> None:
        raise CheckpointError("cannot write the training's state (No space left on device)")

    patched = {"store": (Store, "finish", full), "state": (loop, "save_state", no_state)}
    with monkeypatch.context() as patch:
        patch.setattr(*patched[where])
        line = run(*words(tmp_path / "out")).line
    said = {"store": "database or disk is full; stored runs are kept", "state": "No space left on device"}
    assert said[where] in line
    stored = [row for row in results(tmp_path / "out") if row["status"] != "planned"]
    assert len(stored) < 16 and bool(stored) == (where == "store")
    assert all(row in results(undisturbed) for row in stored)
    assert run(*words(tmp_path / "out")).code == 0
    assert results(tmp_path / "out") == results(undisturbed)


def test_a_study_has_one_base(words, run, tiny_base: str, tmp_path: Path):
    """Its weights replaced between two commands are refused before anything is trained on them."""
    base, out = Path(shutil.copytree(tiny_base, tmp_path / "base")), tmp_path / "out"
    given = ("--model", base, "--k", 16, "--methods", "head", "--lr", 1e-2, "--epochs", 1)
    assert run(*replaced(words(out), (*given, "--seeds", 1))).code == 0
    tensors = load_file(base / "model.safetensors")
    save_file({name: value + 1e-3 for name, value in tensors.items()}, base / "model.safetensors", {"format": "pt"})
    line = run(*replaced(words(out), (*given, "--seeds", 2))).line
    assert f"--model {base}: its weights differ from those of the earlier runs" in line
    assert len(Store.read(out).pending()) == 1
