"""The study of the unified view from a file of its runs: means over seeds, and He et al.'s claims paired by seed.

    unipelt study export STUDY --out unified.csv      # once for each machine that ran a part of it; join the files
    python benchmarks/unified.py experiments/unified.csv

`unipelt report` does the same, with the variance over test examples, where one study's folder has all runs. Here intervals are
Student's t over the seeds alone, and the test examples are the same for all seeds.
"""

import statistics
import sys
from collections import defaultdict
from pathlib import Path

from recipes import interval, rows_of

CLAIMS = {
    "parallel beats sequential": ("adapter", "parallel-adapter"),
    "the FFN beats the attention": ("multi-head-parallel-adapter", "parallel-adapter"),
    "scaled beats unscaled": ("parallel-adapter", "scaled-parallel-adapter"),
    "mam beats the scaled parallel adapter": ("scaled-parallel-adapter", "mam"),
    "unipelt-apl beats lora": ("lora", "unipelt-apl"),
    "gates of each token beat gates of the prompt, apl": ("unipelt-apl, prompt", "unipelt-apl"),
    "gates of each token beat gates of the prompt, ap": ("unipelt-ap, prompt", "unipelt-ap"),
}
"""by claim: the method that should have the larger loss, and the one that should have the smaller one"""


def name_of(method: str) -> str:
    """`unipelt-apl(bottleneck=29, pool='prompt')` is `unipelt-apl, prompt`: each method has one size in the study."""
    return method.partition("(")[0] + ", prompt" * ("pool='prompt'" in method)


def main(path: str) -> None:
    loss: dict[str, dict[int, float]] = defaultdict(dict)
    rouge: dict[str, dict[int, float]] = defaultdict(dict)
    stored = {}
    for row in rows_of(Path(path)):
        name, seed = name_of(row["method"]), int(row["seed"])
        rouge[name][seed], stored[name] = float(row["rougeL"]), int(row["stored"] or 0)
        if row["loss"]:
            loss[name][seed] = float(row["loss"])
    print("| method | parameters stored | seeds | test loss | ROUGE-L |\n|---|---|---|---|---|")
    for name in sorted(rouge, key=lambda one: statistics.fmean(loss[one].values()) if loss[one] else float("inf")):
        cells = [interval([*found[name].values()]).lstrip("+") if found[name] else "–" for found in (loss, rouge)]
        print(f"| `{name}` | {stored[name]:,} | {len(rouge[name])} | {cells[0]} | {cells[1]} |")
    for claim, (worse, better) in CLAIMS.items():
        seeds = [*(loss[worse].keys() & loss[better].keys())]
        for what, found in (("loss", loss), ("ROUGE-L", rouge)):
            if seeds:
                sign = 1 if what == "loss" else -1
                pairs = [sign * (found[worse][seed] - found[better][seed]) for seed in seeds]
                print(f"{claim}, by {what}: {interval(pairs)} over {len(seeds)} seeds")


if __name__ == "__main__":
    main(*sys.argv[1:])
