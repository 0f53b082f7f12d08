"""One HTML page that needs nothing but itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from unipelt.report.answer import Answer, interval, progress, signed
from unipelt.report.drawing import Figure
from unipelt.report.names import task_label, task_order
from unipelt.report.scores import ALL
from unipelt.report.study import Study
from unipelt.report.table import Table
from unipelt.study.store import COMPARISON


@dataclass(frozen=True)
class Section:
    """A heading, and what stands under it."""

    heading: str
    parts: Sequence[Table | Figure]
    folded: bool = False
    """each part opens with a click"""


def page(
    study: Study, headline: str, why: str, found: Sequence[Answer], sections: Sequence[Section], missing: Sequence[str]
) -> str:
    """headline: the answer in words; why: what else is to be said of it. missing: what could not be shown, in words."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    def text(name: str) -> str:
        return files("unipelt.report").joinpath(name).read_text(encoding="utf-8")

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"signed": signed, "interval": interval}
    return environment.from_string(text("page.html")).render(
        study=study,
        answers=found,
        headline=headline,
        why=why,
        progress=progress(study),
        sections=[section for section in sections if section.parts],
        missing=missing,
        facts=_facts(study),
        style=Markup(text("page.css")),
        script=Markup(text("page.js")),
        inline=Markup,  # of a figure: its texts were escaped as it was drawn
        is_table=lambda part: isinstance(part, Table),
    )


def _facts(study: Study) -> list[tuple[str, str]]:
    """What a reader needs to know about the runs, in words."""
    first: dict[str, Any] = study.chosen[0]
    shown = [("base", study.model), ("tasks", ", ".join(dict.fromkeys(task_label(row["task"]) for row in study.runs)))]
    shown += [("sizes", ", ".join(map(str, study.sizes))), ("seeds", str(len({row["seed"] for row in study.runs})))]
    shown += [
        (name.replace("_", " "), _words(value))
        for name, value in study.facts.items()
        if name not in ("model", COMPARISON) and _words(value)
    ]
    if ALL in study.sizes and study.incomplete:
        shown.append(
            (
                "subsets",
                f"K = all is not the published training set of {', '.join(map(task_label, sorted(study.incomplete, key=task_order)))}",
            )
        )
    shown += [("device", first["device"])] if first["device"] else []
    shown += (
        [("versions", ", ".join(f"{name} {version}" for name, version in first["versions"].items()))]
        if first["versions"]
        else []
    )
    return shown


def _words(value: Any) -> str:
    """Empty for what was not given."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {words}" for name, one in value.items() if (words := _words(one)))
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    return "" if value is None or value is False else str(value)
