"""What a report says of the recommended method, computed from a few answers whose numbers are known."""

import math
from pathlib import Path

import numpy as np
import pytest

from report.studies import write
from unipelt.report.breakdown import class_table, error_table, span_table, worst_class
from unipelt.report.cautions import cautions
from unipelt.report.confidence import confidence_section
from unipelt.report.evidence import PredictedExamples, predicted_examples, to_probabilities
from unipelt.report.learning import learning_curve
from unipelt.report.study import Run
from unipelt.report.tables import Table
from unipelt.study.store import Store
from unipelt.train.records import RunRecord


def runs(records: list[RunRecord], k: int | str = "all") -> list[Run]:
    return [
        Run(task="a.csv", k=k, method="lora", seed=seed, lr=1e-3, record=record) for seed, record in enumerate(records)
    ]


def stored(folder: Path, *groups: list[Run]) -> Store:
    return Store.read(write(folder, {run.key: run.record for group in groups for run in group}))


def answered(metric: str, validation: float, predictions: list[float], test: float = 0.5) -> RunRecord:
    return RunRecord(
        status="finished", metric=metric, validation=validation, test=test, predictions=predictions, targets=[0.0] * len(predictions)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "validation", "seed"),
    [("accuracy", [0.5, 0.9, 0.7], 1), ("mae", [0.5, 0.9, 0.7], 0), ("accuracy", [0.9, 0.9, 0.7], 1)],
)
def test_the_answers_are_those_of_the_model_that_was_saved(
    metric: str, validation: list[float], seed: int, tmp_path: Path
):
    """The best by validation, the last of equal ones."""
    made = runs([answered(metric, value, [float(number)] * 3) for number, value in enumerate(validation)])
    found = predicted_examples(stored(tmp_path / "study", made), made)
    assert found is not None and found.predictions == [float(seed)] * 3 and found.subject == "3 test examples"


def test_of_a_repeated_cross_validation_each_example_is_shown_once(tmp_path: Path):
    made = runs([answered("mae", 0.5, [float(seed)] * 2) for seed in range(4)])
    found = predicted_examples(stored(tmp_path / "study", made), made, folds=2)
    assert found is not None and found.predictions == [0.0, 0.0, 1.0, 1.0]


def test_probabilities_are_those_of_the_calibrated_model():
    logits = [[0.0, 2 * math.log(3)]]
    assert to_probabilities(logits, False, 2.0).tolist() == [pytest.approx([0.25, 0.75])]
    assert to_probabilities(logits, True, 2.0).tolist() == [pytest.approx([0.5, 0.75])]


def predicted(predictions: list, targets: list, probabilities: list[list[float]]) -> PredictedExamples:
    return PredictedExamples(
        method="lora", subject="answers", labels=("a", "b"), predictions=predictions, targets=targets, inputs={},
        probabilities=np.array(probabilities), names=[],
    )  # fmt: skip


def test_what_a_threshold_leaves_is_said_and_counted():
    chances = [[0.9, 0.1], [0.2, 0.8], [0.15, 0.85], [0.6, 0.4], [0.55, 0.45]]
    examples = predicted([0, 1, 1, 0, 0], [0, 1, 0, 1, 1], chances)
    section = confidence_section(examples, np.array(chances))
    assert "With --min-confidence 0.8, 60 % of the examples get an answer, and 67 % of these answers are right." in section.sentence  # fmt: skip
    (table,) = (one for one in section.visible if isinstance(one, Table))
    row = next(row for row in table.blocks[0].rows if row[0].value == 0.8)
    assert [cell.value for cell in row[1:]] == pytest.approx([60, 200 / 3, 3, 2, 1])


def test_of_several_labels_the_probability_of_each_is_judged_by_its_target():
    chances = [[0.95, 0.05], [0.95, 0.05]]
    examples = predicted([[1, 0], [1, 0]], [[0, 1], [0, 1]], chances)
    assert (
        "The probability of a label is off by 95.0 points" in confidence_section(examples, np.array(chances)).sentence
    )


