"""The study of the unified view on generated text: a plan at equal size, settings of the paper, claims judged."""

from pathlib import Path

from cli.conftest import run  # noqa: F401
from generation.bases import save_base, save_pairs

from unipelt import spec
from unipelt.study.plan import parse_options
from unipelt.study.unified import DEFAULTS, METHODS, PAPER, unified_options

CLAIMED = ("parallel-adapter", "scaled-parallel-adapter", "adapter", "mam")


def test_what_is_given_comes_before_the_papers_settings_and_these_before_the_defaults():
    grid, study = parse_options(unified_options({}))
    assert (grid.methods, grid.k, study.model) == (METHODS, DEFAULTS["k"], "smollm2")
    for name, settings in PAPER.items():
        grid, study = parse_options(unified_options({"tasks": [name], "k": ["all"], "clip": 0.5}))
        assert grid.lr == settings["lr"] and study.columns["num_beams"] == settings["num_beams"]
        assert study.recipe["label_smoothing"] == 0.1 and study.recipe["clip"] == 0.5 and grid.k == ["all"]


def test_every_method_of_the_plan_is_one_and_claims_find_theirs():
    assert all(spec.mixture(method) for method in METHODS if method != "full")
    presets = [method.partition("(")[0] for method in METHODS]
    assert {*CLAIMED, "multi-head-parallel-adapter"} <= {*presets} and len({*presets}) == len(presets)


def test_a_small_study_judges_the_claims(run, tmp_path: Path):  # noqa: F811
    base, data, out = save_base(tmp_path / "base"), save_pairs(tmp_path / "pairs.jsonl", 60), tmp_path / "study"
    said = run(
        "study", "unified", "--model", base, "--data", data, "--k", 24, "--methods", *CLAIMED, "--seeds", 1, "--epochs", 1,
        "--max-new-tokens", 3, "--max-length", 64, "--validation-rows", 10, "--gradient-accumulation", 2, "--out", out,
    )  # fmt: skip
    assert said.code == 0 and "4 of 4 runs done" in said.out
    said = run("report", out)
    assert "K = 24, loss, 1 seed" in said.out
    for claim in ("parallel adapters beat sequential ones", "a scaled addition beats a plain one", "mam is the best"):
        (line,) = [line for line in said.out.splitlines() if line.startswith(claim)]
        assert "not decided" in line, "one seed decides nothing"
