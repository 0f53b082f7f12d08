"""A flag is a field: whoever adds a field to what a command fills has added its flag."""

import dataclasses
import inspect

import pytest

from unipelt.cli.fields import docs, flags
from unipelt.study.plan import COLUMNS, Grid, Setting
from unipelt.train.recipes import Recipe
from unipelt.train.records import Request

COMMANDS = {
    ("train",): ((Request, ["recipe"]), (Recipe, [])),
    ("compare",): ((Setting, ["policy", "width", "recipe", "columns"]), (Recipe, ["lr"])),
    ("study", "glue"): ((Grid, []), (Setting, ["recipe", "columns"]), (Recipe, ["lr"])),
    ("study", "sweep"): ((Grid, ["methods"]), (Setting, ["recipe", "columns"]), (Recipe, ["lr"])),
}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_field_is_a_flag_with_its_doc_as_help(command: tuple[str, ...], run):
    said = " ".join(run(*command, "--help").out.replace("-\n", "-").split())
    for settings, but in COMMANDS[command]:
        for flag in flags(settings, but=but):
            (name, *_) = flag.default.param_decls[0].split("/")
            assert f" {name} " in said
            first = docs(settings)[flag.name].split()[:2]
            assert " ".join(first) in said, f"{name} has no help"
    if command != ("train",):
        assert all(f" --{name.replace('_', '-')} " in said for name in COLUMNS)


def test_what_is_not_given_has_no_value():
    """So that a plan's, or the field's own default, holds; and every type is one that a flag can have."""
    for settings in (Request, Recipe, Grid):
        for flag in flags(settings, but=["recipe"]):
            assert flag.default.default in (None, []) and flag.kind is inspect.Parameter.KEYWORD_ONLY
    assert {flag.name for flag in flags(Recipe)} == {field.name for field in dataclasses.fields(Recipe)}
