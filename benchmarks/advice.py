"""How good is the advice of `unipelt compare`? Files are drawn from larger data sets, whose other examples say what is true.

    python benchmarks/advice.py results.csv --data-dir GLUE                  # 5 tasks x 3 sizes x 6 draws; continues where it was stopped
    python benchmarks/advice.py results.csv --summary                        # the table of what is there

For each draw: cross-validation with the product's own code, its recommendation, every method trained on all examples of the
file, and its score on at most REST others. A recommendation is good where its score there is at most one point (0.01)
below the best method's. The stated 95 % interval is that of the recommended method's score.
"""

import argparse
import csv
import json
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import torch

from unipelt.data import Examples
from unipelt.data.splits import shuffled
from unipelt.report.recommendation import recommend
from unipelt.report.study import read
from unipelt.study.compare import open_store, refit, usual_folds
from unipelt.study.engine import hidden_size, run_study
from unipelt.study.plan import StudyConfig, learning_rates
from unipelt.tasks.metrics import METRICS
from unipelt.tasks.registry import load
from unipelt.train import baselines
from unipelt.train.records import RunKey
from unipelt.train.setup import DatasetCache

TASKS = ("sst2", "cola", "stsb", "docstrings", "rte")
SIZES = (64, 200, 1000)
REST = 1000  # examples of a data set, at most, that are in no file: every method is scored on them
GOOD = 0.01  # of accuracy or a correlation
FIELDS = (
    "task",
    "size",
    "draw",
    "metric",
    "take",
    "best",
    "short",
    "score",
    "low",
    "high",
    "truth",
    "seconds",
    "scores",
)


