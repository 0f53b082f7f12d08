"""A flag is a field: its name, type, default and help are those of the dataclass that it fills."""

import ast
import dataclasses
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

import typer

from unipelt.errors import UserError
from unipelt.train.records import FLAGS


@cache
def docs(settings: type) -> dict[str, str]:
    """The string under each field of a dataclass, by field."""
    (definition,) = ast.parse(inspect.cleandoc(inspect.getsource(settings))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, doc in zip(definition.body, definition.body[1:]):
        if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant):
            found[ast.unparse(field.target)] = " ".join(str(doc.value.value).split())
    return found


def flags(
    settings: type, only: Collection[str] = (), but: Collection[str] = (), default: str | Mapping[str, str] = "",
    called: Mapping[str, str] = FLAGS,
) -> list[inspect.Parameter]:  # fmt: skip
    """A flag for each field of a dataclass. What is not given has no value, so that a plan's, or the field's own, holds.

    default: what the help says of that, of all or by name, where it is not the field's own default. called: flags that are
    not called as their field.
    """
    made, kinds, helps = [], get_type_hints(settings), docs(settings)
    for field in dataclasses.fields(settings):
        if field.name in but or (only and field.name not in only):
            continue
        kind, said = kinds[field.name], helps[field.name]
        if field.default is dataclasses.MISSING and not default:
            said = "needed: " + said
        other = default if isinstance(default, str) else default.get(field.name, "")
        if known := other or _default(field):
            said += f"; default: {known}"
        several, flag = get_origin(kind) is Sequence, called.get(field.name, "--" + field.name.replace("_", "-"))
        option = typer.Option([] if several else None, flag + flag.replace("--", "/--no-") * (kind is bool), help=said)
        taken: Any = list[_one(*get_args(kind))] if several else _one(kind) | None  # type: ignore[misc]
        made.append(inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=taken))
    return made


def takes(*parameters: inspect.Parameter) -> Callable[[Callable], Callable]:
    """A command with these flags before its own: it gets those that were given as its last keywords, by their fields' names."""

    def deco(command: Callable) -> Callable:
        own = [p for p in inspect.signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD]

        def run(**words: Any) -> Any:
            mine = {p.name: words.pop(p.name) for p in own}
            given = {name: value for name, value in words.items() if value not in (None, [], "")}
            if "k" in given:
                given["k"] = [size(k) for k in given["k"]] if isinstance(given["k"], list) else size(given["k"])
            return command(**mine, **given)

        run.__name__, run.__doc__, run.__module__ = command.__name__, command.__doc__, command.__module__
        every = [*parameters, *(p.replace(kind=p.KEYWORD_ONLY) for p in own)]
        run.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in every}
        return run

    return deco


def size(text: str) -> int | str:
    """What --k names. Raises UserError for what is neither a whole number nor all."""
    if text != "all" and not (text.isdecimal() and len(text) < 10 and int(text)):
        raise UserError(f"--k {text[:40]}: expected a whole number from 1, or all")
    return text if text == "all" else int(text)


def _one(kind: Any) -> Any:
    """The type of a flag's one value: a number or a word is read as a word, and judged later."""
    kinds = [one for one in get_args(kind) or (kind,) if one is not type(None)]
    return str if str in kinds else kinds[0]


def _default(field: dataclasses.Field) -> str:
    """A field's default in words; nothing where it says nothing."""
    value = field.default
    if isinstance(value, bool):
        return "" if value else f"no-{field.name.replace('_', '-')}"
    return "" if value is None or value is dataclasses.MISSING or isinstance(value, tuple) else str(value)
