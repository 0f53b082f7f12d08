"""The report on a terminal: the same answer and sentences as on the page, and its tables, the comparison with fewer columns."""

from collections import defaultdict
from statistics import fmean
from typing import TYPE_CHECKING

from unipelt.report.build import Report
from unipelt.report.claims import claim_line
from unipelt.report.comparison import narrow
from unipelt.report.figures import gate_means
from unipelt.report.names import size_label
from unipelt.report.tables import Table, on_terminal

if TYPE_CHECKING:
    from rich.console import Console

MOST = {"mistakes": 5, "classes": 20}
"""rows of a table that a terminal shows"""


def show(made: Report, console: "Console") -> None:
    """Print the answer, the comparison, the sections (comparison of one file) or the paper's claims (study), gates, and what is missing."""

    def say(*lines: str) -> None:
        for line in lines:
            console.print(line, markup=False, highlight=False)

    def draw(table: Table) -> None:
        table = narrow(table) if table.name == "comparison" else table.short(MOST.get(table.name, table.most))
        for place, block in enumerate(table.blocks):
            say(*[""] * bool(place))
            console.print(on_terminal(table, block))
        say(*table.notes)

    own = made.recommendation is not None
    say(f"{made.study.model}: {made.study.progress}", ": ".join(filter(None, [made.headline, made.why])))
    if made.cautions:
        say("", "Before you trust the numbers:", *(f"- {one}" for one in made.cautions))
    for section in made.sections:
        tables = [part for part in section.parts if isinstance(part, Table) and (own or part.name == "comparison")]
        if section.sentence or (tables and not section.folded):
            say("", *[section.title] * own)
            for table in tables:
                draw(table)
    lines = [claim_line(k, claim) for k, of in made.claims.items() for claim in of]
    say("", *filter(None, lines), *gate_lines(made))
    if made.missing:
        say(f"not measured: {'; '.join(made.missing)}")


def gate_lines(made: Report) -> list[str]:
    """The mean gate of each gated method by change, over layers, tasks and seeds, from the most open to the least."""
    values: dict[tuple[int | str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (k, method, _), means in gate_means(made.study).items():
        for (_, change), value in means.items():
            values[k, method][change].append(value)
    lines = []
    for (k, method), changes in values.items():
        order = sorted(((fmean(of), change) for change, of in changes.items()), reverse=True)
        size = "" if made.study.own_file else f", {size_label(k)}"
        lines.append(f"gates of {method}{size}: " + ", ".join(f"{change} {mean:.2f}" for mean, change in order))
    return lines
