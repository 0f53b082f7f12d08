"""A fleet of runs beside the same runs one after another, evaluation included: time of the whole, as a ratio in one process.

    python benchmarks/fleet.py --task sst2 --data-dir GLUE --runs 16 --k 100 --epochs 4 --rounds 2

Both ways load the base once a training, as `unipelt train` does; results are compared too. Prints a Markdown table.
"""

import argparse
import time
from statistics import median

from unipelt.study.plan import StudyConfig
from unipelt.train.records import RunConfig, RunKey
from unipelt.train.setup import DatasetCache, build_fleet, device_of


def trained(
    configs: list[RunConfig], runs_at_once: int, cache: DatasetCache, device: str
) -> tuple[float, float, list[float]]:
    """(seconds, CPU seconds, validation metrics)"""
    validation: dict[RunKey, float] = {}
    began, used = time.perf_counter(), time.process_time()
    for group in [configs] if runs_at_once > 1 else [[one] for one in configs]:
        fleet = build_fleet(group, runs_at_once=runs_at_once, cache=cache, device=device_of(device))
        validation |= {run.key: run.record.validation or 0.0 for run in fleet.train()}
    found = [validation[config.key] for config in configs]
    return time.perf_counter() - began, time.process_time() - used, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="docstrings")
    parser.add_argument("--data-dir")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--methods", nargs="+", default=["lora", "unipelt-apl"])
    parser.add_argument("--runs", type=int, default=16)
    parser.add_argument("--runs-at-once", type=int, help="not given: as a study plans it")
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--evaluate-every", type=int, default=2)
    parser.add_argument("--validation-rows", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    recipe = {"epochs": given.epochs, "evaluate_every": given.evaluate_every, "patience": 0}
    print(
        "| method | runs, at once | a fleet, s | one after another, s | ratio | ratio of CPU seconds | mean validation, fleet / alone |"
    )
    print("|---|---|---|---|---|---|---|", flush=True)
    cache = DatasetCache()
    runs_at_once = given.runs_at_once or StudyConfig().most_at_once(device_of(given.device).type)
    for method in given.methods:
        configs = [
            RunConfig(
                model=given.model, task=given.task, k=given.k, method=method, seed=seed, data_dir=given.data_dir,
                validation_rows=given.validation_rows, recipe=recipe,
            )
            for seed in range(given.runs)
        ]  # fmt: skip
        trained(configs[:1], 1, cache, given.device)  # reads and tokenises what both ways share
        for config in configs:
            cache.splits(config)
        rounds = []
        for number in range(given.rounds):  # each way begins every other round
            order = (runs_at_once, 1) if number % 2 == 0 else (1, runs_at_once)
            taken = {runs_at_once: trained(configs, runs_at_once, cache, given.device) for runs_at_once in order}
            rounds.append([taken[runs_at_once], taken[1]])
        (fleet, alone) = ([one[side] for one in rounds] for side in (0, 1))
        ratios = [together[0] / apart[0] for together, apart in rounds]
        used = [together[1] / apart[1] for together, apart in rounds]
        means = [sum(side[0][2]) / given.runs for side in (fleet, alone)]
        print(
            f"| {method} | {given.runs}, {runs_at_once} | {median(f[0] for f in fleet):.1f} | {median(a[0] for a in alone):.1f} | "
            f"{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}) | {median(used):.2f} | {means[0]:.4f} / {means[1]:.4f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
