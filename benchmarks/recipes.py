"""Which recipe suits a gated mixture when labels are few? Paired by task and seed; real GLUE.

    python benchmarks/recipes.py OUT.csv --data-dir GLUE --design [--blocks stsb/0 sst2/1 …]
    python benchmarks/recipes.py OUT.csv --data-dir GLUE --variants base '1,000 steps' lora … [--blocks …]
    python benchmarks/recipes.py OUT.csv --summary

`--design`: seven factors at two levels in eight recipes (a 2^(7-4) fractional factorial), so that each run tells of every factor:
the effect of a factor is the mean of four runs less that of the other four, within a block of one task and one seed. Every
second block has the reversed levels, so that an effect is not mixed up with a pair of others'. `--variants`: one factor at a time.

The checkpoint is chosen on the first half of the validation examples, and what is written is measured on the second, so choosing
and measuring share no example: the best checkpoint, the last one, and the average of the weights of the last quarter of the
steps, all of one training. Rows that OUT.csv holds already are not trained again. Recipes of one method are one fleet. Seconds
are the process's own CPU seconds, shared equally by the runs of a fleet.
"""

import argparse
import csv
import math
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

COLUMNS = ("variant", "task", "k", "seed", "metric", "steps", "best step", "best", "last", "averaged", "seconds")
KINDS = ("best", "last", "averaged")
CHECKPOINTS = 7  # evaluations of a training, evenly spaced
LAST_QUARTER = 0.75
T_95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26, 10: 2.23, 11: 2.20, 14: 2.14}
BLOCKS = [
    f"{task}/{seed}"
    for seeds in ((0, 1), (2, 0), (1, 2))
    for task, seed in zip(("stsb", "sst2", "mrpc", "cola"), (*seeds, *seeds))
]

RATE = 1e-3  # of unipelt-apl on a base of fewer than 512 hidden units
FACTORS: dict[str, dict[str, Any]] = {
    "prefix x3": {"lr_prefix": 3 * RATE},
    "adapter and lora x3": {"lr_adapter": 3 * RATE, "lr_lora": 3 * RATE},
    "head x10": {"lr_head": 10 * RATE},
    "gates x10": {"lr_gate": 10 * RATE},
    "no-op adapter start": {"init": "lora"},
    "gates start at 0.88": {"gate_start": 0.88},
    "half-sized modules": {"bottleneck": 24, "prefix": 5, "r": 4},
}
"""what differs from the default recipe of unipelt-apl"""
SINGLE: dict[str, dict[str, Any]] = {
    "base": {}, **FACTORS, "probe start": {"head_start": "probe"}, "1,000 steps": {"steps": 1000}, "warm-up 0.2": {"warmup": 0.2}, "prefix x10": {"lr_prefix": 10 * RATE},
    "prefix without MLP": {"mlp": 0}, "prefix without MLP x10": {"mlp": 0, "lr_prefix": 10 * RATE}, "all x3": {"lr": 3 * RATE},
    "gates x0.1": {"lr_gate": RATE / 10}, "fp32": {"precision": "fp32"}, "no gates": {"method": "unipelt-apl-nogate"},
    "lora": {"method": "lora"}, "lora, probe start": {"method": "lora", "head_start": "probe"},
    "full, probe start": {"method": "full", "head_start": "probe"}, "adapter": {"method": "adapter"}, "prefix": {"method": "prefix"}, "full": {"method": "full"},
    "head": {"method": "head"}, "lora, 1,000 steps": {"method": "lora", "steps": 1000},
}  # fmt: skip
OPTIONS = ("bottleneck", "prefix", "r", "mlp", "init")  # of the method; the rest is the recipe's, but for these two
OWN = ("method", "steps", "gate_start")


def design(reversed_: bool) -> list[str]:
    """The eight recipes of a block, each by the names of its factors at the high level, joined by ` + `."""
    names = list(FACTORS)
    recipes = []
    for a, b, c in product((-1, 1), repeat=3):
        levels = (a, b, c, -a * b, -a * c, -b * c, a * b * c)
        high = [name for name, level in zip(names, levels) if (level > 0) != reversed_]
        recipes.append(" + ".join(high) or "base")
    return recipes


def settings(variant: str) -> dict[str, Any]:
    """Everything in which a recipe differs from the default one."""
    changed: dict[str, Any] = {}
    for name in variant.split(" + "):
        changed |= SINGLE[name]
    return changed


