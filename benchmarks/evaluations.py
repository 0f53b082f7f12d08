"""Does it harm to evaluate a training less often? The checkpoint is chosen on half of the validation examples, and measured on the
other half.

    python benchmarks/evaluations.py OUT.csv --data-dir GLUE [--tasks stsb sst2 mrpc cola] [--seeds 3] [--methods lora]

K = 100, 50 epochs, evaluated after every second epoch. OUT.csv has a row for each run and evaluation; a run that it holds is not
trained again. What is printed: for a choice among every n-th evaluation, and for the last checkpoint, its score less that of
the choice among all, in points, paired by run, with a 95 % interval by Student's t.
"""

import argparse
import os
from collections import defaultdict
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from recipes import add_rows, half, interval, rows_of, scores

COLUMNS = ("task", "method", "seed", "evaluation", "chosen by", "measured")
EVERY, LAST = (2, 3, 5, 8), 0  # n; 0: the last checkpoint


def measure(task: str, method: str, seeds: list[int], given: argparse.Namespace) -> list[dict[str, object]]:
    """One row for each run and evaluation; the seeds are one fleet."""
    import torch

    from unipelt.train.records import RunConfig
    from unipelt.train.setup import build_fleet

    recipe = {"precision": "bf16", "epochs": 50, "patience": 0}
    configs = [
        RunConfig(model=given.model, task=task, k=100, method=method, seed=seed, data_dir=given.data_dir, recipe=recipe)
        for seed in seeds
    ]
    fleet = build_fleet(configs, runs_at_once=len(configs), device=torch.device("cpu"))
    halves = [[half(plan.validation, part) for plan in fleet.plans] for part in (0, 1)]
    steps, epoch = fleet.plans[0].steps, fleet.plans[0].ends[0]
    rows: list[dict[str, object]] = []
    for step in range(1, steps + 1):
        fleet.step()
        if step % (2 * epoch) == 0:
            found = zip(seeds, *(scores(fleet, part) for part in halves))
            number = step // (2 * epoch)
            rows += [dict(zip(COLUMNS, (task, method, seed, number, *both))) for seed, *both in found]
    return rows


def summary(rows: list[dict[str, str]]) -> None:
    runs: dict[tuple, list[tuple[float, float]]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: int(row["evaluation"])):
        runs[row["task"], row["method"], row["seed"]].append((float(row["chosen by"]), float(row["measured"])))
    for every in (*EVERY, LAST):
        gaps = []
        for curve in runs.values():
            last = len(curve) - 1  # always among them
            some = curve[last:] if every == LAST else [one for n, one in enumerate(curve) if (last - n) % every == 0]
            chosen, best = (max(part, key=lambda one: one[0])[1] for part in (some, curve))  # the first of equals
            gaps.append(100 * (chosen - best))
        what = f"every {every} evaluations ({len(some)})" if every else "the last checkpoint"
        print(f"{what}: {interval(gaps)} over {len(gaps)} runs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data-dir")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--tasks", nargs="+", default=["stsb", "sst2", "mrpc", "cola"])
    parser.add_argument("--methods", nargs="+", default=["lora"])
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    done = {(row["task"], row["method"], int(row["seed"])) for row in rows_of(given.out)}
    for task in given.tasks:
        for method in given.methods:
            if seeds := [seed for seed in range(given.seeds) if (task, method, seed) not in done]:
                add_rows(given.out, COLUMNS, measure(task, method, seeds, given))
                print(task, method, flush=True)
    summary(rows_of(given.out))


if __name__ == "__main__":
    main()
