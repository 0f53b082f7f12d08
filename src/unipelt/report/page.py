"""One HTML page that needs nothing but itself."""

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from unipelt.report.answer import Answer, headline, interval, progress, signed
from unipelt.report.drawing import Figure
from unipelt.report.names import task_label
from unipelt.report.study import Study
from unipelt.report.table import Table


def page(
    study: Study,
    found: Sequence[Answer],
    sections: Sequence[tuple[str, Sequence[Table | Figure]]],
    missing: Sequence[str],
) -> str:
    """sections: a heading and what stands under it; missing: what could not be shown, in words."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    def text(name: str) -> str:
        return files("unipelt.report").joinpath(name).read_text(encoding="utf-8")

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"signed": signed, "interval": interval}
    return environment.from_string(text("page.html")).render(
        study=study,
        answers=found,
        headline=headline(found),
        progress=progress(study),
        sections=sections,
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
        (name.replace("_", " "), str(value))
        for name, value in study.facts.items()
        if name != "model" and value not in (None, {}, [])
    ]
    shown += [("device", first["device"])] if first["device"] else []
    shown += (
        [("versions", ", ".join(f"{name} {version}" for name, version in first["versions"].items()))]
        if first["versions"]
        else []
    )
    return shown
