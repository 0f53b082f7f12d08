"""Studies whose numbers are known, written as a study writes them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unipelt.study.store import Store
from unipelt.tasks.metrics import METRICS
from unipelt.train.records import RunKey, RunRecord

METRIC = {"mrpc": "f1", "qqp": "f1", "cola": "matthews", "stsb": "spearman"}
OPTIONS = {"model": "minilm", "epochs": None}
Key = tuple[str, int | str, str, int, float]


def metric_of(task: str) -> str:
    return METRIC.get(task, "accuracy")


def cells(
    tasks: Iterable[str],
    ks: Iterable[int | str],
    methods: Iterable[str],
    seeds: Iterable[int],
    rates: Iterable[float] = (1e-3,),
) -> list[RunKey]:
    methods, seeds, rates, ks = list(methods), list(seeds), list(rates), list(ks)
    return [
        RunKey(task=t, k=k, method=m, seed=s, lr=lr)
        for t in tasks
        for k in ks
        for m in methods
        for s in seeds
        for lr in rates
    ]


def write(
    folder: Path, results: Mapping[RunKey, RunRecord], planned: Sequence[RunKey] = (), options: dict[str, Any] = OPTIONS
) -> Path:
    store = Store.create(folder, options)
    store.plan([*results, *planned])
    store.finish(dict(results))
    store.close()
    return folder


def result(task: str, test: float, validation: float | None = None, **more: Any) -> RunRecord:
    return RunRecord(
        **{
            "status": "finished",
            "metric": metric_of(task),
            "validation": test if validation is None else validation,
            "test": test,
            **more,
        }
    )


def flat(plan: Iterable[RunKey], test: Callable[[RunKey], float], **more: Any) -> dict[RunKey, RunRecord]:
    """Results that are given numbers and nothing else."""
    return {cell: result(cell.task, test(cell), **more) for cell in plan}


SKILL = {
    "full": 0.0,
    "head": -0.06,
    "bitfit": -0.05,
    "adapter": -0.01,
    "prefix": -0.03,
    "lora": -0.015,
    "unipelt-ap": 0.01,
    "unipelt-apl": 0.02,
}


def lively(
    plan: Iterable[RunKey], rows: Mapping[str, int] | int = 200, gates: bool = True, seed: int = 0
) -> dict[RunKey, RunRecord]:
    """Results with predictions, curves, gates and costs, as a study's are."""
    drawn: dict[RunKey, RunRecord] = {}
    for cell in plan:
        task, kind = cell.task, metric_of(cell.task)
        n = rows if isinstance(rows, int) else rows[task]
        test_rows = np.random.default_rng([seed, len(task), ord(task[0])])
        truth = test_rows.random(n) * 5 if kind == "spearman" else test_rows.integers(0, 3 if task == "mnli" else 2, n)
        luck = np.random.default_rng([seed, cell.seed, len(task), len(cell.method), int(cell.lr * 1e6)])
        more = 0 if cell.k == "all" else -0.04 * (1000 / int(cell.k) - 1) ** 0.4
        quality = (
            0.78
            + SKILL.get(cell.method.partition("(")[0], 0.0)
            + more
            + luck.normal(0, 0.012)
            - 0.01 * abs(np.log10(cell.lr / 1e-3))
        )
        if kind == "spearman":
            guesses = (truth + luck.normal(0, 6 * (1 - quality), n)).round(4)
        else:
            guesses = np.where(test_rows.random(n) * 0.5 + luck.random(n) * 0.5 < quality - 0.1, truth, (truth + 1) % 2)
        test = METRICS[kind](guesses.tolist(), truth.tolist())
        curve = [
            {
                "epoch": float(e),
                "step": e * 7.0,
                "train_loss": 1 / e,
                kind: test * (1 - 0.4 * 0.75**e) + luck.normal(0, 0.006),
            }
            for e in range(1, 13 + cell.seed % 3)
        ]
        weighed = {f"encoder.{layer}.{part}.{place}": {"mean": float(np.clip(start + slope * layer + luck.normal(0, 0.02), 0, 1)), "sd": 0.1}
                   for layer in range(6) for part, place, start, slope in (("bottleneck_ffn", "ffn", 0.3, 0.08), ("prefix_heads", "self", 0.6, -0.05), ("low_rank_query", "query", 0.5, 0.0), ("low_rank_value", "value", 0.45, 0.03))
                   if part[:3] != "low" or "apl" in cell.method}  # fmt: skip
        drawn[cell] = result(
            task, test, test - 0.004 - 0.01 * (cell.lr > 2e-3), curve=curve, gates=weighed if gates and cell.method.startswith("unipelt") else None,
            predictions=guesses.tolist(), targets=truth.tolist(), steps=350, seconds=(3.0 if cell.method == "full" else 2.0) + cell.seed / 10, runs_at_once=1 if cell.method == "full" else 40,
            device="cpu", versions={"torch": "2.13.0", "transformers": "5.23.0"}, complete=task not in ("mnli", "qnli", "qqp"),
        )  # fmt: skip
    return drawn
