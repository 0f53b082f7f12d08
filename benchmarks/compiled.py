"""`unipelt.compile` beside eager: training step and inference as ratios, in one process; and the seconds that compiling takes.

    python benchmarks/compiled.py [--model minilm] [--batch 8] [--lengths 29 61] [--rounds 5]

`--model bert-base` is that shape with random weights. Both ways take turns; a ratio is the median over rounds, of CPU seconds on a
CPU (one thread), of wall-clock seconds on a GPU.
"""

import argparse
import copy
import os
import time
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--method", default="unipelt-apl")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lengths", type=int, nargs="+", default=[29, 61])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()

    import torch
    from transformers import BertConfig, BertForSequenceClassification

    import unipelt
    from unipelt.checkpoint.bases import load_base
    from unipelt.inject.shapes import bucket
    from unipelt.study.efficiency import inference_step, training_step
    from unipelt.train.setup import device_of

    device = device_of(given.device)
    torch.manual_seed(0)
    made = (
        BertForSequenceClassification(BertConfig()) if given.model == "bert-base" else load_base(given.model, outputs=2)
    )
    eager = unipelt.attach(made, given.method).to(device)
    compiled = unipelt.compile(copy.deepcopy(eager))
    once = torch.full((1, 4), 1000, device=device)
    for model in (eager, compiled):  # the first call with labels decides what they are, without compiling
        model(input_ids=once, labels=once[:, 0] * 0)
    clock = time.process_time if device.type == "cpu" else time.perf_counter

    def seconds(step) -> float:
        start = clock()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - start

    print(f"{given.model}, {given.method}, {given.batch} rows, {device}, torch {torch.__version__}\n")
    print("| length → padded | step | eager, s | compiled, s | ratio (lowest–highest) | compiling, s |")
    print("|---|---|---|---|---|---|", flush=True)
    for length in given.lengths:
        ids = torch.randint(1000, 30_000, (given.batch, length), device=device)
        rows = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0] % 2}
        for name, kind in (("training", training_step), ("inference", inference_step)):
            plain, fast = kind(eager, rows), kind(compiled, rows)
            plain()
            start = time.perf_counter()
            fast()
            compiling = time.perf_counter() - start
            pairs = [(seconds(plain), seconds(fast)) for _ in range(given.rounds + 1)][1:]
            ratios = [mine / its for its, mine in pairs]
            print(
                f"| {length} → {bucket(length)} | {name} | {median(p for p, _ in pairs):.4f} | {median(f for _, f in pairs):.4f} | "
                f"{median(ratios):.3f} ({min(ratios):.3f}–{max(ratios):.3f}) | {compiling:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