def method_of(variant: str) -> str:
    changed = settings(variant)
    options = ", ".join(f"{name}={changed[name]!r}" for name in OPTIONS if name in changed)
    return changed.get("method", "unipelt-apl") + (f"({options})" if options else "")


def measure(variants: list[str], task: str, seed: int, given: argparse.Namespace, cache: Any) -> list[dict[str, Any]]:
    """One row a variant; they have one method and one number of steps."""
    import torch

    from unipelt.inject.state import mixture_state
    from unipelt.train.records import RunConfig
    from unipelt.train.setup import build_fleet

    asked = [settings(variant) for variant in variants]
    epochs = max(1, round(asked[0].get("steps", 350) / -(-given.k // 16)))
    configs = []
    for one in asked:
        recipe = {name: value for name, value in one.items() if name not in (*OPTIONS, *OWN)}
        recipe = {"precision": "bf16", "epochs": epochs, "patience": 0} | recipe
        method = method_of(variants[0])
        configs.append(
            RunConfig(
                model=given.model,
                task=task,
                k=given.k,
                method=method,
                seed=seed,
                data_dir=given.data_dir,
                recipe=recipe,
            )
        )
    fleet = build_fleet(configs, runs_at_once=len(configs), device=torch.device("cpu"), cache=cache)
    for run, one in enumerate(asked):
        if (start := one.get("gate_start")) is not None:
            for name, parameter in mixture_state(fleet.model).named_parameters():
                if name.endswith("score.bias"):
                    parameter.data[run].fill_(math.log(start / (1 - start)))
    fleet.start_heads([*range(len(variants))])
    steps, runs = fleet.plans[0].steps, range(len(variants))
    due = {round(steps * (number + 1) / CHECKPOINTS) for number in range(CHECKPOINTS)}
    choosing, measuring = ([half(plan.validation, part) for plan in fleet.plans] for part in (0, 1))
    best_scores, best_steps = [-math.inf] * len(variants), [0] * len(variants)
    best, average, averaged = fleet.matrix.values.clone(), torch.zeros_like(fleet.matrix.values), 0
    began = time.process_time()
    for step in range(1, steps + 1):
        fleet.step()
        if any(record.ended for record in fleet.records):
            raise SystemExit(f"{variants} on {task}: {[record.status for record in fleet.records]}")
        if step > steps * LAST_QUARTER:
            averaged += 1
            average.lerp_(fleet.matrix.values, 1 / averaged)
        if step in due:
            for run, score in enumerate(scores(fleet, choosing)):
                if score > best_scores[run] or not best_steps[run]:
                    best_scores[run], best_steps[run] = score, step
                    best[run].copy_(fleet.matrix.values[run])
    said = {"last": scores(fleet, measuring)}
    for name, values in (("best", best), ("averaged", average)):
        with fleet._with_parameters(values):
            said[name] = scores(fleet, measuring)
    seconds = round((time.process_time() - began) / len(variants), 1)
    metric = fleet.plans[0].task.metric
    return [
        {
            "variant": variants[run], "task": task, "k": given.k, "seed": seed, "metric": metric, "steps": steps,
            "best step": best_steps[run], **{name: round(values[run], 5) for name, values in said.items()}, "seconds": seconds,
        }
        for run in runs
    ]  # fmt: skip


def half(encoded: Any, part: int) -> Any:
    """The first or the second half of encoded examples."""
    middle = len(encoded) // 2
    chosen = slice(0, middle) if part == 0 else slice(middle, None)
    features = {name: values[chosen] for name, values in encoded.features.items()}
    return replace(encoded, features=features, targets=encoded.targets[chosen])


def scores(fleet: Any, examples: list[Any]) -> list[float]:
    """The metric of every run on its own examples; -inf for one that is not defined."""
    found = []
    for plan, logits, mine in zip(fleet.plans, fleet.predict(examples), examples):
        score = plan.task.score(plan.task.decide(logits, mine), mine.targets)[plan.task.metric]
        found.append(-math.inf if math.isnan(score) else score)
    return found


def interval(values: list[float]) -> str:
    """The mean with a 95 % interval by Student's t."""
    if len(values) < 2:
        return f"{statistics.fmean(values):+.2f}"
    wide = T_95.get(len(values) - 1, 2.0) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.fmean(values):+.2f} ± {wide:.2f}"


def summary(rows: list[dict[str, str]]) -> Iterator[str]:
    """Of the design, the effect of each factor with a 95 % interval; of every recipe its difference to `base`. In points."""
    import numpy as np

    score = {
        (row["task"], row["seed"], row["variant"]): {kind: 100 * float(row[kind]) for kind in KINDS} for row in rows
    }
    blocks = dict.fromkeys((row["task"], row["seed"]) for row in rows)
    whole = {
        block: recipes
        for block in blocks
        for recipes in (design(False), design(True))
        if all((*block, recipe) in score for recipe in recipes)
    }
    if whole:
        yield f"factors, over the blocks {', '.join('/'.join(block) for block in whole)}: effect, in points"
        cells = [(block, recipe) for block, recipes in whole.items() for recipe in recipes]
        levels = [[1.0 if name in recipe.split(" + ") else 0.0 for name in FACTORS] for _, recipe in cells]
        ones = [[float(block == own) for own in whole] for block, _ in cells]
        table = np.array([own + other for own, other in zip(levels, ones)])
        for kind in KINDS:
            y = np.array([score[(*block, recipe)][kind] for block, recipe in cells])
            found, *_ = np.linalg.lstsq(table, y, rcond=None)
            free = len(cells) - table.shape[1]
            error = np.full(len(FACTORS), math.nan)
            if free > 0:
                variance = ((y - table @ found) ** 2).sum() / free
                error = np.sqrt(variance * np.diag(np.linalg.inv(table.T @ table)))[: len(FACTORS)]
            t = T_95.get(free, 2.06)
            parts = (f"{name} {effect:+.2f} ± {t * one:.2f}" for name, effect, one in zip(FACTORS, found, error))
            yield f"  {kind}: " + " · ".join(parts)
            by_block = {
                name: [
                    statistics.fmean(score[(*block, r)][kind] * (1 if name in r.split(" + ") else -1) for r in recipes)
                    * 2
                    for block, recipes in whole.items()
                ]
                for name in FACTORS
            }
            yield "    by block: " + " · ".join(
                f"{name} " + " ".join(f"{effect:+.1f}" for effect in effects) for name, effects in by_block.items()
            )
    for kind in ("last", "averaged"):
        yield f"{kind} - best, over {len(score)} runs: {interval([one[kind] - one['best'] for one in score.values()])}"
    pairs: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (task, seed, variant), one in score.items():
        if variant != "base" and (task, seed, "base") in score:
            pairs[variant][task].append(one["best"] - score[task, seed, "base"]["best"])
    for variant, by_task in pairs.items():
        each = ", ".join(f"{task} {statistics.fmean(values):+.1f}" for task, values in by_task.items())
        yield f"{variant} - base: {interval([one for values in by_task.values() for one in values])} ({each})"


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows that a CSV file of results has; none where there is no file yet."""
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def add_rows(path: Path, columns: Sequence[str], rows: list[dict[str, Any]]) -> None:
    """Write rows behind those of a CSV file; a new file gets a header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data-dir")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--blocks", nargs="+", default=BLOCKS, metavar="TASK/SEED")
    parser.add_argument("--design", action="store_true")
    parser.add_argument("--variants", nargs="+", default=[], help=", ".join(SINGLE))
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--summary", action="store_true")
    given = parser.parse_args()
    rows = rows_of(given.out)
    if given.summary:
        for line in summary(rows):
            print(line)
        return

    import torch

    from unipelt.train.setup import DatasetCache

    torch.set_num_threads(1)
    cache = DatasetCache()
    done = {(row["variant"], row["task"], int(row["seed"])) for row in rows}
    for number, block in enumerate(given.blocks):
        task, seed = block.split("/")
        wanted = given.variants or design(reversed_=number % 2 == 1)
        fleets: dict[Any, list[str]] = defaultdict(list)
        for variant in wanted:
            if (variant, task, int(seed)) not in done:
                fleets[method_of(variant), settings(variant).get("steps"), settings(variant).get("precision")].append(
                    variant
                )
        for together in fleets.values():
            for variants in [[one] for one in together] if method_of(together[0]) == "full" else [together]:
                found = measure(variants, task, int(seed), given, cache)
                add_rows(given.out, COLUMNS, found)
                for row in found:
                    shown = "/".join(f"{100 * row[kind]:.1f}" for kind in KINDS)
                    print(f"{block} · {row['variant']}: {'/'.join(KINDS)} {shown}; {row['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
