"""The report on a terminal: the same answer, sentences and tables as on the page, with fewer rows and columns."""

from typing import TYPE_CHECKING

from unipelt.report.build import Report
from unipelt.report.tables import on_terminal

if TYPE_CHECKING:
    from rich.console import Console


def show(report: Report, console: "Console") -> None:
    """Print the answer, the sections that are for a terminal, and what is missing."""

    def say(*lines: str) -> None:
        for line in lines:
            console.print(line, markup=False, highlight=False)

    say(f"{report.study.model}: {report.study.progress}", ": ".join(filter(None, [report.headline, report.why])))
    if report.cautions:
        say("", "Before you trust the numbers:", *(f"- {caution}" for caution in report.cautions))
    for section in report.sections:
        if not section.on_terminal or not (section.tables or section.sentence):
            continue
        say("", section.title)
        for table in (table.for_terminal() for table in section.tables):
            for index, block in enumerate(table.blocks):
                say(*[""] * bool(index))
                console.print(on_terminal(table, block))
            say(*table.notes)
    if report.missing:
        say("", f"not measured: {'; '.join(report.missing)}")
