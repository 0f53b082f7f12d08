"""compare: an answer chosen by validation rows, evidence from rows that chose nothing, and a model that predicts."""

import csv
import errno
import json
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from cli.conftest import SMALL, replaced, write_reviews

from unipelt.checkpoint import disk
from unipelt.errors import CheckpointError
from unipelt.report.build import build
from unipelt.report.evidence import predicted_examples
from unipelt.report.study import read
from unipelt.report.tables import Table
from unipelt.study import compare, engine
from unipelt.study.store import Store
from unipelt.train.baselines import FEATURES
from unipelt.train.recipes import Recipe
from unipelt.train.records import SETFIT, RunConfig, RunRecord
from unipelt.train.run_folder import read_record
from unipelt.train.runs import FinishedRun

USUAL = [name for name in FEATURES if name != SETFIT]


@pytest.fixture(scope="session")
def ask(tiny_base: str):
    def words(data: Path, out: Path, *more) -> list[str]:
        given = [
            "compare", "--data", data, "--model", tiny_base, "--methods", "head", SMALL["lora"], "--seeds", 2, "--epochs", 3,
            "--evaluate-every", 1, "--batch-size", 8, "--device", "cpu", "--folds", 0,
            "--no-baselines", "--out", out,
        ]  # fmt: skip
        return replaced(given, more)

    return words


def test_the_answer_its_evidence_and_a_model_that_predicts(ask, run, reviews: Path, unlabelled: Path, tmp_path: Path):
    out = tmp_path / "out"
    said = run(*ask(reviews, out))
    assert said.code == 0, said.err
    assert "head on reviews, " in said.err, "what is at work is named"
    rows = Store.read(out).runs()
    assert {(row["method"], row["seed"]) for row in rows} == {(m, s) for m in ("head", SMALL["lora"]) for s in (0, 1)}
    assert len(rows) == 8, "two rates each"
    assert len(Store.read(out).fleets()) == 4
    found = build(out).recommendation
    assert found and f"{found.method}, ready for" in said.out
    record = json.loads((out / "winner" / "run.json").read_text())
    mine = [row for row in rows if (row["method"], row["lr"]) == (found.method, found.lr)]
    assert record["config"]["method"] == found.method and record["recipe"]["lr"] == found.lr
    assert record["validation"] == max(row["validation"] for row in mine), "the seed with the best validation metric"
    assert record["test"] in {row["test"] for row in mine}
    predicted = run("predict", out / "winner", "--data", unlabelled)
    assert predicted.code == 0 and len(predicted.out.splitlines()) == 10
    page = (out / "report" / "report.html").read_text()
    head = rf"<h1>Take {re.escape(found.method)}</h1>\s*<p class=.why.>{re.escape(found.why)}</p>"
    assert re.search(head, page), "the page says to take what the terminal says"
    table = list(csv.DictReader((out / "report" / "comparison.csv").read_text().splitlines()))
    assert [row["method"] for row in table] == [line.method for line in found.comparison.lines]
    assert f"\nTake {found.method}: {found.why}\n" in said.out
    assert f"\nTake {found.method}: {found.why}\n" in run("report", out, "--out", tmp_path / "again").out


def test_what_each_method_answered_stands_beside_its_text(ask, run, reviews: Path, tmp_path: Path):
    assert run(*ask(reviews, tmp_path / "out", "--num-rates", 1)).code == 0
    store = Store.read(tmp_path / "out")
    written = {row["review"]: row["stars"] for row in csv.DictReader(reviews.read_text().splitlines())}
    listed = read(store).chosen
    for method in {run.method for run in listed}:
        one = predicted_examples(store, [run for run in listed if run.method == method])
        assert one and one.subject == "12 test examples" and len(one.predictions) == 12, "of the seed that was saved"
        assert [written[text] for text in one.inputs["text"]] == [one.labels[target] for target in one.targets]
        assert all(f"{reviews.name}, example " in name for name in one.names)
        chances = one.probabilities
        assert chances.argmax(axis=-1).tolist() == one.predictions and np.allclose(chances.sum(axis=-1), 1)


