"""What the command line's `keep_freed_memory` saves on a CPU: a step whose memory was given back asks the system for it again, page by page.

    python benchmarks/page_faults.py [ROUNDS] [fp32|bf16] [METHOD …]

Each round starts two processes for each method, one with and one without; a ratio is that of CPU seconds a training step within a
round, one thread, the shape of MiniLM, 16 × 64 tokens. Also: page faults a step, and the largest resident memory.
"""

import resource
import subprocess
import sys
import time
from statistics import median

STEPS = 30
METHODS = ("full", "lora", "unipelt-apl")


def child(keep: bool, precision: str, method: str) -> None:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    import unipelt
    from unipelt.cli import keep_freed_memory
    from unipelt.study.efficiency import training_step

    if keep:
        keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
    model = BertForSequenceClassification(BertConfig(num_attention_heads=12, **shape))
    ids = torch.randint(1000, (16, 64))
    rows = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.zeros(16, dtype=torch.long)}
    step = training_step(model if method == "full" else unipelt.attach(model, method), rows, precision)
    for _ in range(5):
        step()
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.process_time()
    for _ in range(STEPS):
        step()
    seconds, after = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF)
    print(seconds / STEPS, (after.ru_minflt - before.ru_minflt) / STEPS, after.ru_maxrss / 1024)


def main(rounds: int, precision: str, methods: list[str]) -> None:
    for method in methods:
        runs: dict[bool, list[list[float]]] = {True: [], False: []}
        for _ in range(rounds):
            for keep in runs:
                command = [sys.executable, __file__, "child", str(int(keep)), precision, method]
                printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                runs[keep].append([float(value) for value in printed.split()])
        ratios = [with_it[0] / without[0] for with_it, without in zip(runs[True], runs[False], strict=True)]
        faults, memory = ([round(median(run[i] for run in runs[keep])) for keep in (False, True)] for i in (1, 2))
        print(
            f"{precision} {method}: {median(ratios):.3f} of a step ({min(ratios):.3f} to {max(ratios):.3f}), "
            f"page faults {faults[0]} -> {faults[1]}, MiB {memory[0]} -> {memory[1]}",
            flush=True,
        )


if __name__ == "__main__":
    given = sys.argv[1:]
    if given[:1] == ["child"]:
        child(given[1] == "1", *given[2:])
    else:
        main(int((given or ["5"])[0]), (given[1:] or ["bf16"])[0], given[2:] or list(METHODS))
