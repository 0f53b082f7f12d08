"""The evidence of a comparison on one's own file: exact counts, honest probabilities, and one set of words everywhere."""

import csv
import html
import io
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from report.own_file import EVIL, LABELS, TAGS, TEST, TRAIN, drawn, own_file, saved
from unipelt.report.build import Report, build
from unipelt.report.cautions import cautions
from unipelt.report.confidence import expected_calibration_error, reliability
from unipelt.report.mistakes import LETTERS, label_looks_wrong
from unipelt.report.study import Run
from unipelt.report.terminal import show
from unipelt.study.store import Store
from unipelt.tasks.metrics import METRICS
from unipelt.train.records import RunRecord

KINDS = ["classification", "multi-label", "regression", *TAGS, "texts", "losses"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Report]:
    return {kind: build(own_file(tmp_path_factory.mktemp(kind) / "out", kind)) for kind in KINDS}


def rows(made: Report, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(made.files[f"{name}.csv"].decode())))


def terminal(made: Report) -> str:
    console = Console(file=io.StringIO(), width=1000)
    show(made, console)
    return console.file.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_terminal_page_and_markdown_say_the_same(kind: str, made: dict[str, Report]):
    one = made[kind]
    page, text, markdown = (
        html.unescape(one.files["report.html"].decode()),
        terminal(one),
        one.files["report.md"].decode(),
    )
    assert one.recommendation.method == "lora"
    said = [section.sentence for section in one.sections if section.sentence]
    assert len(said) >= 2 and {"Examples to look at", "Would more labels help?"} <= {s.heading for s in one.sections}
    for sentence in (*said, *one.cautions):
        assert sentence in page and sentence in text and sentence in markdown
    assert "-0.0" not in text and "nan" not in text.split()


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_of_a_user_reaches_the_page_as_markup(kind: str, made: dict[str, Report]):
    page = made[kind].files["report.html"].decode()
    assert (
        "<img" not in page
        and "alert(1)</script>" not in page
        and " 49 " not in page
        and EVIL not in html.unescape(page)
    )
    if kind not in TAGS:
        assert "&lt;img src=x onerror=alert(" in page, "it is shown as text"
    assert max(len(row["text"]) for row in rows(made[kind], "mistakes")) <= LETTERS


def test_counts_of_classes_are_exact(made: dict[str, Report]):
    one = made["classification"]
    targets, said, *_ = (np.array(x) for x in drawn("classification", TEST, saved("classification"))[:2])
    for label, row in enumerate(rows(one, "classes")):
        both = int(((targets == label) & (said == label)).sum())
        counts = [float(row[name]) for name in ("examples", "predicted", "right")]
        assert counts == [(targets == label).sum(), (said == label).sum(), both] and row["class"] == LABELS[label]
        assert float(row["precision ×100"]) == pytest.approx(100 * both / counts[1])
        assert float(row["recall ×100"]) == pytest.approx(100 * both / counts[0])
        cells = [float(rows(one, "confusion")[label][name]) for name in LABELS]
        assert cells == [((targets == label) & (said == other)).sum() for other in range(4)]
    assert len(rows(one, "mistakes")) == (targets != said).sum(), "the file lists every mistake, the page the first"


def test_thresholds_count_what_predict_would_answer(made: dict[str, Report]):
    """With the model's temperature, 2: probabilities are softmax(logits / 2)."""
    targets, said, logits, _ = drawn("classification", TEST, saved("classification"))
    powers = np.exp(np.array(logits) / 2)
    sure = (powers / powers.sum(axis=1, keepdims=True)).max(axis=1)
    for row in rows(made["classification"], "thresholds"):
        kept = sure >= float(row["--min-confidence"])
        right = (np.array(targets) == said) & kept
        assert [float(row[n]) for n in ("answered", "right", "wrong")] == [
            kept.sum(),
            right.sum(),
            kept.sum() - right.sum(),
        ]


def test_the_calibration_error_is_that_of_the_probabilities():
    """0 where answers of probability p are right p of the time, and the gap where they are not."""
    sure = np.repeat([0.55, 0.65, 0.95], 100)
    right = np.concatenate([np.arange(100) < n for n in (55, 65, 95)])
    assert expected_calibration_error(sure, right) == pytest.approx(0, abs=1e-12)
    assert expected_calibration_error(np.minimum(sure + 0.2, 1.0), right) == pytest.approx((0.2 + 0.2 + 0.05) / 3)
    number, *_ = reliability(np.array([0.0, 1.0, 0.999]), np.array([False, True, True]))
    assert number.tolist() == [1, 2]


def test_labels_that_were_exchanged_look_wrong():
    generator = np.random.default_rng(0)
    targets = generator.integers(0, 3, 400)
    logits = 6 * np.eye(3)[targets] + generator.normal(size=(400, 3))
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    flipped = targets.copy()
    flipped[:20] = (flipped[:20] + 1) % 3
    found = np.flatnonzero(label_looks_wrong(chances, flipped))
    assert len({*found} & {*range(20)}) >= 17 and len({*found} - {*range(20)}) <= 8
    assert label_looks_wrong(chances, targets).mean() < 0.02


