"""UniPELT's low-resource table on one base (Mao et al. 2022, table 1): GLUE tasks × sizes × methods × seeds, one run after another.

    python benchmarks/table.py OUT.csv --data-dir GLUE [--k 100 500 1000] [--tasks …] [--methods …] [--seeds 0 1 2 3 4] [--num-rates 2]
    python benchmarks/table.py OUT.csv --summary

Runs are those of `unipelt study grid` with the same options: same examples, recipe and seeds, whole test sets. A row of OUT.csv holds
the whole process's CPU seconds for the run, the validation metric at each evaluation, and the mean gates, so that a table can be
continued on another machine. A run that OUT.csv holds is not trained again. What `--summary` prints: each size's table (× 100, mean
over seeds), the paper's three claims paired by seed, and the hours of the paper's whole grid. Of several learning rates it takes, as
`unipelt report` does, one for each task, size and method: that with the most seeds, then with the best mean validation metric.
"""

import argparse
import json
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from recipes import add_rows, interval, rows_of

from unipelt.report.study import Run, choose_rates
from unipelt.train.records import RunConfig, RunRecord

COLUMNS = (
    "task", "k", "method", "seed", "lr", "metric", "validation", "test", "status", "steps", "precision", "cpu seconds",
    "validation curve", "gates",
)  # fmt: skip
TASKS = ("cola", "sst2", "mrpc", "stsb", "rte", "qnli", "mnli", "qqp")
MIXTURE, FULL = "unipelt-apl", "full"
PARTS = ("adapter", "prefix", "lora")
METHODS = (FULL, "bitfit", "head", *PARTS, "unipelt-ap", MIXTURE, "unipelt-apl-nogate", "mam")
GRID = {"methods": 7, "seeds": 5}
"""the paper's grid, for the estimate of its hours"""

Key = tuple[str, int, str, int]


def key_of(row: dict[str, str]) -> Key:
    return row["task"], int(row["k"]), row["method"], int(row["seed"])


