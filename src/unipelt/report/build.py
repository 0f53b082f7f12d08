"""A whole report as one value: its answer, its sections, and its files. Nothing is written here."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from unipelt.report.claims import claim_table, claims
from unipelt.report.comparison import compare, comparison_table, headline
from unipelt.report.details import failure_table, read_cost_table
from unipelt.report.drawing import Figure
from unipelt.report.figures import curves, difference_figures, gates
from unipelt.report.names import size_label, task_label
from unipelt.report.recommendation import Recommendation, recommend
from unipelt.report.render import overview, render
from unipelt.report.scores import score_table
from unipelt.report.sections import comparison_sections
from unipelt.report.study import CSV_COLUMNS, Study, read
from unipelt.report.sweeps import sweep_figures
from unipelt.report.tables import Section, csv_text, table_csv
from unipelt.study.store import EFFICIENCY, Store

PAGE = "report.html"


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the terminal, the page and every file show."""

    study: Study
    headline: str
    why: str = ""
    """further sentences about it"""
    cautions: Sequence[str] = ()
    """what to know before the numbers are trusted"""
    sections: Sequence[Section]
    recommendation: Recommendation | None = None
    """of a comparison on one's own file"""

    @property
    def missing(self) -> list[str]:
        """What the runs have no data for, and why."""
        return [
            f"{section.heading.lower()} ({section.if_empty})"
            for section in self.sections
            if section.if_empty and not section.visible
        ]

    @property
    def visible(self) -> list[Section]:
        """The sections that have something to show."""
        return [section for section in self.sections if section.visible or section.sentence]

    @cached_property
    def files(self) -> dict[str, bytes]:
        """Their contents by name: the page, the same as Markdown, every table and figure, and the runs."""
        files = {
            PAGE: render("page.html", report=self, overview=overview(self.study)).encode(),
            "report.md": render("report.md", report=self).encode(),
            "runs.csv": csv_text([CSV_COLUMNS, *(run.csv_row for run in self.study.chosen)]).encode(),
        }
        for item in (item for section in self.visible for item in section.visible):
            if isinstance(item, Figure):
                files |= {f"{item.name}.{suffix}": data for suffix, data in item.files.items()}
            else:
                files[f"{item.name}.csv"] = table_csv(item).encode()
                files[f"{item.name}.tex"] = render("table.tex", table=item.short()).encode()
        return files


def build(folder: Path) -> Report:
    """The report of a study's folder. Raises UserError where there is no study, or none of its runs is finished."""
    store = Store.read(folder)
    try:
        study = read(store)
        return _of_own_file(study, store) if study.is_comparison else _of_study(study, folder)
    finally:
        store.close()


def _of_own_file(study: Study, store: Store) -> Report:
    advice = recommend(study)
    cautions, evidence = comparison_sections(study, advice, store)
    sections = [
        Section("Methods", [advice.table]),
        *evidence,
        Section("Gates", gates(study)),
        Section("Training", curves(study)),
        Section("Details", [failure_table(study)], folded=True, on_terminal=False),
    ]
    return Report(
        study=study, headline=f"Take {advice.method}", why=advice.why, cautions=cautions, sections=sections,
        recommendation=advice,
    )  # fmt: skip


def _of_study(study: Study, folder: Path) -> Report:
    judged = claim_table({k: claims(study.samples_of(k)) for k in study.sizes}, study.one_rate)
    by_size = {
        size_label(k) + (f", {comparison.tasks} tasks" if comparison.tasks > 1 else ""): comparison
        for k, comparison in study.compared.items()
    }
    compared = comparison_table("comparison", "Every method compared with the best", by_size)
    by_task = {  # none in a study of one task, where it would be the same
        f"{size_label(k)}, {task_label(task)}": compare([sample], [*sample.values])
        for (k, task), sample in study.samples.items()
        if len(study.all_tasks) > 1 and len(sample.values) > 1
    }
    differences = comparison_table("differences", "Every method compared with the best of each task", by_task)
    costs = read_cost_table(folder / EFFICIENCY)
    no_costs = f"no {EFFICIENCY}: run `unipelt study efficiency`"
    sections = [
        Section("Comparison", [*difference_figures(study), compared]),
        Section("The papers' claims", [judged], if_empty="no runs of the methods that they are about"),
        Section("Scores", [score_table(study)], on_terminal=False),
        Section("Costs", [costs], on_terminal=False, if_empty=no_costs),
        Section("One option varied", sweep_figures(study.test), if_empty="no preset with three values of one option"),
        Section("Gates", gates(study), if_empty="no run has recorded any"),
        Section("Learning curves", curves(study), if_empty="no run was evaluated twice"),
        Section("Details", [differences, failure_table(study)], folded=True, on_terminal=False),
    ]
    return Report(study=study, headline=headline(study.compared), sections=sections)
