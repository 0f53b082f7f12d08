"""What a comparison plans: its folds, its runs on fewer examples, what a trial tells of them, and where checkpoints are."""

import shutil
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from train.fleets import plan

from unipelt.errors import DataError
from unipelt.study import compare, trials
from unipelt.study.compare import FEW, FOLDS, CheckpointSaver, learning_curve_keys, refit, usual_folds
from unipelt.study.plan import StudyConfig
from unipelt.train.recipes import Recipe
from unipelt.train.records import RunConfig, RunKey, RunRecord
from unipelt.train.run_folder import locked_folder, read_record
from unipelt.train.runs import FinishedRun

STUDY, FIRST = StudyConfig(), RunKey(task="a.csv", k="all", method="lora", seed=0, lr=1e-3)


class Data:
    """Stands in for the data of a study: its number of training examples, by run, and what it cannot be split into."""

    def __init__(self, train: int = 100, refused: tuple = (), generates_text: bool = False, **sets: Any):
        self.train, self.refused, self.generates_text = train, refused, generates_text
        self.sets = {"test": None, "validation": None} | sets

    def task(self, config: RunConfig) -> Any:
        return SimpleNamespace(generates_text=self.generates_text)

    def dataset(self, config: RunConfig) -> Any:
        return SimpleNamespace(train=range(self.train), **self.sets)

    def splits(self, config: RunConfig) -> Any:
        if config.k in self.refused or config.folds in self.refused:
            raise DataError("too few examples of 'a'")
        return SimpleNamespace(train=range(self.train + config.seed if config.k == "all" else int(config.k)))


def test_few_examples_without_sets_of_their_own_are_cross_validated():
    assert usual_folds(STUDY, FIRST, Data(FEW)) == (FOLDS, "")
    others = [Data(FEW + 1), Data(test=range(9)), Data(validation=range(9)), Data(generates_text=True)]
    assert [usual_folds(STUDY, FIRST, data) for data in others] == [(0, "")] * 4
    assert usual_folds(STUDY, replace(FIRST, k=50), Data()) == (0, "")
    assert usual_folds(STUDY, FIRST, Data(refused=(FOLDS,))) == (0, "no cross-validation: too few examples of 'a'")


def test_a_learning_curve_has_a_quarter_and_a_half_of_the_smallest_fold():
    keys = [replace(FIRST, seed=seed) for seed in range(4)]

    def sizes(data: Data) -> list[list[Any]]:
        found = learning_curve_keys(keys, STUDY, data)
        assert {replace(key, k="all") for key in found} <= {*keys}
        return [[key.k for key in found if key.seed == seed] for seed in range(4)]

    assert sizes(Data(99)) == [[24, 49]] * 4, "whose folds have 99 to 102"
    assert sizes(Data(79)) == [[39]] * 4, "19 examples are too few"
    assert sizes(Data(80)) == [[20, 40]] * 4 and sizes(Data(39)) == [[]] * 4
    assert sizes(Data(99, refused=(24,))) == [[49]] * 4, "which has no example of a class"


def test_the_winner_is_trained_on_all_but_its_validation_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(compare, "train_run", lambda config, folder, **how: calls.append((config, folder, how)))
    study = replace(STUDY, folds=5)
    refit(study, "lora", 1e-3, "a.csv", tmp_path, device="cpu")
    ((config, folder, how),) = calls
    assert (config.folds, config.k, config.seed, config.recipe["lr"]) == (1, "all", 0, 1e-3)
    assert folder == tmp_path and how == {"wait": True, "device": "cpu"}


def test_every_method_and_rate_has_a_folder_of_its_own(tmp_path: Path):
    saver = CheckpointSaver(tmp_path)
    runs = [("lora", 1e-3), ("lora", 1e-3 + 1e-10), ("lora", None), ("lora(r=2)", 1e-3), ("lora(r=2, )", 1e-3)]
    assert len({saver.folder_of(*run) for run in runs}) == len(runs)
    assert (
        saver.folder_of("lora", 1e-3)
        == CheckpointSaver(tmp_path).folder_of("lora", 1e-3)
        == tmp_path / "runs/lora-0.001"
    )