def test_more_examples_that_lower_an_error_are_a_gain(tmp_path: Path):
    """In the metric's own direction: the change is negative. Whether it is beyond chance is said."""

    def size(k: int | str, error: float, luck: float = 0.01) -> list[Run]:
        made = [[error + luck * seed + 0.1 * (i % 3) for i in range(90)] for seed in range(3)]
        return runs([answered("mae", error, of, float(np.mean(of))) for of in made], k)

    few, many, lucky = size(100, 2.0), size(200, 1.0), size(200, 1.9, luck=0.1)
    for sizes, change, said in (
        ((few, many), -1, "Probably yes: "), ((many, few), 1, "No sign of it: "), ((few, lucky), -0.01, "Perhaps: ")
    ):  # fmt: skip
        section = learning_curve(stored(tmp_path / said[:2], *sizes), dict(zip((100, 200), sizes)), folds=False)
        assert section is not None and section.sentence.startswith(said)
        (table,) = (one for one in section.visible if isinstance(one, Table))
        assert table.blocks[0].rows[1][2].value == pytest.approx(change)


@pytest.mark.parametrize(
    ("metric", "values", "said"),
    [
        ("accuracy", [0.5, 0.6, 0.7], True), ("accuracy", [0.5, 0.7, 0.7], False), ("accuracy", [0.7, 0.6, 0.5], False),
        ("rmse", [0.7, 0.6, 0.5], True), ("rmse", [0.5, 0.6, 0.7], False),
    ],
)  # fmt: skip
def test_a_run_that_was_best_at_its_end_may_want_more_epochs(metric: str, values: list[float], said: bool):
    curve = [{"epoch": float(epoch), metric: value} for epoch, value in enumerate(values, start=1)]
    record = RunRecord(status="finished", metric=metric, curve=curve)
    assert len(cautions(None, runs([record] * 2))) == said
    assert not cautions(None, runs([RunRecord(status="stopped early", metric=metric, curve=curve)]))


def test_five_times_as_many_examples_are_unequal_and_few_of_a_fold_matter_where_it_chose():
    def said(**changed) -> str:
        summary = {
            "classes": {"train": {"0": 50, "1": 11}}, "examples": {"train": 61, "validation": 100, "test": 9},
            "contradictory": 0, "repeated": {}, "shared": {},
        }  # fmt: skip
        curve = changed.pop("curve", [])
        record = RunRecord(status="stopped early", metric="accuracy", labels=["a", "b"], curve=curve)
        return " ".join(cautions(summary | changed, runs([record]), changed.pop("folds", 0)))

    assert said() == ""
    assert "50 of the 61 training examples are 'a' and 10 are 'b'" in said(classes={"train": {"0": 50, "1": 10}})
    few = {"train": 61, "validation": 99, "test": 9}
    assert "Only 99 validation examples choose the epoch" in said(examples=few)
    assert said(examples=few, folds=2) == "", "a baseline chose nothing by them"
    assert "of each fold choose the epoch" in said(examples=few, folds=2, curve=[{"epoch": 1.0, "accuracy": 0.5}])


def test_errors_of_each_fifth_of_the_labels():
    targets = np.random.default_rng(0).permutation(100).astype(float)
    table = error_table(targets, targets + targets // 20)  # 0 in the lowest fifth, 4 in the highest
    whole, *fifths = table.blocks[0].rows
    assert [[cell.value for cell in row[1:]] for row in fifths] == [[20, n, n, n, n] for n in range(5)]
    assert [cell.value for cell in whole[1:]] == [100, 2, 2, 4, 2] and fifths[0][0].text == "0 to 19"
    (few,) = error_table(np.zeros(11), np.arange(11.0)).blocks[0].rows
    assert [cell.value for cell in few[1:]] == [11, 5, 5, 9, 5], "half are within 5, nine in ten within 9"


def test_classes_are_counted_with_several_labels_too_and_the_worst_is_named():
    targets, said = np.array([[1, 0], [1, 1], [1, 0], [0, 1]]), np.array([[1, 1], [1, 0], [0, 1], [0, 1]])
    table = class_table(targets, said, ["a", "b"])
    numbers = {row[0].text: [cell.value for cell in row[1:]] for row in table.blocks[0].rows}
    assert numbers["a"] == pytest.approx([100, 200 / 3, 80, 3, 2, 2])
    assert numbers["b"] == pytest.approx([100 / 3, 50, 40, 2, 3, 1])
    assert worst_class(table) == "'a' is recognised best (F1 80), 'b' worst (F1 40)."


def test_spans_of_other_schemes_are_counted_too():
    tags, said = [["U-A", "B-A", "L-A", "U-B"]], [["U-A", "B-A", "L-A", "O"]]
    numbers = {row[0].text: [cell.value for cell in row[1:]] for row in span_table(tags, said).blocks[0].rows}
    assert numbers == {"A": [100, 100, 100, 2, 2, 2], "B": [None, 0, 0, 1, 0, 0]}
