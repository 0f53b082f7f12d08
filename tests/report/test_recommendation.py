"""The recommendation for one's own file: chosen by validation, judged by test examples, the same on terminal and page."""

import csv
import io
import math
import re
from pathlib import Path

import pytest
from rich.console import Console

from report.studies import write
from unipelt.errors import UserError
from unipelt.report.build import Report, build
from unipelt.report.comparison import headline
from unipelt.report.names import in_folds
from unipelt.report.samples import Seeds
from unipelt.report.terminal import show
from unipelt.train.records import RunKey, RunRecord

SIZES = {"a": 1, "b": 20, "small": 10, "big": 1000, "huge": 100_000, "constant": 0}
RATES = {method: 1e-3 * number for number, method in enumerate(SIZES, start=1)}
OWN = {"model": "minilm", "data": "reviews.csv"}


def recommended(folder: Path, validation: dict[str, Seeds], test: dict[str, Seeds], metric: str = "accuracy", rows: int = 400, folds: int = 0) -> Report:  # fmt: skip
    """A comparison whose predictions are right in that share of the test examples, from the first on; half are of a class."""
    targets = [i % 2 for i in range(rows)]
    results = {}
    for method, values in validation.items():
        for seed, value in values.items():
            right = min(test[method][seed], 1.0) * rows
            guesses = [target if i < right else 1 - target for i, target in enumerate(targets)]
            key = RunKey(task="reviews", k="all", method=method, seed=seed, lr=RATES[method])
            results[key] = RunRecord(
                status="finished", metric=metric, validation=value, test=test[method][seed], parameters={"head": SIZES[method]},
                stored=min(SIZES[method], 100),
                targets=targets, predictions=guesses,
            )  # fmt: skip
    return build(write(folder, results, options=OWN | {"folds": folds}))


def numbered(**values: list[float]) -> dict[str, Seeds]:
    return {method: dict(enumerate(of)) for method, of in values.items()}


def test_validation_chooses_and_test_results_have_no_say(tmp_path: Path):
    low, high = [0.6, 0.61, 0.6], [0.9, 0.91, 0.9]
    made = recommended(tmp_path / "one", numbered(a=high, b=low), numbered(a=low, b=high))
    assert (made.recommendation.method, [line.method for line in made.recommendation.comparison.lines]) == (
        "a",
        ["a", "b"],
    )
    assert "On the test examples b is better, beyond chance (3 seeds)" in made.why
    other = recommended(tmp_path / "two", numbered(b=low, a=high), numbered(a=low, b=high))
    assert other.files["comparison.csv"] == made.files["comparison.csv"], "the order of the runs has no say either"


def test_out_of_fold_answers_choose_where_every_example_is_tested_once(tmp_path: Path):
    """The validation examples inside the folds have chosen the rates already."""
    low, high = [0.6, 0.61, 0.6], [0.9, 0.91, 0.9]
    made = recommended(tmp_path / "study", numbered(a=high, b=low), numbered(a=low, b=high), folds=3)
    assert made.recommendation.method == "b" and "validation accuracy ×100" not in made.recommendation.table.columns


def test_where_the_difference_is_noise_the_smallest_is_taken(tmp_path: Path):
    noisy = numbered(big=[0.8, 0.7, 0.78], small=[0.79, 0.72, 0.76])
    test = numbered(big=[0.75, 0.74, 0.76], small=[0.74, 0.75, 0.75])
    made = recommended(tmp_path / "noisy", noisy, test)
    assert made.recommendation.method == "small" and "no difference to it is beyond chance (3 seeds)" in made.why
    assert "big has the best validation accuracy; small is within one standard error of it and smaller." in made.why
    assert made.recommendation.lr == RATES["small"], "which trains it again, not the best method's"
    rows = csv.DictReader(io.StringIO(made.files["comparison.csv"].decode()))
    assert {row["method"]: float(row["learning rate"]) for row in rows} == {m: RATES[m] for m in noisy}
    noisy, test = noisy | numbered(constant=[0.78, 0.72, 0.77]), test | numbered(constant=[0.5, 0.5, 0.5])
    assert recommended(tmp_path / "constant", noisy, test).recommendation.method == "small", "one answer helps nobody"
    clear = numbered(big=[0.9, 0.91, 0.9], small=[0.7, 0.71, 0.7])
    made = recommended(tmp_path / "clear", clear, clear)
    assert made.recommendation.method == "big" and "it is better than small, beyond chance (3 seeds)" in made.why
    for said in (everything(made), made.files["comparison.csv"].decode()):
        assert "1,000 (100 stored)" in said, "numbers that train and numbers that are kept"
    one = {method: {0: of[0]} for method, of in clear.items()}
    made = recommended(tmp_path / "one", one, one)
    assert made.recommendation.method == "big" and "nothing is judged: one seed" in made.why
    said = everything(made)
    assert "beyond chance" not in said and "test examples only" in said and not re.search(r"\breal\b(?!:)", said)