def test_errors_are_in_the_unit_of_the_labels(made: dict[str, Report]):
    one = made["regression"]
    targets, said, *_ = (np.array(x) for x in drawn("regression", TEST, saved("regression"))[:2])
    whole, *fifths = rows(one, "errors")
    assert float(whole["mean absolute error"]) == pytest.approx(np.abs(said - targets).mean())
    assert sum(float(row["examples"]) for row in fifths) == TEST
    assert float(fifths[0]["mean error"]) > 0 > float(fifths[-1]["mean error"]), "drawn to the middle"
    assert "residuals.svg" in one.files and "confidence.svg" not in one.files


def test_times_are_those_of_a_run_and_of_one_of_its_test_examples(made: dict[str, Report]):
    for row in rows(made["classification"], "comparison"):
        assert float(row["training time, s"]) == 12 and float(row["prediction time, ms an example"]) == 900 / TEST


def test_the_worst_texts_stand_first(made: dict[str, Report]):
    scores = [float(row["exact match"]) for row in rows(made["texts"], "mistakes")]
    assert (
        scores == sorted(scores)
        and {*scores} == {0, 100}
        and "<b>answer" not in made["texts"].files["report.html"].decode()
    )
    losses = rows(made["losses"], "mistakes")
    counts, sums, *_ = drawn("losses", TEST, 0)
    assert float(losses[0]["loss a token"]) == pytest.approx(max(one / n for one, n in zip(sums, counts)))


def test_spans_are_counted_as_the_metric_counts_them(made: dict[str, Report]):
    from seqeval.metrics import f1_score

    found = rows(made["tags"], "classes")
    right, predicted, actual = (sum(float(row[name]) for row in found) for name in ("right", "predicted", "spans"))
    targets, said, *_ = drawn("tags", TEST, saved("tags"))
    assert 2 * right / (predicted + actual) == pytest.approx(f1_score(targets, said))


def test_tags_without_a_prefix_are_counted_word_by_word(made: dict[str, Report]):
    found = {row["tag"]: row for row in rows(made["parts of speech"], "classes")}
    targets, said, *_ = drawn("parts of speech", TEST, saved("parts of speech"))
    for index, key in enumerate(("words", "predicted")):
        counts = Counter(tag for tags in (targets, said)[index] for tag in tags)
        assert counts == {tag: int(float(row[key])) for tag, row in found.items()}
    score = sum(float(row["right"]) for row in found.values()) / (5 * TEST)
    assert score == pytest.approx(METRICS["tag_accuracy"](said, targets)) and 0 < score < 1


def test_more_labels_are_judged_on_the_same_examples_and_seeds(made: dict[str, Report], tmp_path: Path):
    (section,) = [one for one in made["classification"].sections if one.heading == "Would more labels help?"]
    found = rows(made["classification"], "learning-curve")
    assert [float(row["training examples"]) for row in found] == [250, 500, TRAIN]
    assert re.match(
        r"(Probably yes|Perhaps): from 500 to 1,000 training examples, the accuracy of lora changes by \+",
        section.sentence,
    )
    alone = build(own_file(tmp_path / "one", seeds=1))
    (section,) = [one for one in alone.sections if one.heading == "Would more labels help?"]
    assert section.sentence.startswith("Not judged: ") and "one seed" in section.sentence
    none = build(own_file(tmp_path / "none", fewer=()))
    assert "learning-curve.csv" not in none.files
    sizes = {row["k"] for row in csv.DictReader(io.StringIO(none.files["runs.csv"].decode()))}
    assert sizes == {"all"} == {row["k"] for row in rows(made["classification"], "runs")}, (
        "smaller sets choose no method"
    )


def test_cautions_are_said_where_they_hold_and_nowhere_else(made: dict[str, Report], tmp_path: Path):
    said = " ".join(made["classification"].cautions)
    for words in ("Classes are unequal: ", "17 of 1,000 training and 3 of 300 test texts are longer", "Examples that repeat an earlier text: 19 training, 5 validation and 5 test", "best at the last epoch (3) in 2 of 2 seeds"):  # fmt: skip
        assert words in said
    assert "Only" not in said
    store = Store.read(own_file(tmp_path / "out"))
    clean = store.noted("examples") | {"repeated": {}, "shared": {}, "contradictory": 0}
    clean["classes"] = {"train": {"0": 100, "1": 90}}
    store.close()
    record = RunRecord(labels=["a", "b"], truncated={"train": 0})
    runs = [Run(task="reviews.csv", k="all", method="lora", seed=0, lr=1e-3, record=record)]
    assert cautions(clean, runs) == []
    few = clean | {"examples": {"train": 90, "validation": 10, "test": 20}}
    assert "Only 10 validation examples" in " ".join(cautions(few, runs))
    clean["contradictory"], clean["shared"] = 1, {"test": 2}
    assert ["1 text has different labels" in one or "2 test" in one for one in cautions(clean, runs)] == [True, True]


def test_many_classes_list_the_most_frequent_confusions(tmp_path: Path):
    made = build(own_file(tmp_path / "out", labels=[*LABELS, *(f"class {i}" for i in range(9))]))
    found = rows(made, "confusion")
    assert list(found[0]) == ["block", "label", "prediction", "examples"]
    counts = [float(row["examples"]) for row in found]
    assert counts == sorted(counts, reverse=True) and all(row["label"] != row["prediction"] for row in found)
