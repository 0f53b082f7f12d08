"""Tables whose numbers are known, in every form that they are written in."""

import csv
import io
import random
import re
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from report.studies import cells, flat, lively, result, write
from unipelt.report.build import build
from unipelt.report.comparison import headline
from unipelt.report.details import cost_table
from unipelt.report.names import method_order
from unipelt.report.render import latex, render
from unipelt.report.scores import paper, printed, score_table
from unipelt.report.study import Study, read
from unipelt.report.sweeps import _draw as draw_sweep
from unipelt.report.sweeps import find_sweeps
from unipelt.report.tables import Block, Cell, Table, table_csv
from unipelt.study.store import Store
from unipelt.train.records import RunKey as Run
from unipelt.train.records import RunRecord

MEANS = {"full": 0.60, "adapter": 0.58, "prefix": 0.40, "lora": 0.50, "unipelt-apl": 0.625}


def study(folder: Path, results: dict[Run, RunRecord], planned=()) -> Study:
    return read(Store.read(write(folder, results, planned)))


def known(cell: Run) -> float:
    """Every method at its mean on every task, ±1 by seed, five less on CoLA."""
    return MEANS[cell.method] + 0.01 * (cell.seed - 1) - 0.05 * (cell.task == "cola")


@pytest.fixture
def plain(tmp_path: Path) -> Study:
    return study(tmp_path / "study", flat(cells(["rte", "cola", "sst2"], [100], MEANS, range(3)), known))


def texts(table: Table, block: int = 0) -> dict[str, list[str]]:
    return {row[0].text: [cell.text for cell in row[1:]] for row in table.blocks[block].rows}


def test_table_1(plain: Study):
    table = score_table(plain)
    assert table.columns == ["method", "SST-2", "CoLA", "RTE", "average"]
    assert table.blocks[0].heading == "K = 100 · ours, minilm · 3 seeds"
    assert texts(table) == {
        "full": ["60.00", "55.00", "60.00", "58.33"],
        "adapter": ["58.00", "53.00", "58.00", "56.33"],
        "prefix": ["40.00", "35.00", "40.00", "38.33"],
        "lora": ["50.00", "45.00", "50.00", "48.33"],
        "unipelt-apl": ["62.50", "57.50", "62.50", "60.83"],
        "best of adapter, prefix, lora": ["58.00", "53.00", "58.00", "56.33"],
    }
    assert {cell.spread for row in table.blocks[0].rows for cell in row[1:]} == {"±1.00"}
    marks = {row[0].text: {cell.mark for cell in row[1:]} for row in table.blocks[0].rows}
    assert (marks["unipelt-apl"], marks["full"]) == ({"best"}, {""})


@pytest.mark.parametrize("seeds", [1, 2])
def test_nothing_is_marked_from_one_seed(seeds: int, tmp_path: Path):
    plan = cells(["rte", "sst2"], [100], MEANS, range(seeds))
    table = score_table(study(tmp_path / "study", flat(plan, lambda cell: MEANS[cell.method] + 0.01 * cell.seed)))
    assert any(cell.mark for row in table.blocks[0].rows for cell in row) == (seeds > 1)


def test_the_largest_class_stands_below_the_methods(tmp_path: Path):
    """Accuracy and F1 of always naming it, 0 for a correlation; test results of it are no results of a method."""
    made = study(
        tmp_path / "study", lively(cells(["rte", "mrpc", "stsb", "cola"], [100], ["full", "lora"], range(2)), rows=80)
    )
    found = texts(score_table(made))["best constant answer"]
    assert (
        found[score_table(made).columns.index("STS-B") - 1]
        == found[score_table(made).columns.index("CoLA") - 1]
        == "0.00"
    )
    assert 50 <= float(found[score_table(made).columns.index("RTE") - 1]) < 70
    assert "best constant answer" not in made.methods(100)