def chosen_rates(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The rows of each task, size and method at one learning rate, chosen as a report chooses it."""
    runs = []
    for row in rows:
        task, k, method, seed = key_of(row)
        record = RunRecord(status=row["status"], metric=row["metric"], validation=float(row["validation"]))
        runs.append(Run(task=task, k=k, method=method, seed=seed, lr=float(row["lr"]), record=record))
    chosen = {run.key for run in choose_rates(runs)}
    return [row for row, run in zip(rows, runs) if run.key in chosen]


def measure(key: Key, lr: float, given: argparse.Namespace, cache: Any) -> dict[str, Any]:
    """Train one run and return its row."""
    import torch

    from unipelt.train.setup import build_fleet

    task, k, method, seed = key
    began = time.process_time()
    config = RunConfig(
        model=given.model, task=task, k=k, method=method, seed=seed, data_dir=given.data_dir, recipe={"precision": given.precision, "lr": lr}
    )  # fmt: skip
    (finished,) = build_fleet([config], runs_at_once=1, device=torch.device("cpu"), cache=cache).train()
    record = finished.record
    if not record.done:
        raise SystemExit(f"{key}: {record.status}")
    gates = {path: round(values["mean"], 3) for path, values in (record.gates or {}).items()}
    curve = " ".join(f"{one['epoch']}:{one[record.metric]:.4f}" for one in record.curve or ())
    recipe = record.recipe or {}
    values = (
        *(task, k, method, seed, recipe["lr"], record.metric, record.validation, record.test, record.status, record.steps),
        *(recipe["precision"], round(time.process_time() - began, 1), curve, json.dumps(gates) if gates else ""),
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def summary(rows: list[dict[str, str]]) -> Iterator[str]:
    test = {key_of(row): 100 * float(row["test"]) for row in chosen_rates(rows)}
    for k in sorted({key[1] for key in test}):
        methods = list(dict.fromkeys(method for _, size, method, _ in test if size == k))
        yield f"\nK = {k}\n| method | {' | '.join(TASKS)} | average | seeds |\n|{'---|' * (len(TASKS) + 3)}"
        for method in methods:
            seeds = {task: [test[key] for key in test if key[:3] == (task, k, method)] for task in TASKS}
            cells = [f"{statistics.fmean(found):.1f}" if found else "–" for found in seeds.values()]
            whole = averages(test, k, method)
            average = f"{statistics.fmean(whole.values()):.1f}" if whole else "–"
            yield f"| {method} | {' | '.join(cells)} | {average} | {len(whole)} |"
        yield from claims(test, k)
    yield from hours(rows)


def averages(test: dict[Key, float], k: int, method: str) -> dict[int, float]:
    """The mean over all tasks by seed, for the seeds that have all of them."""
    seeds = {key[3] for key in test if key[1:3] == (k, method)}
    found = {seed: [test[task, k, method, seed] for task in TASKS if (task, k, method, seed) in test] for seed in seeds}
    return {seed: statistics.fmean(values) for seed, values in sorted(found.items()) if len(values) == len(TASKS)}


def claims(test: dict[Key, float], k: int) -> Iterator[str]:
    """Differences of each task and of the averages over all tasks, paired by seed, in points."""
    ours = averages(test, k, MIXTURE)
    for other in (*PARTS, FULL):
        pairs = [ours[seed] - value for seed, value in averages(test, k, other).items() if seed in ours]
        if pairs:
            yield f"{MIXTURE} - {other}: {interval(pairs)} over {len(pairs)} seeds"
        for task in TASKS:
            seeds = [seed for name, size, method, seed in test if (name, size, method) == (task, k, MIXTURE)]
            known = [seed for seed in seeds if (task, k, other, seed) in test]
            if pairs := [test[task, k, MIXTURE, seed] - test[task, k, other, seed] for seed in known]:
                yield f"{MIXTURE} - {other} on {task}: {interval(pairs)} over {len(pairs)} seeds"
    worst = []
    for task in TASKS:
        means = {
            method: statistics.fmean(test[task, k, method, seed] for seed in ours if (task, k, method, seed) in test)
            for method in (MIXTURE, *PARTS, FULL)
            if ours and all((task, k, method, seed) in test for seed in ours)
        }
        if len(means) == len(PARTS) + 2 and min(means, key=lambda name: means[name]) == MIXTURE:
            worst.append(task)
    if ours:
        yield f"{MIXTURE} has the lowest mean of the five on: {', '.join(worst) or 'no task'}"


def hours(rows: list[dict[str, str]]) -> Iterator[str]:
    """Hours of the paper's grid on two cores, by the mean CPU seconds of the runs of each size and task.

    Only runs of the precision that most have are counted: a machine without bf16 takes a multiple of the time.
    """
    seconds: dict[tuple[int, str], list[float]] = defaultdict(list)
    precision = statistics.mode(row["precision"] for row in rows)
    for row in rows:
        if row["cpu seconds"] and row["precision"] == precision:
            seconds[int(row["k"]), row["task"]].append(float(row["cpu seconds"]))
    for k in sorted({size for size, _ in seconds}):
        known = [statistics.fmean(seconds[k, task]) for task in TASKS if seconds[k, task]]
        yield f"K = {k}: {sum(len(seconds[k, task]) for task in TASKS)} runs timed, {statistics.fmean(known):.0f} CPU s each on average over {len(known)} of {len(TASKS)} tasks"
    sizes = [(k, task) for k in (100, 500, 1000) for task in TASKS]
    if all(seconds[one] for one in sizes):
        each = GRID["methods"] * GRID["seeds"] * sum(statistics.fmean(seconds[one]) for one in sizes)
        yield f"the paper's grid of {len(sizes) * GRID['methods'] * GRID['seeds']} runs: {each / 3600 / 2:.1f} hours on two cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data-dir")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--k", type=int, nargs="+", default=[100])
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--num-rates", type=int, default=1, help="the method's default rate, a third of it, …")
    parser.add_argument("--summary", action="store_true")
    given = parser.parse_args()
    rows = rows_of(given.out)
    if given.summary:
        for line in summary(rows):
            print(line)
        return

    import torch

    from unipelt.study.engine import hidden_size
    from unipelt.study.plan import learning_rates
    from unipelt.train.setup import DatasetCache

    torch.set_num_threads(1)
    cache, done, width = DatasetCache(), {(*key_of(row), float(row["lr"])) for row in rows}, hidden_size(given.model)
    for seed, k, task, method in product(given.seeds, given.k, given.tasks, given.methods):
        for lr in learning_rates(method, width, (), given.num_rates):
            if (task, k, method, seed, lr) in done:
                continue
            row = measure((task, k, method, seed), lr, given, cache)
            add_rows(given.out, COLUMNS, [row])
            print(
                f"{task} {k} {method} seed {seed} lr {lr:g}: test {100 * row['test']:.1f}, {row['cpu seconds']} CPU s",
                flush=True,
            )


if __name__ == "__main__":
    main()
