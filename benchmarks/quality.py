"""Real quality on real tasks: methods × learning rates × tasks × seeds at K rows, one run after another; resumes.

    python benchmarks/quality.py --data-dir GLUE --out OUT --tasks sst2 rte --methods lora=1e-3,3e-3 full=1e-4

Writes OUT/<run>/run.json and prints a Markdown table: test metric, and in brackets the development metric that chose.
"""

import argparse
from pathlib import Path

from unipelt import data
from unipelt.errors import UserError
from unipelt.fleet.tune import Request, tune


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--tasks", nargs="+", default=["sst2"])
    parser.add_argument("--methods", nargs="+", required=True, help="method=rate,rate")
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--evaluate-every", type=int, default=5)
    given = parser.parse_args()
    print("| task | method | lr | seed | epochs | dev | test | s |\n|---|---|---|---|---|---|---|---|", flush=True)
    for task in given.tasks:
        for seed in range(given.seeds):
            for entry in given.methods:
                method, rates = entry.rsplit("=", 1)
                for rate in rates.split(","):
                    request = Request(
                        model=given.model, task=task, k=given.k, method=method, seed=seed, data_dir=given.data_dir,
                        recipe={"lr": float(rate), "epochs": given.epochs, "evaluate_every": given.evaluate_every},
                    )  # fmt: skip
                    folder = given.out / f"{task}-{method}-{rate}-{seed}"
                    try:
                        outcome = tune(request, folder, tell=lambda text: None)
                    except UserError as error:
                        print(f"| {task} | {method} | {rate} | {seed} | | {error} | | |", flush=True)
                        continue
                    metric = data.GLUE[task].metric
                    print(
                        f"| {task} | {method} | {rate} | {seed} | {outcome.dev['epoch']:.0f}/{given.epochs} | "
                        f"{outcome.dev[metric]:.4f} | {outcome.test[metric]:.4f} | {outcome.seconds:.0f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