def test_the_best_parts_of_a_mixture_with_options(tmp_path: Path):
    """Each task has its best part; where a part has two sets of options, none is taken for the other."""
    options = {"lora": "lora(r=4)", "unipelt-apl": "unipelt-apl(r=4)"}
    luck = {("lora(r=4)", "rte"): 0.2}
    renamed = {
        replace(key, method=options.get(key.method, key.method)): one
        for key, one in flat(cells(["rte", "sst2"], [100], MEANS, range(3)), known).items()
    }
    for key, one in renamed.items():
        one.test += luck.get((key.method, key.task), 0.0)
    table = score_table(study(tmp_path / "study", renamed))
    assert texts(table)["best of adapter, prefix, lora(r=4)"] == ["58.00", "70.00", "64.00"]
    twice = renamed | {
        replace(key, method="lora(r=8)"): one for key, one in renamed.items() if key.method == "lora(r=4)"
    }
    assert not [name for name in texts(score_table(study(tmp_path / "twice", twice))) if name.startswith("best of")]


def test_the_answer(tmp_path: Path):
    """Its lead is judged from predictions and several seeds alone."""
    skilled = {"unipelt-apl": 0.9, "full": 0.6, "lora": 0.6}

    def answers(seeds: int, name: str, predictions: bool = True) -> str:
        results = lively(cells(["rte", "sst2"], [100], skilled, range(seeds)), rows=300)
        for key, one in results.items():
            right = int(300 * (skilled[key.method] + 0.01 * key.seed))
            one.predictions = [target if i < right else 1 - target for i, target in enumerate(one.targets)]
            one.test, one.predictions = right / 300, one.predictions if predictions else None
        return headline(study(tmp_path / name, results).compared)

    lead = "K = 100: unipelt-apl has the best average; the lead over the next method "
    assert answers(3, "three") == f"{lead}is real (3 seeds)."
    assert answers(1, "one") == f"{lead}is not judged (1 seed)."
    assert answers(3, "none", predictions=False) == f"{lead}is not judged (3 seeds)."


def test_ties_are_no_lead(tmp_path: Path):
    plan = cells(["rte", "sst2"], [100, 500], ["full", "lora"], range(3))
    tied = study(tmp_path / "study", flat(plan, lambda cell: 0.5 + cell.seed / 100))
    assert headline(tied.compared) == "K = 100: full and lora share the best average. K = 500: full and lora share the best average."  # fmt: skip
    assert not {cell.mark for block in score_table(tied).blocks for row in block.rows for cell in row} - {""}
    several = cells(["rte", "sst2"], [100, 500], ["full", "lora", "adapter"], range(3))
    mixed = study(tmp_path / "mixed", flat(several, lambda cell: 0.3 + 0.1 * (cell.k == 500 and cell.method == "lora")))
    assert mixed.compared[100].summary == "all 3 methods share the best average"
    assert mixed.compared[500].summary.startswith("lora has the best average; the lead over the next method ")
    assert headline(tied.compared) in build(tmp_path / "study").files["report.html"].decode()
    alone = study(tmp_path / "alone", flat(cells(["rte"], [100], ["lora"], [0]), lambda cell: 0.5))
    assert headline(alone.compared) == "K = 100: lora alone, nothing to compare it with."


def test_metrics_of_other_units_are_not_averaged(tmp_path: Path):
    """Accuracies ×100 stand beside an error in its own unit, in which the least is best."""
    plan = cells(["rte", "sst2", "prices"], [100], ["full", "lora"], range(2))
    results = flat(
        plan, lambda cell: (0.5 if cell.task != "prices" else 7.0) + 0.1 * (cell.method == "lora") + cell.seed / 50
    )
    for cell, one in results.items():
        one.metric = "rmse" if cell.task == "prices" else "accuracy"
    made = study(tmp_path / "study", results)
    assert texts(score_table(made)) == {
        "full": ["51.00", "51.00", "7.01", "51.00"],
        "lora": ["61.00", "61.00", "7.11", "61.00"],
    }
    marks = {row[0].text: [cell.mark for cell in row[1:]] for row in score_table(made).blocks[0].rows}
    assert marks == {"full": ["", "", "best", ""], "lora": ["best", "best", "", "best"]}
    assert (made.compared[100].tasks, made.compared[100].reference) == (2, "lora")