def test_the_least_error_is_the_best(tmp_path: Path):
    errors = numbered(a=[0.5, 0.51, 0.5], b=[0.2, 0.21, 0.19])
    made = recommended(tmp_path / "study", errors, errors, "rmse")
    rows = list(csv.DictReader(io.StringIO(made.files["comparison.csv"].decode())))
    assert made.recommendation.method == "b" and float(rows[1]["difference to b"]) == pytest.approx(0.3033, abs=1e-3), (
        "a is worse by"
    )
    assert float(rows[0]["validation rmse"]) == pytest.approx(0.2), "in its own unit"


def test_a_run_that_diverged_counts_as_missing(tmp_path: Path):
    errors = numbered(a=[0.5, 0.51, 0.5], b=[0.2, math.inf, 0.19])
    made = recommended(tmp_path / "study", errors, errors, "rmse")
    assert made.recommendation.method == "b" and "b and a are compared on seeds 0 and 2" in made.why
    assert "inf" not in made.files["comparison.csv"].decode()
    with pytest.raises(UserError, match="none of its 1 runs is finished"):
        recommended(tmp_path / "none", numbered(a=[math.inf]), numbered(a=[math.inf]), "rmse")


@pytest.mark.parametrize(
    ("seeds", "ranked", "take", "said"),
    [
        ({"small": {0: 0.82, 1: 0.7}, "big": {0: 0.8}}, ["small", "big"], "small", "small and big are compared on seed 0, the only seed that both have finished. One seed cannot show"),
        ({"small": {0: 0.8, 1: 0.8}, "big": {0: 0.82, 1: 0.79, 2: 0.1}}, ["big", "small"], "small", "big and small are compared on seeds 0 and 1, the only seeds that both have finished."),
        ({"small": {0: 0.1}, "big": {1: 0.9}}, ["small", "big"], "small", "No other method has finished a seed that small has, so they cannot be compared."),
        ({"small": {0: 0.8}, "big": {0: 0.9}, "huge": {1: 0.95}}, ["big", "huge", "small"], "big", "big and huge have no finished seed in common and cannot be compared."),
        ({"small": {0: 0.81, 1: 0.6, 2: 0.6}, "big": {0: 0.8, 1: 0.8, 2: 0.79}, "huge": {0: 0.7}}, ["big", "small", "huge"], "big", "big and huge are compared on seed 0, the only seed"),
        ({"small": {0: 0.8, 1: 0.8}, "big": {0: 0.7}, "huge": {0: 0.7}}, ["small", "big", "huge"], "small", "small, big and huge are compared on seed 0, the only seed that all have finished. One seed cannot show"),
        ({"small": {0: 0.8}}, ["small"], "small", "There is no other method to compare small with."),
        ({"small": {0: 0.8, 1: 0.7}, "big": {0: 0.8, 1: 0.7}}, ["small", "big"], "small", "small and big have the same validation accuracy; small is the smallest."),
        ({"big": {0: 0.9, 1: 0.9}, "small": {0: 0.9}, "huge": {1: 0.8}}, ["big", "small", "huge"], "big", "big and small have the same validation accuracy. big and huge are compared on seed 1,"),
        ({"small": {0: 0.805, 1: 0.785, 2: 0.765}, "big": {0: 0.8, 1: 0.8, 2: 0.8}}, ["big", "small"], "big", "big has the best validation accuracy."),  # 0.015, and a standard error of 0.02 / √3
        ({"small": {0: 0.8, 1: 0.7}, "big": {0: 0.1, 1: 0.2}}, ["small", "big"], "small", "small has the best validation accuracy."),
    ],
)  # fmt: skip
def test_methods_are_judged_on_the_seeds_that_they_share(
    seeds: dict, ranked: list[str], take: str, said: str, tmp_path: Path
):
    """As a budget, a kill or a failure leaves them."""
    made = recommended(tmp_path / "study", seeds, seeds, rows=100)
    assert ([line.method for line in made.recommendation.comparison.lines], made.recommendation.method) == (
        ranked,
        take,
    )
    assert said in made.why and "--folds" not in in_folds(made.why)
    shared = {
        line.method: bool(seeds[line.method].keys() & seeds[take].keys())
        for line in made.recommendation.comparison.others
    }
    words = {line.method: line.verdict for line in made.recommendation.comparison.others}
    assert {m for m, word in words.items() if word == "no seed in common"} == {
        m for m, there in shared.items() if not there
    }


