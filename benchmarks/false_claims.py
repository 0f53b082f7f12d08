"""How often a report calls a difference real: where there is none, and where there is one of five points. No GPU, no model.

    python benchmarks/false_claims.py                      # 2,000 repetitions of each case, 500 of those with a difference; about an hour on one core
    python benchmarks/false_claims.py --repetitions 200 --metrics accuracy

Each case draws methods that are equally good on average, or of which one is 5 points of accuracy better. Two things vary:
the test examples, which every seed shares, and training: a run's own skill, with a standard deviation of 3 points of accuracy.
Errors are independent, or correlated: hard examples are hard for both methods. What is called real is what the report calls real.
"""

import argparse
from dataclasses import dataclass
from statistics import NormalDist
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from unipelt.report.comparison import compare
from unipelt.report.samples import Sample, make_sample
from unipelt.tasks.metrics import METRICS

METRIC_NAMES = ("accuracy", "f1", "matthews", "spearman")
DIFFERENCES = (
    "none",
    "none, training sd 0 or 6 points",
    "none of five methods",
    "none on average of eight tasks",
    "five points",
)
"""what is drawn, by the title of its lines"""
SHARES = {True: (0.6, 0.2, 0.2), False: (0.0, 0.3, 0.7)}
"""correlated errors or not: how much of an error is the example's, the method's at this example, the run's"""


@dataclass(frozen=True)
class Case:
    """What is drawn."""

    metric: str
    examples: int
    seeds: int
    correlated: bool
    training: float = 0.03
    """standard deviation of a run's own skill, in accuracy"""
    better: float = 0.0
    """by how much the first method is better, in accuracy"""
    methods: int = 2
    tasks: int = 1


def draw(case: Case, source: np.random.Generator, name: str = "task") -> Sample:
    """One study of a task: the metric of every method and seed, and the predictions."""
    shape = (case.methods, case.seeds, case.examples)
    shared, method, run = SHARES[case.correlated]
    luck = shared**0.5 * source.normal(size=case.examples) + method**0.5 * source.normal(
        size=(case.methods, 1, case.examples)
    )
    luck = luck + run**0.5 * source.normal(size=shape)
    skill = 0.75 + source.normal(0, case.training, (case.methods, case.seeds, 1))
    skill[0] += case.better
    targets, predictions = _answers(case, source, luck, np.clip(skill, 0.05, 0.98))
    values: dict[str, dict[int, float]] = {}
    rows = []
    for m in range(case.methods):
        for seed in range(case.seeds):
            answers = predictions[m, seed]
            values.setdefault(f"method {m}", {})[seed] = METRICS[case.metric](answers, targets)
            rows.append((f"method {m}", seed, answers.tolist(), targets.tolist()))
    return make_sample(name, case.metric, values, rows)


def _answers(case: Case, source: np.random.Generator, luck: NDArray, skill: NDArray) -> tuple[NDArray, NDArray]:
    """Targets and predictions. A class is right where luck is below the skill's quantile; a number is off by luck."""
    if case.metric == "spearman":
        targets = source.normal(size=case.examples)
        return targets, skill * targets + (1 - skill**2) ** 0.5 * luck
    quantile = np.vectorize(NormalDist().inv_cdf)
    targets = (source.random(case.examples) < 0.6).astype(int)
    return targets, np.where(luck < quantile(skill), targets, 1 - targets)


def called_real(case: Case, repetitions: int) -> float:
    """Share of repetitions in which any method is called better or worse than the best one."""
    drawn, found = np.random.default_rng(crc32(repr(case).encode())), 0
    for _ in range(repetitions):
        samples = [draw(case, drawn, f"task {task}") for task in range(case.tasks)]
        result = compare(samples, [f"method {m}" for m in range(case.methods)])
        found += any(line.real for line in result.others)
    return found / repetitions


def cases(metrics: list[str]) -> list[tuple[str, Case]]:
    """Titles and cases, in the order in which they are printed."""
    grid = [
        (metric, examples, seeds, correlated)
        for metric in metrics for examples in (50, 118, 300, 900) for seeds in (3, 5) for correlated in (False, True)
    ]  # fmt: skip
    none = [(DIFFERENCES[0], Case(*where)) for where in grid]
    other = []
    if "accuracy" in metrics:
        sizes = [(examples, seeds) for examples in (118, 900) for seeds in (2, 3, 5)]
        other += [(DIFFERENCES[1], Case("accuracy", n, s, True, training=t)) for n, s in sizes for t in (0.0, 0.06)]
        other += [(DIFFERENCES[2], Case("accuracy", n, s, True, methods=5)) for n, s in sizes]
        other += [(DIFFERENCES[3], Case("accuracy", n, s, True, tasks=8)) for n, s in sizes if n == 118]
    power = [(DIFFERENCES[4], Case(*where, better=0.05)) for where in grid]
    return [*none, *other, *power]


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--repetitions", type=int, default=2000)
    asked.add_argument("--metrics", nargs="+", default=[*METRIC_NAMES], choices=METRIC_NAMES)
    asked.add_argument("--true-difference", nargs="+", default=[*DIFFERENCES], choices=DIFFERENCES)
    given = asked.parse_args()
    print("| true difference | metric | test examples | seeds | tasks | methods | errors | training sd | called real |")
    print("|---|---|---|---|---|---|---|---|---|")
    for title, case in cases(given.metrics):
        if title not in given.true_difference:
            continue
        share = called_real(case, given.repetitions // (4 if case.better else 1))
        errors = "correlated" if case.correlated else "independent"
        cells = (
            title,
            case.metric,
            case.examples,
            case.seeds,
            case.tasks,
            case.methods,
            errors,
            case.training,
            f"{100 * share:.1f} %",
        )
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