def test_errors_are_not_averaged_with_scores_of_the_same_unit(tmp_path: Path):
    results = flat(cells(["rte", "sst2", "prices"], [100], ["full", "lora"], range(2)), lambda cell: 7.0 + cell.seed)
    for cell, one in results.items():
        one.metric = "mae" if cell.task == "prices" else "bleu"
    assert study(tmp_path / "study", results).averaged(100) == ["sst2", "rte"]


def test_the_order_of_the_runs_does_not_matter(tmp_path: Path):
    methods = ["full", "adapter", "lora", "unipelt-apl"]
    results = list(lively(cells(["cola", "stsb"], [100, "all"], methods, range(2), [1e-3, 3e-3]), rows=20).items())
    first = build(write(tmp_path / "one", dict(results))).files
    random.Random(0).shuffle(results)
    assert build(write(tmp_path / "two", dict(results))).files == first


def test_test_metrics_choose_no_rate(tmp_path: Path):
    plan = cells(["rte"], [100], ["lora"], range(2), [1e-3, 3e-3])
    luck = {1e-3: 0.9, 3e-3: 0.1}
    made = study(
        tmp_path / "study", {cell: result("rte", luck[cell.lr], validation=1 - luck[cell.lr]) for cell in plan}
    )
    assert texts(score_table(made))["lora"][0] == "10.00"
    assert {run.lr for run in made.chosen} == {3e-3}


@pytest.mark.parametrize(("rates", "said"), [([1e-3], True), ([1e-3, 3e-3], False)])
def test_claims_on_one_learning_rate_say_so(rates: list[float], said: bool, tmp_path: Path):
    plan = cells(["rte"], [100], ["full", "lora", "unipelt-apl"], range(2), rates)
    assert build(write(tmp_path / "study", flat(plan, lambda cell: 0.5))).files["report.md"].decode().count("at one learning rate") == said  # fmt: skip


def test_a_seed_that_is_missing_is_said_and_no_average_stands_without_a_task(tmp_path: Path):
    plan = cells(["sst2", "rte"], [100], ["full", "lora"], range(3))
    done = [cell for cell in plan if not (cell.method == "lora" and (cell.task == "rte" or cell.seed == 2))]
    made = study(tmp_path / "study", flat(done, lambda cell: 0.5 + cell.seed / 10), plan)
    lora = next(row for row in score_table(made).blocks[0].rows if row[0].text == "lora")
    assert lora[1].note == "2 of 3 seeds" and [cell.text for cell in lora[2:4]] == ["–", "–"]
    assert made.compared[100].tasks == 1, "what both have"


def test_subsets_of_the_published_training_sets_are_marked(tmp_path: Path):
    plan = cells(["mnli", "rte"], ["all"], ["full", "lora"], range(2))
    short = study(tmp_path / "short", {key: result(key.task, 0.8, complete=key.task != "mnli") for key in plan})
    assert score_table(short).columns == ["method", "RTE", "MNLI*", "average"]
    assert any("subset" in note for note in score_table(short).notes)
    whole = score_table(study(tmp_path / "whole", flat(plan, lambda key: 0.8)))
    assert "MNLI" in whole.columns and not any("subset" in note for note in whole.notes)


def test_the_papers_numbers_stand_below_ours_over_the_same_tasks(plain: Study):
    table = score_table(plain)
    assert [block.heading for block in table.blocks] == [
        "K = 100 · ours, minilm · 3 seeds",
        "K = 100 · the paper, BERT-base · 5 seeds",
    ]
    assert texts(table, 1)["unipelt-apl"] == ["82.36", "23.62", "55.45", "53.81"]
    assert [*texts(table, 1)] == [*texts(table, 0)]


