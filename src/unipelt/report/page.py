"""One HTML page that needs nothing but itself."""

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from unipelt.report.names import task_label, task_order
from unipelt.report.scores import ALL
from unipelt.report.study import Study
from unipelt.report.tables import Section


def page(
    study: Study, headline: str, why: str, sections: Sequence[Section], missing: Sequence[str],
    cautions: Sequence[str] = (),
) -> str:  # fmt: skip
    """headline: the answer in one sentence; why: further sentences. missing: what could not be shown, and why.
    cautions: what to know before the numbers are trusted."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    html, css, js = (
        files("unipelt.report").joinpath(f"page.{kind}").read_text("utf-8") for kind in ("html", "css", "js")
    )
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    # inline: of a figure, whose texts were escaped as it was drawn
    return environment.from_string(html).render(
        study=study, headline=headline, why=why, sections=sections, missing=missing, cautions=cautions,
        overview=_overview(study), style=Markup(css), script=Markup(js), inline=Markup,
    )  # fmt: skip


def _overview(study: Study) -> list[tuple[str, str]]:
    """What a reader needs to know about the runs, in words."""
    first = study.chosen[0].record
    shown = [("base", study.model), ("tasks", ", ".join(dict.fromkeys(task_label(run.task) for run in study.runs)))]
    shown += [("sizes", ", ".join(map(str, study.sizes))), ("seeds", str(len({run.seed for run in study.runs})))]
    shown += [(name.replace("_", " "), _words(value)) for name, value in study.options.items() if name != "model"]
    if ALL in study.sizes and study.incomplete:
        subsets = ", ".join(map(task_label, sorted(study.incomplete, key=task_order)))
        shown.append(("subsets", f"K = all is not the published training set of {subsets}"))
    versions = ", ".join(f"{name} {version}" for name, version in (first.versions or {}).items())
    return [(name, words) for name, words in [*shown, ("device", first.device or ""), ("versions", versions)] if words]


def _words(value: Any) -> str:
    """Empty for what was not given."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {words}" for name, one in value.items() if (words := _words(one)))
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    return "" if value is None or value is False else str(value)