def test_the_recommended_method_is_trained_on_fewer_examples_too(
    ask, run, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """On the first of its own, tested on the same; they choose nothing, and the saved model is one of all examples."""
    monkeypatch.setattr(compare, "MIN_EXAMPLES", 5)
    words = ask(reviews, tmp_path / "out", "--methods", "head", "--num-rates", 1)
    assert run(*words, "--no-learning-curve").code == 0
    without = build(tmp_path / "out")
    said = run(*words)
    assert said.code == 0, said.err
    rows = Store.read(tmp_path / "out").runs()
    whole = {row["seed"]: row["examples"]["train"]["number"] for row in rows if row["k"] == "all"}
    fewer = {(row["seed"], row["examples"]["train"]["number"]) for row in rows if row["k"] != "all"}
    assert fewer == {(seed, n // part) for seed, n in whole.items() for part in (2, 4)}
    assert len({row["examples"]["test"]["fingerprint"] for row in rows}) == 1
    assert "Would more labels help? " in said.out and build(tmp_path / "out").why == without.why
    assert json.loads((tmp_path / "out" / "winner" / "run.json").read_text())["config"]["k"] == "all"


def test_folds_test_every_example_once_and_the_winner_trains_on_all(
    ask, run, reviews: Path, unlabelled: Path, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    """With baselines, which are shown first: the order, the out-of-fold answers, the model that is kept."""
    monkeypatch.setattr(compare, "MIN_EXAMPLES", 10)
    out = tmp_path / "out"
    words = [
        word
        for word in ask(reviews, out, "--methods", "head", "--num-rates", 1, "--folds", 3, "--seeds", 1)
        if word != "--no-baselines"
    ]
    said = run(*words)
    assert said.code == 0, said.err
    places = [said.err.index(f"\n{name}: out-of-fold accuracy") for name in USUAL]
    assert places == sorted(places) and places[-1] < said.err.index(" at once: head"), "before anything is tuned"
    store = Store.read(out)
    rows, listed = store.runs(["method", "seed", "test"]), read(store)
    curve = next(one for one in build(out).sections if one.heading == "Would more labels help?")
    sizes = next(table for table in curve.visible if isinstance(table, Table))
    assert sizes.columns[1] == "out-of-fold accuracy ×100" and "fold" in curve.sentence and "seed" not in curve.sentence
    trained = 40 if listed.chosen and build(out).recommendation.method in USUAL else 30
    assert sizes.blocks[0].rows[-1][0].value == trained, "baselines train on what validates others too"
    whole = [keys for keys in store.fleets().values() if keys[0].k == "all"]
    assert len({row["method"] for row in rows}) == len(whole) == 1 + len(USUAL)
    written = csv.DictReader(reviews.read_text().splitlines())
    texts = sorted(row["review"] for row in written)
    for method in {run.method for run in listed.chosen}:
        one = predicted_examples(store, [run for run in listed.chosen if run.method == method], listed.folds)
        assert one and one.subject == "60 out-of-fold answers" and sorted(one.inputs["text"]) == texts, method
    found = build(out).recommendation
    record = json.loads((out / "winner" / "run.json").read_text())
    assert (
        found
        and record["config"]["method"] == found.method
        and record["config"]["folds"] == 1
        and record["test"] is None
    )
    assert record["examples"]["train"]["number"] + record["examples"]["validation"]["number"] == 60
    assert run("predict", out / "winner", "--data", unlabelled).code == 0
    assert run(*words).out == said.out, "asked again"
    shown = run("inspect", out / "winner")
    assert shown.code == 0 and f"{found.method} on " in shown.out and "None" not in shown.out
    assert "holds a study with folds=3, this command has folds=0" in run(*replaced(words, ("--folds", 0))).line


def test_asked_again_nothing_is_trained(ask, run, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = run(*ask(reviews, tmp_path / "out"))
    with monkeypatch.context() as patch:
        patch.setattr(engine, "train_fleet", lambda *_, **how: pytest.fail("trained again"))
        assert run(*ask(reviews, tmp_path / "out")).out == first.out
    moved = tmp_path / "reviews.csv"
    moved.write_text(reviews.read_text())
    assert run(*ask(moved, tmp_path / "moved", "--methods", "head")).code == 0
    moved.write_text(reviews.read_text().replace("word1 ", "word2 "))
    line = run(*ask(moved, tmp_path / "moved", "--methods", "head")).line
    assert f"its runs of {moved} were trained on other examples: 60 training and no test examples" in line
    line = run(*ask(reviews, tmp_path / "moved", "--methods", "head", "--text", "review")).line
    assert f"holds a study with data={moved}, this command has data={reviews}" in line, "before what else is another"
    held_out = write_reviews(tmp_path / "test.csv", 20, seed=1)
    tested = ask(reviews, tmp_path / "tested", "--methods", "head", "--test", held_out)
    assert run(*tested).code == 0
    held_out.write_text(held_out.read_text().replace("word1 ", "word2 "))
    assert (
        f"its runs of {reviews} were trained on other examples: 60 training and 20 test examples"
        in run(*replaced(tested, ("--seeds", 3))).line
    )


def test_the_minutes_are_kept_and_more_go_on(ask, run, reviews: Path, tmp_path: Path):
    words = ask(reviews, tmp_path / "out", "--epochs", 40000, "--evaluate-every", 50, "--patience", 0)
    line = run(*words, "--minutes", 0.1).line
    said = r"unipelt: --minutes 0.1: too short for one run, which takes (.+) minutes at most by its steps so far; run the same command with more minutes to continue"  # fmt: skip
    assert float(re.fullmatch(said, line)[1]) > 0.1
    assert next((tmp_path / "out" / "fleets").glob("*/training.safetensors")), "what was begun is kept"


def finished_run(seed: int, validation: float, metric: str) -> FinishedRun:
    config = RunConfig(task="docstrings", method="head", seed=seed, recipe={"lr": 1e-3})
    record = RunRecord(
        config=config, status="finished", metric=metric, validation=validation, recipe=asdict(Recipe()),
        validation_metrics={"epoch": 1, metric: validation},
    )  # fmt: skip
    return FinishedRun(record)


@pytest.mark.parametrize(("metric", "best"), [("accuracy", max), ("rmse", min)])
def test_many_savers_keep_the_best_seed_whole(metric: str, best, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whoever comes first: the checkpoint is that of the record, and of the best."""

    def save(run: FinishedRun, folder: Path) -> None:
        for name in ("one", "two"):
            (folder / name).write_text(str(run.record.validation))
            time.sleep(0.01)

    monkeypatch.setattr(compare, "save_checkpoint", save)
    values = [0.5, 0.4, 0.9, 0.8, 0.95, 0.1, 0.7, 0.6]
    savers = [compare.CheckpointSaver(tmp_path) for _ in values]
    with ThreadPoolExecutor(len(values)) as pool:
        list(pool.map(lambda saver, seed: saver(finished_run(seed, values[seed], metric)), savers, range(len(values))))
    folder = savers[0].folder_of("head", 1e-3)
    held = read_record(folder)
    assert held is not None and held.validation == best(values) and folder.name == "head-0.001"
    assert {(folder / name).read_text() for name in ("one", "two")} == {str(best(values))}


def test_a_rerun_changes_only_what_it_wrote(ask, run, reviews: Path, unlabelled: Path, tmp_path: Path):
    """Files of others stay, in the winner and in the report, and are named; what was edited is not overwritten."""
    out = tmp_path / "out"
    words = ask(reviews, out, "--methods", "head", "--num-rates", 1)
    assert run(*words).code == 0
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (out / "winner").iterdir()}
    assert run(*words).code == 0
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in (out / "winner").iterdir()} == before, "the same"
    notes = {
        "winner/notes.txt": "mine",
        "winner/export/model.txt": "mine",
        "report/notes.txt": "mine",
        "winner/README.md": "mine",
    }
    copied = out / "winner" / "before.safetensors"  # by hand, for another winner
    copied.write_bytes((out / "winner" / "unipelt.safetensors").read_bytes())
    for name, text in notes.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(text)
    said = run(*ask(reviews, out, "--methods", "head", "--num-rates", 1, "--seeds", 3))
    assert said.code == 0 and all((out / name).read_text() == text for name, text in notes.items())
    assert f"{out / 'winner'} also holds before.safetensors, export, notes.txt, which stays" in said.out.replace(
        "\n", " "
    )
    assert f"{out / 'winner' / 'README.md'}: was changed by hand and stays so" in said.out.replace("\n", " ")
    more = ask(reviews, out, "--methods", "head", "full", "--num-rates", 1, "--seeds", 3)
    store = Store.read(out)
    assert run(*more).code == 0
    take = build(out).recommendation.method
    saver = compare.CheckpointSaver(out)
    other = "full" if take == "head" else "head"
    rate = next(row["lr"] for row in store.runs() if row["method"] == other)
    saver.copy(other, rate, out / "winner")  # as if it had won
    assert copied.exists(), "a copy under another name is not this command's"
    left = {path.name for path in (out / "winner").iterdir()}
    assert ("model.safetensors" in left) == (other == "full") != ("unipelt.safetensors" in left), (
        "no file of two models"
    )
    assert all((out / name).read_text() == text for name, text in notes.items())
    weights = next(path for path in (out / "winner").glob("*.safetensors") if path != copied)
    weights.write_bytes(b"mine")
    with pytest.raises(
        CheckpointError, match=rf"{weights.name}: has changed since this command wrote it, so it is not replaced"
    ):
        saver.copy(other, rate, out / "winner")
    assert weights.read_bytes() == b"mine"


def test_a_winner_that_cannot_be_copied_leaves_the_one_before(ask, run, reviews: Path, tmp_path: Path, monkeypatch):
    """A full disk, and a kill between two files: the same command repairs it."""
    words = ask(reviews, tmp_path / "out", "--methods", "head", "--num-rates", 1)
    assert run(*words).code == 0
    winner = tmp_path / "out" / "winner"
    before = {path.name: path.read_bytes() for path in winner.iterdir()}
    (source,) = (path for path in (tmp_path / "out" / "runs").iterdir() if path.is_dir())
    record = json.loads((source / "run.json").read_text())
    (source / "run.json").write_text(json.dumps(record | {"seconds": 1.0}))
    (source / "README.md").write_text("another card")

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(disk.os, "fsync", full)
        assert "cannot write (No space left on device)" in run(*words).line
    assert {path.name: path.read_bytes() for path in winner.iterdir()} == before
    replace_, calls = os.replace, []

    def killed(a, b):
        calls.append(b)
        if str(b).endswith("winner/run.json"):
            raise KeyboardInterrupt
        replace_(a, b)

    with monkeypatch.context() as patch:
        patch.setattr(disk.os, "replace", killed)
        assert run(*words).code == 130
    assert run(*words).code == 0
    assert {path.name: path.read_bytes() for path in winner.iterdir()} == {
        path.name: path.read_bytes() for path in source.iterdir()
    }
    assert [path.name for path in (tmp_path / "out").glob("*winner*")] == ["winner"]
    assert not list((tmp_path / "out").glob(".winner*"))


def test_groups_stay_whole(ask, run, tmp_path: Path):
    path = write_reviews(tmp_path / "grouped.csv", 120)
    lines = path.read_text().splitlines()
    path.write_text(
        "\n".join(f"{line},{'author' if not index else index**2 % 31}" for index, line in enumerate(lines)) + "\n"
    )
    said = run(*ask(path, tmp_path / "out", "--methods", "head", "--group", "author", "--stratify"))
    assert said.code == 0 and said.err.count("are kept for validation") == 1, "as the first seed draws them"
    assert (
        "has no column 'autor' (--group-column); did you mean 'author'?"
        in run(*ask(path, tmp_path / "x", "--group", "autor")).line
    )


def test_given_splits_are_taken_as_they_are(ask, run, reviews: Path, tmp_path: Path):
    validation, test = (
        write_reviews(tmp_path / f"{name}.csv", 20, seed=seed) for seed, name in enumerate(("validation", "test"), 1)
    )
    words = ask(reviews, tmp_path / "out", "--methods", "head", "--validation", validation, "--test", test)
    assert run(*words).code == 0
    (row, *_) = Store.read(tmp_path / "out").runs()
    assert {name: part["number"] for name, part in row["examples"].items()} == {
        "train": 60,
        "validation": 20,
        "test": 20,
    }
    validation.write_text(validation.read_text().replace("word1 ", "word2 "))
    validation.write_text("".join(validation.read_text().splitlines(keepends=True)[:-1]))
    line = run(*replaced(words, ("--seeds", 3))).line
    assert (
        "were trained on other examples: 60 training, 20 validation and 20 test examples" in line
        and "; got 60 training, 19 validation" in line
    )
    assert "does not exist" in run(*ask(reviews, tmp_path / "x", "--validation", tmp_path / "gone.csv")).line


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--methods", "lroa"], "method 'lroa': did you mean 'lora'"),
        (["--k", "4000"], "--train-rows 4000: reviews has 48 training examples"),
        (["--k", "9" * 5000], ": expected a whole number from 1, or all"),
        (["--k", "few"], "--train-rows few: expected a whole number from 1, or all"),
        (["--label", "star"], "has no column 'star' (--label-column); did you mean 'stars'?"),
        (["--lr", "-1"], "--lr -1.0"),
        (["--minutes", "-1"], "--minutes"),
        (["--seeds", "0"], "--seeds"),
        (["--model", "./nowhere"], "--model ./nowhere: no such base"),
        (["--device", "tpu9"], "--device tpu9: not on this machine"),
        (["--methods", "prompt(length=0)"], "prompt(length=0)"),
        (["--folds", "1"], "--folds 1: expected 2 to 20, or 0 for a held-out test set"),
        (["--folds", "5", "--k", "20"], "--folds 5: takes every example, and --train-rows 20 was given; leave one out"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_trained(more, expected: str, ask, run, reviews: Path, tmp_path: Path):
    assert expected in run(*ask(reviews, tmp_path / "out", *more)).line
    assert not (tmp_path / "out" / "runs").exists()
