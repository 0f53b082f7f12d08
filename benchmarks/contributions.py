"""What does each part of a trained mixture contribute? Each is left out once, and the rest is tested as it is.

    python benchmarks/contributions.py OUT.csv --data-dir GLUE [--tasks stsb sst2 …] [--seeds 1] [--method unipelt-apl] [--k 100]

A run is trained with the default recipe in bf16 where the CPU has it. Its best parameters are then tested whole, and with one
change at a time not attached; nothing is trained again, so what is lost is what the rest cannot do without it. Mean gates are
those of the test examples. OUT.csv has a row for each run and change; a run that it holds is not trained again.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from recipes import add_rows, rows_of

COLUMNS = ("task", "k", "seed", "method", "metric", "without", "test", "gate")


def measure(task: str, seed: int, given: argparse.Namespace, cache: Any) -> list[dict[str, Any]]:
    """One row for the whole mixture (`without` is empty), and one for each change that is left out."""
    import torch

    from unipelt import attach, detach
    from unipelt.inject.state import mixture_state
    from unipelt.train.forward import predict
    from unipelt.train.records import RunConfig
    from unipelt.train.setup import build_fleet, pooling_of

    config = RunConfig(
        model=given.model, task=task, k=given.k, method=given.method, seed=seed, data_dir=given.data_dir,
        recipe={"precision": "bf16"},
    )  # fmt: skip
    fleet = build_fleet([config], runs_at_once=1, device=torch.device("cpu"), cache=cache)
    (finished,) = fleet.train()
    record, plan, model = finished.record, fleet.plans[0], fleet.model
    mixture, head = mixture_state(model).mixture, record.config.head
    state = {name: values.clone() for name, values in finished.state.items()}
    scored, gates = plan.task.in_target_units(), record.gates or {}

    def row(without: str, test: float) -> dict[str, Any]:
        own = [value["mean"] for at, value in gates.items() if without in at.split(".")]
        said = f"{fmean(own):.3f}" if own else ""
        return dict(zip(COLUMNS, (task, given.k, seed, given.method, record.metric, without, round(test, 5), said)))

    rows = [row("", record.test)]
    for label, _ in mixture.named():
        rest = tuple(change for name, change in mixture.named() if name != label)
        detach(model)
        attach(model, replace(mixture, changes=rest), head=head, pooling=pooling_of(config), fresh_head=True)
        left = mixture_state(model)
        left.load_state_dict({name: state[name][None] for name, _ in left.named_parameters()})
        (logits,) = predict(model, fleet.tokenizer, [plan.test], task_type=type(plan.task), precision="bf16")
        metrics = scored.score(scored.decide(logits, plan.test), plan.test.targets or [])
        rows.append(row(label, metrics[record.metric]))
    return rows


def summary(rows: list[dict[str, str]]) -> None:
    whole = {
        (row["task"], row["k"], row["seed"], row["method"]): float(row["test"]) for row in rows if not row["without"]
    }
    for label in dict.fromkeys(row["without"] for row in rows if row["without"]):
        own = [row for row in rows if row["without"] == label]
        gaps = [100 * (float(row["test"]) - whole[row["task"], row["k"], row["seed"], row["method"]]) for row in own]
        each = ", ".join(f"{row['task']}/{row['seed']} {gap:+.1f} (gate {row['gate']})" for row, gap in zip(own, gaps))
        print(f"without {label}: {fmean(gaps):+.2f} points on average over {len(gaps)} runs: {each}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data-dir")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--tasks", nargs="+", default=["stsb", "sst2", "mrpc", "cola", "rte"])
    parser.add_argument("--method", default="unipelt-apl")
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args()

    from unipelt.train.setup import DatasetCache

    rows, cache = rows_of(given.out), DatasetCache()
    done = {(row["task"], int(row["k"]), int(row["seed"]), row["method"]) for row in rows}
    for seed in range(given.seeds):
        for task in given.tasks:
            if (task, given.k, seed, given.method) not in done:
                add_rows(given.out, COLUMNS, measure(task, seed, given, cache))
                print(task, seed, flush=True)
    summary(rows_of(given.out))


if __name__ == "__main__":
    main()