def test_a_checkpoint_of_another_recipe_or_without_a_metric_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compare, "save_checkpoint", lambda run, folder: None)
    saver, metric = CheckpointSaver(tmp_path), {"epoch": 1, "accuracy": 0.0}

    def held_after(validation: float | None, seed: int, **recipe: Any) -> tuple[float | None, int]:
        config = RunConfig(task="a.csv", method="head", seed=seed, recipe={"lr": 1e-3})
        record = RunRecord(
            config=config, status="finished", metric="accuracy", validation=validation, recipe=asdict(Recipe(**recipe)),
            validation_metrics=metric,
        )  # fmt: skip
        saver(FinishedRun(record))
        held = read_record(saver.folder_of("head", 1e-3))
        assert held is not None
        return held.validation, held.key.seed

    assert held_after(None, 0) == (None, 0)
    assert held_after(0.5, 1) == (0.5, 1)
    assert held_after(0.4, 2) == (0.5, 1) and held_after(None, 3) == (0.5, 1)
    assert held_after(0.4, 4, epochs=7) == (0.4, 4), "of other epochs"


def test_a_trial_counts_all_runs_and_no_warm_up(monkeypatch: pytest.MonkeyPatch):
    """Six runs, two at once: three times the median of the later steps, and of the time of each example."""
    seconds = iter([90.0, 1.0, 2.0, 6.0, 8.0])
    monkeypatch.setattr(trials, "_seconds", lambda action: next(seconds))

    class Validation(list):
        def take(self, indices: range) -> Any:
            return Encoded(len(indices))

    class Encoded(int):
        def __len__(self) -> int:
            return int(self)

    recipe = SimpleNamespace(epochs=10, evaluate_every=2)
    timed = SimpleNamespace(validation=Validation(range(128)), recipe=recipe, ends=[7], test=range(5))
    monkeypatch.setattr(trials, "replace", lambda encoded, targets: encoded)
    monkeypatch.setattr(trials, "build_fleet", lambda configs, **how: SimpleNamespace(plans=[timed] * len(configs)))
    keys = [replace(FIRST, seed=seed) for seed in range(6)]
    timing = trials._timed(keys, 2, STUDY, Data(), torch.device("cpu"))
    assert (timing.step, timing.example) == (3 * 2.0, 3 * 8.0 / 64)
    assert (timing.steps, timing.epochs, timing.every, timing.validation, timing.test) == (7, 10, 2, 128, 5)


def test_a_trial_has_the_longest_example_as_often_as_a_batch_may():
    for train, recipe in (
        (20, {"batch_size": 8}),
        (5, {"batch_size": 8}),
        (20, {"batch_tokens": 40}),
        (20, {"batch_tokens": 2}),
    ):
        given = plan(train=train, **recipe)
        longest = max(given.train.lengths())
        size = max(1, recipe["batch_tokens"] // longest) if "batch_tokens" in recipe else min(8, train)
        assert trials._longest(given).train.lengths() == [longest] * size


def test_a_checkpoint_is_copied_whole_while_another_process_saves_a_better_one(tmp_path: Path):
    saver, begun = CheckpointSaver(tmp_path), threading.Event()
    source, target = saver.folder_of("lora", 1e-3), tmp_path / "winner"
    source.mkdir(parents=True)

    def save(value: str) -> None:
        with locked_folder(source, wait=True):
            (source / "one").write_text(value)
            begun.set()
            time.sleep(0.1)
            (source / "two").write_text(value)

    save("old")
    begun.clear()
    other = threading.Thread(target=save, args=["better"])
    other.start()
    begun.wait()
    saver.copy("lora", 1e-3, target)
    other.join()
    assert {path.name: path.read_text() for path in target.iterdir()} == {"one": "better", "two": "better"}
    shutil.rmtree(source)
    with pytest.raises(FileNotFoundError):
        saver.copy("lora", 1e-3, target)
    assert len([*target.iterdir()]) == 2, "nothing is removed where there is nothing to copy"
