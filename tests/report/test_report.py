"""The command: what it writes and says, on finished, growing and damaged studies."""

import csv
import io
import json
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from report.studies import cells, flat, lively, write
from unipelt.report.build import build
from unipelt.study.store import FILE, Store
from unipelt.train.records import RunRecord

METHODS = ["full", "adapter", "prefix", "lora", "unipelt-apl"]


def small(folder: Path) -> Path:
    plan = cells(["rte", "cola"], [100, "all"], METHODS, range(2))
    return write(folder, lively(plan, rows=30))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small(tmp_path_factory.mktemp("made") / "study")


def test_what_is_written_and_said(made: Path, run, tmp_path: Path):
    said = run("report", made, "--out", tmp_path / "out")
    assert said.code == 0 and said.err == ""
    assert "minilm: 40 of 40 runs finished" in said.out and "K = 100, 2 tasks, average metric ×100, 2 seeds" in said.out
    assert "unipelt-apl is never the worst " in said.out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    page = tmp_path / "out" / "report.html"
    assert f"{page}: the page, with {len(names) - 1} files of tables, figures and runs\n" in said.out
    tables = {"comparison", "scores", "differences", "claims"}
    figures = {"answer", "curves-k100", "curves-kall", "gates-k100-unipelt-apl", "gates-kall-unipelt-apl"}
    expected = {f"{t}.{kind}" for t in tables for kind in ("csv", "tex")} | {
        f"{f}.{kind}" for f in figures for kind in ("svg", "pdf")
    }
    assert names == expected | {"report.html", "report.md", "runs.csv"}
    again = run("report", made, "--out", tmp_path / "out")
    assert again.out == said.out


def test_one_seed_is_judged_nowhere(run, tmp_path: Path):
    """Terminal, page, Markdown, CSV and LaTeX; a lead of thirty points."""
    results = lively(cells(["rte", "cola", "sst2", "qnli"], [100], METHODS, [0]), rows=100)
    for key, one in results.items():
        if key.method == "unipelt-apl":
            one.test, one.predictions = 1.0, one.targets
    folder = write(tmp_path / "study", results)
    said = run("report", folder).out
    texts = {
        path.name: path.read_text()
        for path in (folder / "report").iterdir()
        if path.suffix in (".html", ".md", ".csv", ".tex")
    }
    assert "1 seed" in said and "1 seed" in texts["report.html"] and "not judged: one seed" in said
    assert {"real", "yes", "no"}.isdisjoint(
        cell for row in csv.reader(io.StringIO(texts["comparison.csv"] + texts["claims.csv"])) for cell in row
    )
    assert 'class="real"' not in texts["report.html"]
    assert not re.search(r"\*\*[+−\d]", texts["report.md"]), "nothing is bold"
    assert "with one seed over test examples only" in said
    assert "-0.0" not in "".join(texts[name] for name in texts if name.endswith(".csv"))


def test_the_page_needs_nothing_but_itself(made: Path):
    files = build(made).files
    page = files["report.html"].decode()
    for name, value in re.findall(r'\b(src|href|srcset|xlink:href)="([^"]*)"', page):
        assert value.startswith(("#", "data:")) or (name == "href" and value in files), (name, value)
    assert not re.search(r"url\((?!#|['\"]?#)|@import|<link(?! rel=\"icon\" href=\"data:,\")|<script[^>]+src", page)
    assert build(made).files == files  # the same runs, the same bytes


def test_by_default_it_stands_in_the_study(run, tmp_path: Path):
    folder = write(tmp_path / "study", flat(cells(["rte"], [100], ["lora"], [0]), lambda cell: 0.5))
    assert run("report", folder).code == 0 and (folder / "report" / "report.html").is_file()
    assert run("report", folder / FILE).code == 0
    Store.create(folder, {"model": "minilm", "epochs": None}).close()  # which goes on as before


def test_curves_are_drawn_where_there_is_something_to_see(tmp_path: Path):
    """One evaluation a run is no curve; one method's lone point beside the others' lines is a dot."""
    drawn = lively(cells(["rte"], [100, "all"], ["head", "lora"], range(2)), rows=30)
    for cell, one in drawn.items():
        if cell.k == 100 or cell.method == "head":
            one.curve = one.curve[:1]
    made = build(write(tmp_path / "study", drawn))
    assert "curves-k100.svg" not in made.files and "learning curves (no run was evaluated twice)" not in made.missing
    text = made.files["curves-kall.svg"].decode()
    dots = re.findall(r'<use [^>]*fill: (#\w+); stroke: \1"/>', text)
    assert len({*dots}) == 1 and len({*re.findall(r"stroke: (#[0-9a-f]{6}); stroke-width: 1.5", text)} - {*dots}) >= 1
    less = {cell: one for cell, one in drawn.items() if len(one.curve) == 1}
    assert "learning curves (no run was evaluated twice)" in build(write(tmp_path / "less", less)).missing


