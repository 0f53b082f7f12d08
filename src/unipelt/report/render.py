"""The documents of a report: templates that are filled with a report or with one of its tables.

report.html needs nothing but itself; report.md has the same words and tables; table.tex is one table for LaTeX with booktabs.
"""

import re
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from unipelt.report.names import task_label
from unipelt.report.study import Study

if TYPE_CHECKING:
    from jinja2 import Environment

TEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "±": r"$\pm$", "−": r"$-$", "×": r"$\times$", "–": "--", "…": r"\ldots{}", "α": r"$\alpha$",
    **{mark: "\\" + mark for mark in "&%$#_{}"},
}  # fmt: skip


def render(template: str, **values: Any) -> str:
    """A filled template of this package; HTML is escaped, the others escape with the filters `md` and `tex`."""
    return (
        _environment(*("<<", ">>") if template.endswith(".tex") else ("{{", "}}")).get_template(template).render(values)
    )


@cache
def _environment(start: str, end: str) -> "Environment":
    """start and end: what stands around a value in a template; braces are LaTeX's own."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FunctionLoader(lambda name: files("unipelt.report").joinpath(name).read_text("utf-8")),
        autoescape=select_autoescape(["html"]), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        variable_start_string=start, variable_end_string=end,
    )  # fmt: skip
    environment.filters |= {"md": markdown, "tex": latex}
    return environment


def markdown(text: str) -> str:
    """A text on one line, whose special characters are shown as they are."""
    return re.sub(r"([\\|<>*_`\[\]#])", r"\\\1", " ".join(text.split()))


def latex(text: str) -> str:
    """The same for LaTeX."""
    return "".join(TEX.get(letter, letter) for letter in " ".join(text.split()))


def overview(study: Study) -> dict[str, str]:
    """What a reader needs to know about the runs, in words."""
    first = study.chosen[0].record
    tasks = ", ".join(dict.fromkeys(task_label(run.task) for run in study.runs))
    seeds = len({run.seed for run in study.runs})
    shown = {"base": study.model, "tasks": tasks, "sizes": study.sizes, "seeds": seeds, **study.options}
    shown |= {"device": first.device, "versions": first.versions}
    words = {name.replace("_", " "): _words(value) for name, value in shown.items() if name != "model"}
    return {name: text for name, text in words.items() if text}


def _words(value: Any) -> str:
    """Empty for what was not given."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {words}" for name, item in value.items() if (words := _words(item)))
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    return "" if value is None or value is False else str(value)
