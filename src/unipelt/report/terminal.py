"""The report on a terminal: the same answer and the same table as on the page."""

from statistics import fmean
from typing import TYPE_CHECKING

from unipelt.report.build import Report
from unipelt.report.claims import claim_line
from unipelt.report.figures import gate_means
from unipelt.report.names import size_label
from unipelt.report.tables import on_terminal

if TYPE_CHECKING:
    from rich.console import Console


def show(made: Report, console: "Console") -> None:
    """The answer, the comparison, the paper's claims, the gates, and what is missing."""
    table = made.tables["comparison"]
    said = [f"{made.study.model}: {made.study.progress}", ": ".join(filter(None, [made.headline, made.why]))]
    more = [
        *table.notes,
        *filter(None, (claim_line(k, claim) for k, of in made.claims.items() for claim in of)),
        *gate_lines(made),
    ]
    more += [f"not measured: {'; '.join(made.missing)}"] * bool(made.missing)
    for line in said:
        console.print(line, markup=False, highlight=False)
    for block in table.blocks:
        console.print()
        console.print(on_terminal(table, block))
    for line in ["", *more]:
        console.print(line, markup=False, highlight=False)


def gate_lines(made: Report) -> list[str]:
    """The mean gate of each gated method by change, over layers, tasks and seeds, from the most open to the least."""
    values: dict[tuple, dict[str, list[float]]] = {}
    for (k, method, _), (_, _, means) in gate_means(made.study).items():
        for (_, change), value in means.items():
            values.setdefault((k, method), {}).setdefault(change, []).append(value)
    lines = []
    for (k, method), changes in values.items():
        order = sorted(((fmean(of), change) for change, of in changes.items()), reverse=True)
        size = "" if made.study.own_file else f", {size_label(k)}"
        lines.append(f"gates of {method}{size}: " + ", ".join(f"{change} {mean:.2f}" for mean, change in order))
    return lines