def test_a_study_that_is_still_being_written(run, tmp_path: Path):
    plan = cells(["rte", "cola"], [100, 500], METHODS, range(2))
    folder = write(tmp_path / "study", flat(plan[:7], lambda cell: 0.5 + len(cell.method) / 100), plan)
    writer = Store.create(folder, {"model": "minilm", "epochs": None})
    writer.finish({plan[7]: RunRecord(status="failed: loss is not finite", metric="accuracy")})
    said = run("report", folder)
    writer.close()
    assert said.code == 0 and "7 of 40 runs finished, 1 failed, 32 still to come" in said.out
    assert "gates (no run has recorded any)" in said.out
    page = (folder / "report" / "report.html").read_text()
    assert "this page shows what is there" in page and "loss is not finite" in page
    assert "costs (no efficiency.json" in page and "Not measured here" in page


def test_one_method_is_compared_with_nothing(run, tmp_path: Path):
    folder = write(tmp_path / "study", flat(cells(["rte"], [100], ["lora"], [0]), lambda cell: 0.5))
    said = run("report", folder)
    assert said.code == 0 and "lora alone, nothing to compare it with" in said.out


def test_measured_cost_takes_the_place_of_the_runs_own(run, tmp_path: Path):
    folder = small(tmp_path / "study")
    (folder / "efficiency.json").write_text(json.dumps([{"method": "lora", "train": 0.5, "inference": 1.04}]))
    assert run("report", folder).code == 0
    assert "| lora | 0.50 | 1.04 |" in (folder / "report" / "report.md").read_text()


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ("nothing", "study: no such study; expected the folder that `unipelt study … --out` wrote"),
        ("no database", "not a study, or a damaged one"),
        ("another database", "a database, but not of a study; it is left untouched"),
        ("json", "not a study, or a damaged one"),
        ("unfinished", "none of its 20 runs is finished (0 failed); expected at least one; let `unipelt study` or `unipelt compare` continue"),
        ("failed", "none of its 20 runs is finished (20 failed)"),
        ("efficiency range", "efficiency.json: cannot be read (not enough values to unpack"),
        ("efficiency text", "efficiency.json: cannot be read"),
        ("efficiency number", "efficiency.json: cannot be read ('int' object is not iterable); expected a list such as"),
        ("out is a file", "not a folder; expected a new folder, or an old report to replace"),
        ("out is full", "not empty, and holds no report; expected a new folder, or an old report to replace"),
        ("out under a file", "cannot write"),
    ],
)  # fmt: skip
def test_one_line_says_what_is_wrong(damage: str, expected: str, run, tmp_path: Path):
    folder, out, plan = tmp_path / "study", tmp_path / "out", cells(["rte", "cola"], [100], METHODS, range(2))
    if damage == "unfinished":
        write(folder, {}, plan)
    elif damage == "failed":
        write(folder, {cell: RunRecord(status="failed: no", metric="accuracy") for cell in plan})
    elif damage != "nothing":
        small(folder)
    if damage == "no database":
        (folder / FILE).write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    elif damage == "another database":
        (folder / FILE).unlink()
        sqlite3.connect(folder / FILE).execute("CREATE TABLE other (x)").connection.close()
    elif damage == "json":
        with sqlite3.connect(folder / FILE) as connection:
            connection.execute("UPDATE runs SET curve = '[{'")
        connection.close()
    elif damage.startswith("efficiency"):
        said = {"efficiency text": "[", "efficiency number": "3"}
        said["efficiency range"] = '[{"method": "lora", "train": 1, "train_range": [0.5]}]'
        (folder / "efficiency.json").write_text(said[damage])
    elif damage == "out is a file":
        out.write_text("kept")
    elif damage == "out is full":
        out.mkdir()
        (out / "thesis.tex").write_text("kept")
    elif damage == "out under a file":
        (tmp_path / "file").write_text("kept")
        out = tmp_path / "file" / "out"
    assert expected in run("report", folder, "--out", out).line
    assert not (out / "report.html").exists()


def test_no_torch_is_loaded(made: Path, tmp_path: Path):
    """Nor anything heavy before the command runs."""
    code = f"""
import sys
import unipelt.cli.report
heavy = {{"torch", "transformers", "numpy", "scipy", "matplotlib", "jinja2"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
from unipelt.cli import main
try:
    main(["report", {str(made)!r}, "--out", {str(tmp_path / "out")!r}])
except SystemExit as ended:
    assert ended.code == 0
assert not {{"torch", "transformers", "sklearn", "matplotlib.pyplot"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