@pytest.mark.parametrize(
    ("test", "said"), [([0.5], True), ([0.53], True), ([0.7, 0.9], True), ([0.7], False), ([0.9, 0.91, 0.9], False)]
)
def test_one_answer_for_all_examples_is_what_a_method_has_to_beat(test: list[float], said: bool, tmp_path: Path):
    """Half of the examples are of the most frequent class; two seeds that are far apart show nothing."""
    made = recommended(tmp_path / "study", numbered(a=[0.8] * len(test)), numbered(a=test))
    assert ("It is not shown to be better than the best constant answer (50.00)." in made.why) == said


def everything(made: Report) -> str:
    """All that a person sees: terminal, page, Markdown, CSV and LaTeX."""
    texts = [data.decode() for name, data in made.files.items() if name.endswith((".html", ".md", ".csv", ".tex"))]
    body = re.sub(r"<style>.*?</style>|<script>.*?</script>|class=\"[^\"]*\"", "", "\n".join(texts), flags=re.DOTALL)
    return terminal(made) + body


def terminal(made: Report) -> str:
    console = Console(file=io.StringIO(), width=1000)
    show(made, console)
    return console.file.getvalue()


def test_terminal_page_and_files_show_one_comparison(tmp_path: Path):
    test = numbered(a=[0.8, 0.82, 0.79], b=[0.7, 0.9, 0.6], small=[0.6, 0.61, 0.59])
    made = recommended(tmp_path / "study", test, test)
    page, shown = made.files["report.html"].decode(), terminal(made)
    table = made.sections[0].visible[0]
    assert table.columns[:6] == ["method", "validation accuracy ×100", "test accuracy ×100", f"difference to {made.recommendation.method}", "verdict", "seeds"]  # fmt: skip
    for row in table.blocks[0].rows:
        assert all(cell.text in page and cell.spread in page for cell in row)
        assert all(f"{cell.text} {cell.aside}".strip() in shown for cell in row[:7])
    head = next(line for line in shown.splitlines() if line.startswith("method"))
    assert not any(name in head for name in table.columns[7:]), "a terminal is narrow"
    assert all(name in shown for name in table.columns[7:]), "and names the columns that only the files have"
    assert f"<h1>{made.headline}</h1>" in page and f"{made.headline}: {made.why}" in shown
    assert page.count('class="best"') == 1, "nothing else is marked as best beside the recommended method"
    assert not [word for word in ("the paper", "never the worst", "second best") if word in page]
    assert headline(made.study.compared).startswith(f"K = all: {made.recommendation.method} has"), (
        "which agrees with test results here"
    )
    assert "−0.00" not in shown + page and "-0.0" not in made.files["comparison.csv"].decode()
