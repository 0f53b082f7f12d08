"""The report on a terminal: the answer, the averages, the claims."""

from typing import TYPE_CHECKING

from unipelt.report.answer import interval, progress, signed
from unipelt.report.build import Report
from unipelt.report.cells import average
from unipelt.report.names import method_order

if TYPE_CHECKING:
    from rich.console import Console


def summary(made: Report, console: "Console") -> None:
    """A line a size, one table of averages, a line a claim and size."""
    from rich.table import Table
    from rich.text import Text

    study = made.study
    said = [f"{study.model}: {progress(study)}", *[made.said] * study.own_rows, *(one.said for one in made.answers)]
    if not made.answers and not study.own_rows:
        said.append("nothing can be compared yet: the methods have no task in common")
    console.print("\n".join(said), markup=False, highlight=False)
    table = Table(box=None, pad_edge=False)
    table.add_column("average test metric ×100")
    for k in study.sizes:
        table.add_column(f"K = {k}", justify="right")
    for method in sorted({method for k in study.sizes for method in study.methods(k)}, key=method_order):
        cells = [average(study.test, k, method, study.tasks(k)) for k in study.sizes]
        shown = [
            "" if cell is None else f"{100 * cell[0]:.1f}" + ("" if cell[1] is None else f" ± {100 * cell[1]:.1f}")
            for cell in cells
        ]
        if any(shown):
            table.add_row(Text(method), *shown)
    if table.row_count:
        console.print(table)
    for k, claims in made.claims.items():
        for claim in claims:
            number = "" if claim.number is None else f" ({signed(claim.number.value)}, {interval(claim.number)})"
            if claim.number is not None:
                console.print(f"K = {k}: {claim.text}: {claim.verdict}{number}", markup=False, highlight=False)
    if made.missing:
        console.print(f"not measured: {'; '.join(made.missing)}", markup=False, highlight=False)