@pytest.mark.parametrize(("k", "rows"), paper()["scores"].items())
def test_the_papers_averages_are_those_of_its_tasks(k: str, rows: dict[str, list[float]]):
    for method, (*tasks, average, _) in rows.items():
        assert sum(tasks) / 8 == pytest.approx(average, abs=0.02), (k, method)


@pytest.mark.parametrize(
    ("k", "mixture", "best", "own"),
    [(100, "unipelt-ap", 58.86, 60.80), (500, "unipelt-ap", 69.69, 69.79), (1000, "unipelt-ap", 72.58, 72.61),
     (100, "unipelt-apl", 60.60, 62.59), (500, "unipelt-apl", 70.02, 69.98), (1000, "unipelt-apl", 73.19, 73.31)],
)  # fmt: skip
def test_the_papers_table_2_follows_from_its_table_1(k: int, mixture: str, best: float, own: float, tmp_path: Path):
    plan = cells(paper()["tasks"], [k], ["adapter", "prefix", "lora", mixture], [0])
    made = study(tmp_path / "study", flat(plan, lambda key: printed(k)[k, key.task][key.method][0] / 100))
    for index in (0, 1):  # ours are the paper's here
        found = texts(score_table(made), index)
        (bound,) = [row for name, row in found.items() if name.startswith("best of")]
        assert [float(row[-1]) for row in (bound, found[mixture])] == pytest.approx([best, own], abs=0.02)


def test_sweeps():
    names = ["adapter", *(f"adapter(bottleneck={size})" for size in (8, 96)), "lora(r=4, alpha=1)", "lora(r=4,alpha=2)", "lora(r=4, alpha=4.0)", "lora", "lora(r=2)", "prefix", "prefix(length=50)", "full"]  # fmt: skip
    found = find_sweeps(reversed(names))
    values = {option: {label: [*line.values()] for label, line in lines.items()} for option, lines in found.items()}
    assert values == {"alpha": {"lora(r=4)": [1, 2, 4]}, "bottleneck": {"adapter": [8, 48, 96]}}
    assert "adapter" in found["bottleneck"]["adapter"]


def test_a_sweep_shows_the_mean_and_the_deviation_over_seeds_of_each_value():
    """Of the values that a panel has; a single seed deviates from nothing."""
    scores = {"lora(r=32)": {0: 70.0, 1: 74.0}, "lora(r=2)": {0: 50.0, 1: 52.0, 2: 54.0}, "lora(r=16)": {3: 60.0}}
    grid = {("all", "rte"): scores, ("all", "cola"): {"lora(r=4)": {0: 1.0}}}
    (option, lines), panel = *find_sweeps(name for one in grid.values() for name in one).items(), MagicMock()
    draw_sweep(option, lines, grid, panel, ("all", "rte"))
    (x, means), how = panel.errorbar.call_args
    assert (option, x, means) == ("r", [2, 16, 32], [52, 60, 72])
    assert how["yerr"] == pytest.approx([2, 0, 8**0.5]) and how["label"] == "lora"
    panel.set_xscale.assert_called_once_with("log")


def test_methods_stand_in_the_papers_order():
    shuffled = [
        "unipelt-apl",
        "own",
        "prefix(length=50)",
        "prefix",
        "mam",
        "adapter",
        "full",
        "unipelt-ap",
        "prefix(length=9)",
    ]
    assert sorted(shuffled, key=method_order) == ["full", "adapter", "prefix", "prefix(length=9)", "prefix(length=50)", "mam", "unipelt-ap", "unipelt-apl", "own"]  # fmt: skip


