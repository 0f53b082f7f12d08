"""What constants in place of gates cost and save in a trained run: its metric on test rows, and inference time beside the plain base's.

    python benchmarks/simplify.py RUN --task sst2 --data-dir GLUE --k 1000 [--deviation 0.05 1]

RUN is a folder of `unipelt train` with the same task, k, seed and validation rows: its gates are measured on those validation rows, its metric
on the test rows. One thread; the plain base, the run and each simpler run take turns over the same test rows in batches as
`unipelt predict` makes them. Seconds are the process's own CPU seconds, a ratio is the median of those within the turns.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--task", required=True)
    parser.add_argument("--data-dir")
    parser.add_argument("--k", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--validation-rows", type=int, default=1000)
    parser.add_argument("--deviation", type=float, nargs="+", default=[0.05, 1.0])
    parser.add_argument("--rows", type=int, default=320, help="test rows that are timed")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()

    import torch

    from unipelt import data
    from unipelt.checkpoint.bases import load_base
    from unipelt.checkpoint.description import describe
    from unipelt.tasks.registry import load
    from unipelt.train.forward import predict
    from unipelt.train.predictor import Predictor

    torch.set_num_threads(1)
    task, dataset = load(given.task, data_dir=given.data_dir)
    splits = data.split(dataset, given.k, given.seed, given.validation_rows)
    test = splits.test

    runs = {"as trained": Predictor.load(given.run, device="cpu")}
    tokenizer, longest = runs["as trained"].tokenizer, runs["as trained"].max_length
    print(
        "| | kept | fixed | merged | dropped | validation before | validation after | test | logits moved |\n|---|---|---|---|---|---|---|---|---|"
    )
    for deviation in [None, *given.deviation]:
        name = "as trained" if deviation is None else f"simplified, {deviation:g}"
        predictor = runs.setdefault(name, Predictor.load(given.run, device="cpu"))
        cells = [""] * 6 + [""]
        if deviation is not None:
            said = predictor.simplify_gates(splits.validation, max_deviation=deviation)
            cells = [f"{said.fraction(done):.3f}" for done in ("kept", "fixed", "merged", "dropped")]
            cells += [f"{said.before:.4f}", f"{said.after:.4f}", f"{said.max_logit_change:.2g}"]
        coded = task.encode(tokenizer, test, longest)
        logits = predict(predictor.model, tokenizer, [coded])[0]
        cells.insert(6, f"{task.score(task.decide(logits, coded), test.targets)[task.metric]:.4f}")
        print("| " + " | ".join([name, *cells]) + " |", flush=True)

    models = {"plain": load_base(describe(given.run).base["name"], outputs=task.outputs)}
    models |= {name: predictor.model for name, predictor in runs.items()}
    timed = [task.encode(tokenizer, test.take(range(min(given.rows, len(test)))), longest)]
    taken: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(given.rounds + 1):  # the first warms up
        for name, model in models.items():
            start = time.process_time()
            predict(model, tokenizer, timed)
            taken[name].append(time.process_time() - start)
    print("\n| inference | median s | ratio | lowest | highest |\n|---|---|---|---|---|")
    for name, seconds in taken.items():
        ratios = [mine / plain for mine, plain in zip(seconds[1:], taken["plain"][1:])]
        print(
            f"| {name} | {statistics.median(seconds[1:]):.3f} | {statistics.median(ratios):.3f} | {min(ratios):.3f} | {max(ratios):.3f} |"
        )


if __name__ == "__main__":
    main()
