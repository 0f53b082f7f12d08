"""What a run costs whose lower layers are frozen: all of its training ÷ one pass of the plain base over its examples.

    python benchmarks/frozen.py --data-dir GLUE [--task sst2] [--k 1000] [--epochs 20] [--methods head 'lora(layers=3-5)'] [--rounds 3]

The pass takes the training, validation and test examples once, in evaluation mode; the training computes them once below its
lowest change, steps through every epoch, evaluates after each, and tests. CPU seconds of the process, one thread; the two take
turns, and the ratio is the median over rounds of the ratio within a round.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--k", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--methods", nargs="+", default=["head"])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()

    import torch

    from unipelt.inject.state import disabled
    from unipelt.train.records import RunConfig
    from unipelt.train.setup import DatasetCache, build_fleet

    torch.set_num_threads(1)
    device, cache = torch.device("cpu"), DatasetCache()
    for method in given.methods:
        ratios = []
        for number in range(given.rounds):
            recipe = {"epochs": given.epochs, "patience": 0}
            config = RunConfig(
                model=given.model, task=given.task, k=given.k, method=method, data_dir=given.data_dir, recipe=recipe
            )
            cache.states.keep_only(set())
            fleet = build_fleet([config], runs_at_once=1, device=device, cache=cache)
            frozen, fleet.frozen = fleet.frozen, None
            (plan,) = fleet.plans
            parts = [part for part in (plan.train, plan.validation, plan.test) if part]
            began = time.process_time()
            with disabled(fleet.model):
                for part in parts:
                    fleet.predict([part])
            one, fleet.frozen = time.process_time() - began, frozen
            began = time.process_time()
            list(fleet.train())
            whole = time.process_time() - began
            ratios.append(whole / one)
            examples = sum(map(len, parts))
            print(
                f"{method}, round {number}: {whole:.1f} s ÷ {one:.1f} s of {examples:,} examples = {whole / one:.2f}",
                flush=True,
            )
        layers = 0 if frozen is None else len(frozen.layers.layers)
        print(
            f"{method} ({layers} layers kept): {statistics.median(ratios):.2f} (range {min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
