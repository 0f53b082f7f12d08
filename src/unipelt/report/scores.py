"""Tables of scores, ours and below them the paper's.          Mao et al. 2022, arXiv:2110.07577, tables 1 to 3"""

import tomllib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from statistics import fmean
from typing import Any

from unipelt.report.names import ALL, PARTS, occurrences, size_label, task_label
from unipelt.report.samples import BEST_CONSTANT, Seeds, metric_label
from unipelt.report.study import MetricGrid, Study
from unipelt.report.tables import Block, Cell, Table, side_by_side, with_best

BOLD_NOTE = "Bold: best, where every method has at least two seeds; not a test of differences."
AVERAGE_NOTE = "An average stands only where every task is there; its deviation is that of the seeds' averages."
BEST_CONSTANT_NOTE = f"{BEST_CONSTANT.capitalize()}: the metric of always predicting one class, the best of them by the test examples; 0 for a correlation."  # fmt: skip
BOUND_NOTE = "Best of …: for each task the part of a mixture with the best test mean, as in the paper's table 2. No method can choose it in advance, so it is an upper bound."  # fmt: skip
SUBSET_NOTE = "* The training set is a subset of the published one, so these are not the paper's numbers for K = all."
BEST_OF = "best of "
Row = dict[str, Seeds]
"""task → seed → metric"""


@cache
def paper() -> dict[str, Any]:
    """See paper.toml."""
    return tomllib.loads(files("unipelt.report").joinpath("paper.toml").read_text(encoding="utf-8"))


def printed(k: int | str) -> MetricGrid:
    """The paper's test metrics by task; none for a size that the paper lacks, or of which it prints only an average."""
    rows = paper()["scores"].get(str(k), {}).items()
    return {(k, task): {method: {0: row[i]} for method, row in rows} for i, task in enumerate(paper()["tasks"])}


def score_table(study: Study) -> Table:
    """Test metrics by size, method and task, with the best parts of mixtures (the paper's table 2) and the best constant answer
    below the methods; below each size the paper's, of the same tasks and methods."""
    tasks, blocks, metrics = study.all_tasks, [], defaultdict(list)
    for k in study.sizes:
        rows, paper_rows = _by_method(study, study.test, k), _by_method(study, printed(k), k)
        heading = f"{size_label(k)} · ours, {study.model} · {study.seeds(k)}"
        blocks.append(
            _block(study, k, {**rows, **_best_parts(study, rows), BEST_CONSTANT: _best_constant(study, k)}, heading)
        )
        heading = f"{size_label(k)} · the paper, {paper()['base']} · 5 seeds"
        blocks += [_block(study, k, paper_rows | _best_parts(study, paper_rows), heading)] if paper_rows else []
    for task in tasks:
        metrics[metric_label(study.metrics[task])].append(task_label(task))
    metrics_text = "; ".join(f"{metric}: {', '.join(names)}" for metric, names in sorted(metrics.items()))
    subsets = study.incomplete if ALL in study.sizes else set()
    notes = [f"Metrics: {metrics_text}. {BOLD_NOTE}", *[AVERAGE_NOTE] * (len(tasks) > 1), BEST_CONSTANT_NOTE]
    notes += [BOUND_NOTE] * any(row[0].text.startswith(BEST_OF) for block in blocks for row in block.rows)
    notes += [SUBSET_NOTE] * bool(subsets)
    if len(blocks) > len(study.sizes):
        notes.append(f"The paper: {paper()['source']}. Its base is {paper()['base']}, ours is {study.model}: compare the order of the methods and their differences, not the scores.")  # fmt: skip
    columns = [
        "method",
        *(task_label(task) + "*" * (task in subsets) for task in tasks),
        *["average"] * (len(tasks) > 1),
    ]
    return Table("scores", "Test metric, mean and standard deviation over seeds", columns, blocks, notes)


def _by_method(study: Study, grid: MetricGrid, k: int | str) -> dict[str, Row]:
    """The metrics of a grid, for the methods and tasks of this size in the study."""
    rows: dict[str, Row] = {}
    for method in study.methods(k):
        row = {task: grid[k, task][method] for task in study.tasks(k) if method in grid.get((k, task), {})}
        rows |= {method: row} if row else {}
    return rows


def _best_parts(study: Study, rows: Mapping[str, Row]) -> dict[str, Row]:
    """For each mixture whose parts are there, with one set of options each: on each task the part with the best mean."""
    bounds: dict[str, Row] = {}
    for mixture, presets in PARTS.items():
        parts = [occurrences(preset, rows) for preset in (mixture, *presets)]
        if all(len(methods) == 1 for methods in parts):
            best, (mixture_method, *others) = {}, [methods[0] for methods in parts]
            for task in rows[mixture_method]:
                known = [rows[other][task] for other in others if task in rows[other]]
                if len(known) == len(others):
                    choose = max if study.metrics[task].higher_is_better else min
                    best[task] = choose(known, key=lambda seeds: fmean(seeds.values()))
            bounds[f"{BEST_OF}{', '.join(others)}"] = best
    return bounds


def _best_constant(study: Study, k: int | str) -> Row:
    """The metric of the best constant answer."""
    samples = {task: study.samples[k, task] for task in study.tasks(k)}
    return {
        task: {0: sample.metric.display_factor * sample.best_constant_score}
        for task, sample in samples.items()
        if sample.best_constant_score is not None
    }


def _block(study: Study, k: int | str, rows: Mapping[str, Row], heading: str) -> Block:
    """The rows that have a task, and their averages. The best method is marked if each has at least two seeds."""
    rows = {name: row for name, row in rows.items() if row}
    methods, averaged = study.methods(k), study.averaged(k)
    columns = []
    for task in study.all_tasks:
        known = {name: row[task] for name, row in rows.items() if task in row}
        most_seeds = max((len(seeds) for name, seeds in known.items() if name in methods), default=0)
        notes = {
            name: f"{len(known[name])} of {most_seeds} seeds"
            for name in known
            if name in methods and len(known[name]) < most_seeds
        }
        cells = {name: Cell.mean(seeds.values(), notes.get(name, "")) for name, seeds in known.items()}
        columns.append((cells, study.metrics[task].sign))
    if len(study.all_tasks) > 1:
        averages = {name: average([row.get(task, {}) for task in averaged]) for name, row in rows.items()}
        columns.append((averages, study.metrics[averaged[0]].sign))
    if all(len(seeds) > 1 for name in rows if name in methods for seeds in rows[name].values()):
        columns = [(with_best(cells, sign, methods), sign) for cells, sign in columns]
    return Block(heading, side_by_side(rows, [cells for cells, _ in columns]))


def average(tasks: Sequence[Seeds]) -> Cell:
    """Mean over tasks, and its standard deviation over the seeds that every task has; empty where a task has none."""
    if not all(tasks):
        return Cell()
    shared = set.intersection(*({*seeds} for seeds in tasks))
    by_seed = [fmean(seeds[seed] for seeds in tasks) for seed in sorted(shared)]
    return Cell(fmean(fmean(seeds.values()) for seeds in tasks), Cell.mean(by_seed).sd if by_seed else None)
