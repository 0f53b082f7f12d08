"""Help pages: every option has a panel and a help line, every example parses, and output never fails on a terminal's encoding."""

import io
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from unipelt import mixture
from unipelt.cli import build, repeat_flags
from unipelt.cli.fields import docs, flags, recipe_defaults
from unipelt.cli.help import OTHER, PANELS, description_and_examples
from unipelt.cli.output import never_fail
from unipelt.study.plan import Grid, StudyConfig
from unipelt.train.recipes import Recipe, default_recipe
from unipelt.train.records import RunConfig

ROOT: Any = typer.main.get_command(build())


def commands(group: Any = ROOT, words: tuple[str, ...] = ()) -> Iterator[Any]:
    """Every command and group, with the words that call it."""
    yield pytest.param(words, group, id=" ".join(words) or "unipelt")
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*words, name))


def parse(line: str) -> Any:
    """The context of a command line, parsed and not run. Raises what the command line would refuse."""
    command: Any = ROOT
    program, *words = shlex.split(line)
    assert program == "unipelt"
    words = repeat_flags(words)
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    return command.make_context(command.name, words)


@pytest.mark.parametrize(("words", "command"), [*commands()])
def test_every_page_has_panels_help_and_examples(words: tuple[str, ...], command: Any, run):
    page = run(*words, "--help").out
    text, examples = description_and_examples(command.help)
    assert text and len(examples) == 3 and all(f"\n  {example}\n" in page for example in examples)
    for example in examples:
        assert example.startswith(" ".join(("unipelt", *words))) or len(words) < 2
        method = parse(example).params.get("method")
        assert method in (None, "full") or mixture(method)
    for option in command.params:
        assert (option.help and option.help[0] != option.help[0].upper()) or option.help.startswith(
            ("CSV", "TOML", "GLUE")
        )
        if option.param_type_name == "option":
            assert option.opts[0] in page and (option.rich_help_panel in PANELS or option.opts == ["--version"])
    panels = [line.split("─")[1].strip() for line in page.splitlines() if line.startswith("╭")]
    assert panels == sorted(panels, key=["Commands", "Arguments", *PANELS, OTHER].index) and panels[-1] == OTHER


@pytest.mark.parametrize(
    ("command", "settings", "but"),
    [
        (("train",), RunConfig, ["recipe", "folds"]),
        (("train",), Recipe, []),
        (("compare",), StudyConfig, ["head", "runs_at_once", "recipe", "columns"]),
        (("compare",), Recipe, ["lr"]),
        (("study", "grid"), Grid, []),
        (("study", "grid"), StudyConfig, ["recipe", "columns", "folds"]),
        (("study", "sweep"), Recipe, ["lr"]),
    ],
)
def test_every_field_is_an_option(command: tuple[str, ...], settings: type, but: list[str]):
    """Its help is the field's docstring. Without a value it is empty, so that a plan's or the field's own default holds."""
    (found,) = [one for words, one in (case.values for case in commands()) if words == command]
    options = {option.name: option for option in found.params}
    for flag in flags(settings, but=but):
        assert options[flag.name].help.startswith(
            (docs(RunConfig) | docs(settings))[flag.name]
        ) and flag.default.default in (None, [])


def test_defaults_of_the_recipe_are_values():
    shown = recipe_defaults()
    assert shown["lr"].endswith(f"{default_recipe('unipelt-apl', 384, 100).lr:g} for unipelt-apl on minilm")
    for samples in (100, 500, 1000, 5000):
        assert f"up to {samples:,}: {default_recipe('lora', 384, samples).epochs}" in shown["epochs"]
    assert shown["epochs"].endswith(f"more: {default_recipe('lora', 384, 10**6).epochs}")
    assert shown["batch_size"] == str(Recipe().batch_size)


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        ("predict runs/a --data x.csv --text one --text two", "--text-column"),
        ("predict runs/a --data x.csv --text one --text-column two", "--text-column"),
        ("train --data a.csv --data b.csv --out x", "--data"),
        ("compare --data a.csv b.csv --out x", "--data"),
        ("train --data a.csv --stratify --no-stratify --out x", "--stratify"),
        ("study grid --seeds 1 --seeds 2 --out x", "--seeds"),
    ],
)
def test_an_option_for_one_value_is_given_once(words: str, flag: str, run):
    assert f"unipelt: {flag} is given 2 times; expected once; see `unipelt " in run(*words.split()).line


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
def test_a_terminal_shows_what_it_can(encoding: str, run, monkeypatch: pytest.MonkeyPatch):
    shown = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", shown)
    for words in ("methods", "methods --compatible", "train --help", "study sweep --help"):
        assert run(*words.split()).code == 0
    shown.flush()
    said = shown.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert "\\u" not in said and "\\x" not in said, "a sign of ours has no plain form in cli/output.py"
    assert ("Σ" in said) == ("╭─ Data" in said) == (encoding == "utf-8") and "Kronecker" not in said


def test_signs_that_a_terminal_lacks_are_told_by_their_code(monkeypatch: pytest.MonkeyPatch):
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", shown)
    never_fail()
    print("a → b, café, 中", "\udcff")
    shown.flush()
    assert shown.buffer.getvalue() == b"a -> b, caf\\xe9, \\u4e2d \\udcff\n"  # type: ignore[attr-defined]


def test_a_comparison_on_a_cp1252_terminal_leaves_its_winner(
    run, tiny_base: str, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shown = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", shown)
    out = tmp_path / "out"
    words = [
        "compare",
        "--data",
        reviews,
        "--model",
        tiny_base,
        "--methods",
        "head",
        "--seeds",
        1,
        "--num-rates",
        1,
        "--epochs",
        1,
        "--folds",
        0,
    ]
    said = run(*words, "--device", "cpu", "--out", out)
    assert said.code == 0, said.err
    shown.flush()
    assert "recommended" in shown.buffer.getvalue().decode("cp1252")  # type: ignore[attr-defined]
    assert (out / "winner" / "run.json").exists() and (out / "report" / "report.html").exists()
