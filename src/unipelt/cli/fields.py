"""Options made from dataclass fields: name, type, default, help and panel of each option are those of the field."""

import ast
import dataclasses
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache, partial
from typing import Any, get_args, get_origin, get_type_hints

import typer

from unipelt import spec
from unipelt.errors import UserError
from unipelt.tasks.settings import GenerationSettings
from unipelt.train import recipes, records
from unipelt.train.recipes import EPOCHS, Recipe, default_recipe
from unipelt.train.records import FLAGS, GENERATION, RunConfig, option_of

SHORT = {  # a second, shorter name of an option
    "k": "--k",
    "text_column": "--text",
    "text_pair_column": "--pair",
    "label_column": "--label",
    "group_column": "--group",
}
MODEL = ("model", "method", "methods", "pooling", "head")
TRAINING = ("seed", "seeds", "rates", "lr", "runs_at_once")
METAVARS = {int: "INTEGER", float: "NUMBER", str: "TEXT"}
BASE, HIDDEN = "minilm", 384  # the default base, and its hidden units


@cache
def docs(settings: type) -> dict[str, str]:
    """The string under each field of a dataclass, by field."""
    (definition,) = ast.parse(inspect.cleandoc(inspect.getsource(settings))).body
    assert isinstance(definition, ast.ClassDef)
    help_texts = {}
    for field, doc in zip(definition.body, definition.body[1:]):
        if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant):
            help_texts[ast.unparse(field.target)] = " ".join(str(doc.value.value).split())
    return help_texts


def option(panel: str, help: str, *names: str, default: Any = "", **settings: Any) -> Any:
    """A command's own option in one of the panels of cli/help.py; names: where they are not the parameter's own."""
    return typer.Option(default, *names, rich_help_panel=panel, help=help, show_default=False, **settings)


integer = partial(option, default=None, metavar="INTEGER")
number = partial(option, default=None, metavar="NUMBER")
switch = partial(option, default=False)


# What the commands that read a finished run have in common.
RUN_FOLDER = "folder of a run, or its Hub repository"
TEXT_COLUMN = option(
    "Data", "column of the text, or of the first text of a pair (default: as in training)", "--text-column", "--text"
)
TEXT_PAIR_COLUMN = option("Data", "column of the second text (default: as in training)", "--text-pair-column", "--pair")
BASE_OF_RUN = option("Model", "folder or Hub name of the base (default: the one that the run names)")


# Options that several commands have.
DEVICE_HELP = "device (default: auto, the GPU if there is one)"
DEVICE = option("Training", DEVICE_HELP, default="auto", metavar="auto|cpu|cuda")
OVERWRITE = switch("Output", "replace --out where it exists (default: refuse)", "--overwrite")


def flags(settings: type, only: Collection[str] = (), but: Collection[str] = (), default: Mapping[str, str] | None = None) -> list[inspect.Parameter]:  # fmt: skip
    """One option for each field of a dataclass. An option that is not given has no value, so a plan's or the field's own holds.

    default: what the help names as default, by field, where that is not the field's own default.
    """
    parameters, kinds, values = [], get_type_hints(settings), recipes.CHOICES | records.CHOICES
    helps = docs(RunConfig) | docs(settings)
    for field in dataclasses.fields(settings):
        if field.name in but or (only and field.name not in only):
            continue
        kind, text = kinds[field.name], helps[field.name]
        if known := (default or {}).get(field.name) or _shown(field.default):
            text += f" (default: {known})"
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            text += " (required)"
        several, flag = get_origin(kind) is Sequence, option_of(field.name)
        names = [
            flag + flag.replace("--", "/--no-") * (kind is bool),
            *([SHORT[field.name]] if field.name in SHORT else []),
        ]
        value_type = _value_type(*get_args(kind)) if several else _value_type(kind)
        panel, metavar = _panel(settings, field.name), "|".join(values.get(field.name, ())) or METAVARS.get(value_type)
        typer_option = option(panel, text, *names, default=[] if several else None, metavar=metavar)
        annotation: Any = list[value_type] if several else value_type | None  # type: ignore[valid-type]
        parameters.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=typer_option, annotation=annotation)
        )
    return parameters


@cache
def recipe_defaults() -> dict[str, str]:
    """The recipe's defaults as values: those of the default method on the default base, and how they follow the data's size."""
    sizes, defaults = [size for size, *_ in EPOCHS], {}
    by_size = [default_recipe(spec.DEFAULT, HIDDEN, size) for size in (*sizes, sizes[-1] + 1)]
    for field in dataclasses.fields(Recipe):
        values = [getattr(recipe, field.name) for recipe in by_size]
        if values[0] is None:
            continue
        if field.name == "lr":
            defaults["lr"] = (
                f"by method and by the base's hidden size, see `unipelt methods`; {values[0]:g} for {spec.DEFAULT} on {BASE}"
            )
        elif len(set(values)) == 1:
            defaults[field.name] = _shown(values[0])
        else:
            firsts = [i for i, value in enumerate(values) if i == len(values) - 1 or value != values[i + 1]]
            parts = [f"up to {sizes[i]:,}: {values[i]}" for i in firsts[:-1]]
            defaults[field.name] = "by training examples: " + ", ".join(parts) + f", more: {values[-1]}"
    return defaults


def _shown(value: object) -> str:
    """A default as the help shows it; empty where the help says what happens without a value."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None or value is dataclasses.MISSING or isinstance(value, tuple):
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def takes(*parameters: inspect.Parameter) -> Callable[[Callable], Callable]:
    """A command with these options before its own. It gets those that were given as keywords, by their fields' names."""

    def deco(command: Callable) -> Callable:
        own_parameters = [p for p in inspect.signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD]

        def run(**arguments: Any) -> Any:
            own_arguments = {p.name: arguments.pop(p.name) for p in own_parameters}
            options = {name: value for name, value in arguments.items() if value not in (None, [], "")}
            if "k" in options:
                options["k"] = [size(k) for k in options["k"]] if isinstance(options["k"], list) else size(options["k"])
            return command(**own_arguments, **options)

        run.__name__, run.__doc__, run.__module__ = command.__name__, command.__doc__, command.__module__
        every = [*parameters, *(p.replace(kind=p.KEYWORD_ONLY) for p in own_parameters)]
        run.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in every}
        return run

    return deco


def size(text: str) -> int | str:
    """The value of --train-rows. Raises UserError for what is neither a whole number nor all."""
    if text != "all" and not (text.isdecimal() and len(text) < 10 and int(text)):
        raise UserError(f"{FLAGS['k']} {text[:40]}: expected a whole number from 1, or all")
    return text if text == "all" else int(text)


def _panel(settings: type, name: str) -> str:
    if name in MODEL:
        return "Model"
    if name in GENERATION or settings is GenerationSettings:
        return "Generation"
    return "Training" if settings is Recipe or name in TRAINING else "Data"


def _value_type(kind: Any) -> Any:
    """The type of an option's one value: what may be a number or a word is read as a word, and checked later."""
    kinds = [member for member in get_args(kind) or (kind,) if member is not type(None)]
    return str if str in kinds else kinds[0]
