"""Which recipe suits a gated mixture when labels are few? One factor at a time, paired by seed; real GLUE.

    python benchmarks/recipes.py OUT.csv --data-dir GLUE [--tasks sst2 cola stsb mrpc] [--variants base 'head x10' …] [--seeds 3] [--k 100]

The seeds of a variant and a task are one fleet (of full fine-tuning, one after another). The checkpoint is chosen on the first
half of the validation examples and what is written is measured on the second, so choosing and measuring share no example: the
best checkpoint, the last one, and the average of the weights of the last quarter of the steps, all of one training. Rows that
OUT.csv holds already are not trained again. `--summary` trains nothing and prints differences to `base` instead. Seconds are
the process's own CPU seconds, shared equally by the seeds of a fleet.
"""

import argparse
import csv
import math
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

COLUMNS = ("variant", "task", "k", "seed", "metric", "steps", "best step", "best", "last", "averaged", "seconds")
CHECKPOINTS = 7  # evaluations of a training, evenly spaced
LAST_QUARTER = 0.75
T_95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26, 10: 2.23, 11: 2.20, 14: 2.14}


@dataclass(frozen=True)
class Variant:
    """One recipe of one method."""

    method: str = "unipelt-apl"
    recipe: dict[str, Any] = field(default_factory=dict)
    steps: int = 350
    gate_start: float = 0.5


RATE = 1e-3  # of unipelt-apl on a base of fewer than 512 hidden units
VARIANTS = {
    "base": Variant(),
    "adapter and lora x3": Variant(recipe={"lr_adapter": 3 * RATE, "lr_lora": 3 * RATE}),
    "prefix x3": Variant(recipe={"lr_prefix": 3 * RATE}),
    "head x10": Variant(recipe={"lr_head": 10 * RATE}),
    "no-op adapter start": Variant(method="unipelt-apl(init='lora')"),
    "gates x10": Variant(recipe={"lr_gate": 10 * RATE}),
    "prefix x10": Variant(recipe={"lr_prefix": 10 * RATE}),
    "lora": Variant(method="lora"),
    "adapter": Variant(method="adapter"),
    "gates start at 0.88": Variant(gate_start=0.88),
    "half-sized modules": Variant(method="unipelt-apl(bottleneck=24, prefix=5, r=4)"),
    "prefix without MLP": Variant(method="unipelt-apl(mlp=0)"),
    "prefix without MLP x10": Variant(method="unipelt-apl(mlp=0)", recipe={"lr_prefix": 10 * RATE}),
    "warm-up 0.2": Variant(recipe={"warmup": 0.2}),
    "1,000 steps": Variant(steps=1000),
    "full": Variant(method="full"),
    "all x3": Variant(recipe={"lr": 3 * RATE}),
    "gates x0.1": Variant(recipe={"lr_gate": RATE / 10}),
    "fp32": Variant(recipe={"precision": "fp32"}),
    "no gates": Variant(method="unipelt-apl-nogate"),
    "lora, 1,000 steps": Variant(method="lora", steps=1000),
}