class Pool:
    """A data set as one list of examples, and the states of its texts, which are computed once for all draws."""

    def __init__(self, name: str, data_dir: str):
        self.task, dataset = load(name, data_dir=data_dir if name != "docstrings" else None)
        every = dataset.train if dataset.test is None else dataset.train.joined(dataset.test)
        first = {key: place for place, key in reversed([*enumerate(every.keys)])}  # a text once
        different = sorted(first.values())
        order = [different[place] for place in shuffled(len(different), 0)]
        kept = min(REST, len(order) // 2)
        self.rest, self.others = every.take(order[:kept]), every.take(order[kept:])

    def draw(self, size: int, draw: int) -> Examples:
        """The examples of a file; a larger file of the same draw begins with them."""
        return self.others.take(shuffled(len(self.others), 1 + draw)[:size])

    def write(self, examples: Examples, path: Path) -> None:
        """The file as a user has it: with the names of classes."""
        rows = []
        for place, target in enumerate(examples.targets or []):
            label = self.task.labels[target] if self.task.labels else target
            rows.append({**{name: texts[place] for name, texts in examples.inputs.items()}, "label": label})
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def advise(pool: Pool, size: int, draw: int, tuned: list[str], folder: Path, recipe: dict) -> dict:
    """One comparison: what it recommends and states, and what is true."""
    began = time.monotonic()
    rest, path = pool.rest, folder / "data.jsonl"
    pool.write(pool.draw(size, draw), path)
    study = StudyConfig(columns={"kind": pool.task.kind, "metric": pool.task.metric}, recipe=recipe)
    cache, methods = DatasetCache(), [*baselines.usual_baselines(pool.task), *tuned]
    hidden = hidden_size(study.model)
    first = RunKey(task=str(path), k="all", method="constant", seed=0, lr=None)
    folds, _ = usual_folds(study, first, cache)
    if not folds:
        return {}  # too few examples of a class for folds: not what is evaluated here
    study = replace(study, folds=folds)
    plan = [
        replace(first, method=m, seed=s, lr=learning_rates(m, hidden, (), 1)[0]) for m in methods for s in range(folds)
    ]
    store, _ = open_store(folder / "study", study, plan, plan, cache)
    for _ in run_study(store, study, device="cpu", log=lambda text: None, cache=cache):
        pass
    advice = recommend(read(store))
    store.close()
    scores = {}
    task = cache.task(study.config(first))
    targets = [task.labels.index(pool.task.labels[one]) if task.labels else one for one in rest.targets or []]
    for key in plan[::folds]:
        there = folder / "refit" / key.method
        refit(study, key.method, key.lr, key.task, there, device="cpu", log=lambda text: None)
        logits, encoded = baselines.load_predictor(str(there), device="cpu").outputs(rest)
        scores[key.method] = task.score(task.decide(logits, encoded), targets)[task.metric]
    line = advice.comparison.reference_line
    sign = 1 if METRICS[task.metric].higher_is_better else -1
    best = max(scores, key=lambda method: sign * scores[method])
    return {
        "metric": task.metric, "take": advice.method, "best": best, "short": sign * (scores[best] - scores[advice.method]),
        "score": line.score.value, "low": line.score.low, "high": line.score.high, "truth": scores[advice.method],
        "seconds": round(time.monotonic() - began, 1), "scores": json.dumps(scores),
    }  # fmt: skip


def summary(path: Path) -> None:
    """By size, and over all: how often the advice is good, and how often the interval holds the truth."""
    groups = defaultdict(list)
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            if row["take"]:
                for group in (f"{row['size']} examples", row["task"], "all"):
                    groups[group].append(row)
    for group, rows in groups.items():
        good = sum(float(row["short"]) <= GOOD + 1e-9 for row in rows)
        held = sum(float(row["low"]) <= float(row["truth"]) <= float(row["high"]) for row in rows)
        width = sum(float(row["high"]) - float(row["low"]) for row in rows) / len(rows)
        bias = sum(float(row["score"]) - float(row["truth"]) for row in rows) / len(rows)
        print(
            f"{group}: {len(rows)} comparisons, within one point of the best {good / len(rows):.0%}, truth in the interval"
            f" {held / len(rows):.0%}, interval {100 * width:.1f} points wide, score {100 * bias:+.1f} points above the truth"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="CSV file, a line a comparison; what it has is not done again")
    parser.add_argument("--data-dir", default="glue", help="folder with GLUE as Parquet files")
    parser.add_argument("--draws", type=int, default=6)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--tuned", nargs="*", default=[], help="methods beside the baselines, such as head")
    parser.add_argument("--epochs", type=int, default=None, help="of these")
    parser.add_argument("--summary", action="store_true", help="only print the table of what is there")
    given = parser.parse_args()
    if given.summary:
        return summary(given.results)
    torch.set_num_threads(1)
    given.results.parent.mkdir(parents=True, exist_ok=True)
    done = set()
    if given.results.exists():
        with open(given.results, newline="") as file:
            done = {(row["task"], int(row["size"]), int(row["draw"])) for row in csv.DictReader(file)}
    recipe = {} if given.epochs is None else {"epochs": given.epochs}
    plain, pools = baselines.frozen_base, {name: Pool(name, given.data_dir) for name in given.tasks}
    bases: dict[tuple, baselines.FrozenBase] = {}
    for size in given.sizes:
        for draw in range(given.draws):
            for name, pool in pools.items():
                if (name, size, draw) in done:
                    continue

                def shared(config, task, device, max_length, pool=name):
                    """The base of all draws of a pool: each text is read once."""
                    key = pool, len(task.labels), config.method
                    if key not in bases:
                        bases[key] = plain(config, task, device, max_length)
                    return bases[key]

                baselines.frozen_base = shared
                with tempfile.TemporaryDirectory() as folder:
                    found = advise(pool, size, draw, given.tuned, Path(folder), recipe)
                row = {"task": name, "size": size, "draw": draw, **found}
                new = not given.results.exists()
                with open(given.results, "a", newline="") as file:
                    writer = csv.DictWriter(file, FIELDS, restval="")
                    if new:
                        writer.writeheader()
                    writer.writerow(row)
                print(row, flush=True)
    summary(given.results)


if __name__ == "__main__":
    main()