def test_measured_costs_name_their_own_base_and_their_spread():
    rows = [
        {"method": method, "train": 0.6, "train_range": [0.55, 0.7], "inference": 1.1, "model": base, "batch": 16, "length": 128, "machine": "x86, 2 threads"}
        for method, base in (("lora", "roberta-large"), ("prefix", "gpt2"), ("adapter", "gpt2"))
    ]  # fmt: skip
    table = cost_table(rows)
    assert [(block.heading, [row[0].text for row in block.rows]) for block in table.blocks] == [
        ("ours, gpt2, 16 examples, 128 tokens, x86, 2 threads", ["adapter", "prefix"]),
        ("ours, roberta-large, 16 examples, 128 tokens, x86, 2 threads", ["lora"]),
        ("the paper, BERT-base", ["adapter", "prefix", "lora"]),
    ]
    assert table.blocks[0].rows[0][1].spread == "0.55 to 0.70" and table.blocks[0].rows[0][2].spread == ""
    assert cost_table([{"method": "own", "train": 0.6}]).blocks[0].heading == "ours"


def test_a_comparison_shows_what_was_given_and_asks_none_of_the_papers_questions(tmp_path: Path):
    options = {"model": "minilm", "data": "3fa1", "mix": False, "recipe": {}, "columns": {"text": "review", "kind": None, "validation_rows": 9}}  # fmt: skip
    results = lively(cells(["reviews"], ["all"], ["full", "lora"], range(2)), rows=40)
    made = build(write(tmp_path / "study", results, options=options))
    page = made.files["report.html"].decode()
    assert "<dd>text review, validation_rows 9</dd>" in page
    assert not [word for word in ("None", "False", "the paper") if word in page]
    assert "differences.csv" not in made.files and made.recommendation, "one answer, by validation"


NASTY = "a_b & 50 % of #1 {x} $y$ <script>alert(1)</script> ~^\\ | *z* −1 ±2"


def nasty() -> Table:
    row = [
        Cell(NASTY),
        Cell(-1.5, sd=0.25, mark="best", note=NASTY),
        Cell(0.0, low=-1.0, high=1.0, signed=True, mark="real"),
    ]
    return Table("x", NASTY, [NASTY, "a", "b"], [Block(NASTY, [row]), Block("", [row])], [NASTY])


def test_latex_is_balanced_and_escaped():
    text = render("table.tex", table=nasty())
    body = [line for line in text.splitlines() if not line.startswith("%")]
    bare = re.sub(r"\\(\\|[&%$#_{}])", "", "\n".join(body))
    assert bare.count("{") == bare.count("}") and bare.count("$") % 2 == 0
    assert not set(re.sub(r"\$[^$]*\$", "", bare)) & set('%#_~^<>|"±−')
    for name in ("table", "tabular"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 1
    rows = [line for line in body if line.endswith(r"\\") and "multicolumn" not in line]
    assert len(rows) == 3 and {len(re.findall(r"(?<!\\)&", line)) for line in rows} == {2}
    assert r"\textbf{$-$1.50}" in text and r"\textbf{0.00}" in text
    assert latex("a_b%&") == r"a\_b\%\&"


def test_markdown_and_csv_keep_their_columns():
    lines = [line for line in render("table.md", table=nasty()).splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {4}
    assert r"| **0.00** (−1.00 to +1.00) |" in render("table.md", table=nasty())
    assert "<script>" not in render("table.md", table=nasty()).replace("\\<", "")
    header, first, second = csv.reader(io.StringIO(table_csv(nasty())))
    assert header == ["block", NASTY, "a", "a sd", "a note", "b", "b low", "b high"]
    assert first == [NASTY, NASTY, "-1.5", "0.25", NASTY, "0.0", "-1.0", "1.0"] and second[0] == ""


def test_no_name_breaks_the_page(tmp_path: Path):
    task = "<script>alert('$1_$2')</script>"
    plan = cells([task], [100], ["full", "unipelt-apl", "<b>own</b>"], range(2))
    folder = write(tmp_path / "study", lively(plan, rows=30), options={"model": "<i>base</i>"})
    files = build(folder).files
    text = files["report.html"].decode()
    assert text.count("<script>") == text.count("</script>") == 1
    assert "<i>base" not in text and "<b>own" not in text
    assert "&lt;script&gt;alert(" in text and "&lt;b&gt;own" in text
    assert all(b"<script>" not in data for name, data in files.items() if name.endswith(".svg"))
