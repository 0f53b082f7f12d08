"""Help pages and checks that every command shares: options in panels, examples, and no option twice.

A command's docstring is its description; the lines after `Examples:` are shown as they stand, and a test parses each of them.
"""

import inspect
import os
import re
import sys
from collections import Counter
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

PANELS = ("Data", "Model", "Training", "Generation", "Output")
OTHER = "Other"
WIDEST = 100  # columns: longer lines of prose are hard to read


def click_error(name: str) -> Any:
    """One of click's exceptions; some versions of typer carry their own copy of click."""
    return next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == name)


class Command(TyperCommand):
    """A command whose options are shown in panels, and that takes each option once."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Raises UsageError where an option that takes one value is given twice."""
        if "--help" not in args:
            _, _, order = self.make_parser(ctx).parse_args(args=list(args))
            for parameter, times in Counter(item for item in order if isinstance(item.name, str)).items():
                if times > 1 and parameter.param_type_name == "option" and not parameter.multiple:
                    flag = parameter.opts[0]
                    raise click_error("UsageError")(f"{flag} is given {times} times; expected once", ctx=ctx)
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print usage, description, options by panel, and examples."""
        _print_page(self, ctx)


class Group(TyperGroup):
    """A group of commands with the same kind of page."""

    def get_help_option(self, ctx: Any) -> Any:
        """The option --help, with a default: typer would load pydantic to convert a missing value, a third of the start."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.default = False
        return option

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print usage, description, commands and options."""
        _print_page(self, ctx)


def description_and_examples(docstring: str | None) -> tuple[str, list[str]]:
    """The text of a docstring before its line `Examples:`, and the lines after it."""
    text, _, examples = inspect.cleandoc(docstring or "").partition("\nExamples:\n")
    return " ".join(text.split()), [line.strip() for line in examples.splitlines() if line.strip()]


def first_sentence(docstring: str | None) -> str:
    """What a command does, for a list of commands."""
    return re.split(r"(?<!et al)\. ", description_and_examples(docstring)[0])[0].removesuffix(".")


def _print_page(command: Any, ctx: Any) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, markup=False, emoji=False)
    console.width = min(WIDEST, int(os.environ.get("COLUMNS", 0)) or (console.width if sys.stdout.isatty() else WIDEST))
    text, examples = description_and_examples(command.help)
    arguments = [
        argument.name.upper() if argument.required else f"[{argument.name.upper()}]"
        for argument in command.get_params(ctx)
        if argument.param_type_name == "argument"
    ]
    arguments = ["COMMAND"] if isinstance(command, TyperGroup) else arguments
    usage = " ".join([ctx.command_path, *arguments, "[options]"])
    console.print(Text("Usage: ", style="bold").append(usage))
    console.print(f"\n{text}\n")
    if isinstance(command, TyperGroup):
        known = {name: command.get_command(ctx, name) for name in command.list_commands(ctx)}
        rows = [(name, first_sentence(subcommand.help)) for name, subcommand in known.items() if subcommand]
        _print_panel(console, "Commands", rows)
    panels: dict[str, list[tuple[str, str]]] = {title: [] for title in ("Arguments", *PANELS, OTHER)}
    for parameter in command.get_params(ctx):
        if parameter.param_type_name == "argument":
            panels["Arguments"].append((parameter.name.upper(), parameter.help or ""))
            continue
        names = ", ".join([*parameter.opts, *parameter.secondary_opts])
        if not parameter.is_flag:
            names += f" {parameter.metavar or 'TEXT'}{' …' * parameter.multiple}"
        text = "show this page" if "--help" in parameter.opts else parameter.help or ""
        panels[parameter.rich_help_panel or OTHER].append((names, text))
    if not isinstance(command, TyperGroup):
        panels[OTHER].append(("--debug", "show the traceback of an error"))
    for title, rows in panels.items():
        _print_panel(console, title, rows)
    if examples:
        console.print("Examples:", style="bold")
        for example in examples:
            console.print(f"  {example}", soft_wrap=True)


def _print_panel(console: Any, title: str, rows: list[tuple[str, str]]) -> None:
    """Two columns in a frame: names, and what they are for."""
    from rich import box
    from rich.panel import Panel
    from rich.table import Table

    if not rows:
        return
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), expand=True)
    table.add_column(style="bold cyan", ratio=2, overflow="fold")
    table.add_column(ratio=4, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(Panel(table, title=title, title_align="left", box=box.ROUNDED, border_style="dim"))