def measure(variant: Variant, task: str, seeds: list[int], k: int, given: argparse.Namespace, cache: Any) -> list[dict]:
    """One row a seed."""
    import torch

    from unipelt.inject.state import mixture_state
    from unipelt.train.records import RunConfig
    from unipelt.train.setup import build_fleet

    batches = -(-k // 16)
    epochs = max(1, round(variant.steps / batches))
    recipe = {"precision": "bf16", "epochs": epochs, "patience": 0, **variant.recipe}
    configs = [
        RunConfig(
            model=given.model, task=task, k=k, method=variant.method, seed=seed, data_dir=given.data_dir, recipe=recipe
        )
        for seed in seeds
    ]
    fleet = build_fleet(configs, width=len(seeds), device=torch.device("cpu"), cache=cache)
    if variant.gate_start != 0.5:
        for name, parameter in mixture_state(fleet.model).named_parameters():
            if name.endswith("score.bias"):
                parameter.data.fill_(math.log(variant.gate_start / (1 - variant.gate_start)))
    steps = fleet.plans[0].steps
    due = {round(steps * (number + 1) / CHECKPOINTS) for number in range(CHECKPOINTS)}
    halves = [[half(plan.validation, part) for plan in fleet.plans] for part in (0, 1)]
    best_scores, best_steps = [-math.inf] * len(seeds), [0] * len(seeds)
    best, average, averaged = fleet.matrix.values.clone(), torch.zeros_like(fleet.matrix.values), 0
    began = time.process_time()
    for step in range(1, steps + 1):
        fleet.step()
        if any(progress.ended for progress in fleet.progress):
            raise SystemExit(f"{variant} on {task}: {[progress.ended for progress in fleet.progress]}")
        if step > steps * LAST_QUARTER:
            averaged += 1
            average.lerp_(fleet.matrix.values, 1 / averaged)
        if step in due:
            for run, score in enumerate(scores(fleet, halves[0])):
                if score > best_scores[run] or (math.isnan(score) and not best_steps[run]):
                    best_scores[run], best_steps[run] = score, step
                    best[run].copy_(fleet.matrix.values[run])
    said = {"last": scores(fleet, halves[1])}
    for name, values in (("best", best), ("averaged", average)):
        with fleet._holding(values):
            said[name] = scores(fleet, halves[1])
    seconds = (time.process_time() - began) / len(seeds)
    return [
        {
            "task": task, "k": k, "seed": seed, "metric": fleet.plans[run].task.metric, "steps": steps, "best step": best_steps[run],
            **{name: round(values[run], 5) for name, values in said.items()}, "seconds": round(seconds, 1),
        }
        for run, seed in enumerate(seeds)
    ]  # fmt: skip


def half(encoded: Any, part: int) -> Any:
    """The first or the second half of encoded examples."""
    from dataclasses import replace

    middle = len(encoded) // 2
    chosen = slice(0, middle) if part == 0 else slice(middle, None)
    features = {name: values[chosen] for name, values in encoded.features.items()}
    return replace(encoded, features=features, targets=encoded.targets[chosen])


def scores(fleet: Any, examples: list[Any]) -> list[float]:
    """The metric of every run on its own examples."""
    every = fleet.predict(examples)
    tasks = [plan.task for plan in fleet.plans]
    return [
        task.score(task.decide(logits, mine), mine.targets)[task.metric]
        for task, logits, mine in zip(tasks, every, examples)
    ]


def summary(rows: list[dict[str, str]], write: Callable[[str], None] = print) -> None:
    """Every variant's mean, and its difference to `base` over the pairs of task and seed, with a 95 % interval over tasks' seeds."""
    values: dict[str, dict[tuple[str, str], dict[str, float]]] = defaultdict(dict)
    for row in rows:
        at = row["task"], row["seed"]
        values[row["variant"]][at] = {name: 100 * float(row[name]) for name in ("best", "last", "averaged")}
    for variant, mine in values.items():
        parts = [f"{variant} ({len(mine)} runs)"]
        parts.append(
            " ".join(
                f"{name} {statistics.fmean(one[name] for one in mine.values()):.1f}"
                for name in ("best", "last", "averaged")
            )
        )
        for label, name, other in (
            *(() if variant == "base" else ((f"{kind} - base", kind, "base") for kind in ("best", "averaged"))),
            ("last - best", "last", "own"), ("averaged - best", "averaged", "own"),
        ):  # fmt: skip
            pairs = {
                at: one[name] - (one["best"] if other == "own" else values["base"][at][name])
                for at, one in mine.items()
                if other == "own" or at in values.get("base", {})
            }
            if len(pairs) > 1:
                half_width = T_95.get(len(pairs) - 1, 2.0) * statistics.stdev(pairs.values()) / math.sqrt(len(pairs))
                parts.append(f"{label} {statistics.fmean(pairs.values()):+.2f} ± {half_width:.2f}")
        write(" · ".join(parts))
        if variant != "base" and "base" in values:
            tasks: dict[str, list[float]] = defaultdict(list)
            for at, one in mine.items():
                if at in values["base"]:
                    tasks[at[0]].append(one["best"] - values["base"][at]["best"])
            write("    by task: " + ", ".join(f"{task} {statistics.fmean(each):+.1f}" for task, each in tasks.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data-dir")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--tasks", nargs="+", default=["sst2", "cola", "stsb", "mrpc"])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--summary", action="store_true")
    given = parser.parse_args()
    rows = list(csv.DictReader(given.out.read_text().splitlines())) if given.out.exists() else []
    if given.summary:
        return summary(rows)

    import torch

    from unipelt.train.setup import DatasetCache

    torch.set_num_threads(1)
    cache, seeds = DatasetCache(), list(range(given.seeds))
    done = {(row["variant"], row["task"], int(row["k"]), int(row["seed"])) for row in rows}
    if not rows:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(",".join(COLUMNS) + "\n")
    for name in given.variants:
        for task in given.tasks:
            missing = [seed for seed in seeds if (name, task, given.k, seed) not in done]
            for group in [[seed] for seed in missing] if VARIANTS[name].method == "full" else [missing] * bool(missing):
                found = measure(VARIANTS[name], task, group, given.k, given, cache)
                with open(given.out, "a", newline="") as file:
                    csv.DictWriter(file, COLUMNS).writerows({"variant": name, **row} for row in found)
                shown = ", ".join(
                    f"{100 * row['best']:.1f}/{100 * row['last']:.1f}/{100 * row['averaged']:.1f}" for row in found
                )
                print(f"{name} · {task}: best/last/averaged {shown}; {found[0]['seconds']} s a run", flush=True)


if __name__ == "__main__":
    main()
