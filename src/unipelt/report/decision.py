"""A comparison's answer as a table: what the validation rows chose, and how each method stands to it on the others."""

from dataclasses import replace

from unipelt.report.recommendation import Line, Verdict
from unipelt.report.scores import gap, scaled
from unipelt.report.significance import LEVEL
from unipelt.report.table import Block, Cell, Table

NOTE = (
    "×100. Validation rows rank the methods and their learning rates; test rows chose nothing. 95 % intervals are over test rows "
    f"and seeds, those of differences paired. Bold: the one to take, and differences that are real: p < {LEVEL:g} after Holm's correction."
)


def decision(found: Verdict) -> Table:
    """Methods from the best on the validation rows to the worst; below them what naming the largest class always gives."""
    rows = [
        [
            Cell(line.method, mark="best" if line.method == found.take else ""),
            scaled(line.validation), replace(gap(line.test, False), signed=False), _against(line, found),
            Cell(line.lr, digits=-1), Cell(line.seeds, digits=0), Cell(f"{line.parameters:,}"),
        ]
        for line in found.lines
    ]  # fmt: skip
    if found.majority is not None:
        rows.append([Cell("largest class"), Cell(""), scaled(found.majority), *[Cell("")] * 4])
    metric = found.metric.replace("_", " ")
    columns = ["method", f"validation {metric}", f"test {metric}", f"against {found.take}", "learning rate", "seeds", "parameters"]  # fmt: skip
    return Table("decision", f"Every method beside {found.take}", columns, [Block("", rows)], [NOTE])


def _against(line: Line, found: Verdict) -> Cell:
    if line.gap is None:
        return Cell("take this one" if line.method == found.take else "no seed in common")
    return gap(line.gap, line.differs)
