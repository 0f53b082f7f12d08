"""A training step of smollm2 with logits of the answers alone, against logits of every position: time and peak memory.

Prompts are four times as long as answers. Each way has a process of its own, one thread; steps alternate with nothing.

    python benchmarks/answer_logits.py
"""

import json
import resource
import subprocess
import sys
import time
from statistics import median

import torch

import unipelt
from unipelt.checkpoint.bases import load_base
from unipelt.tasks.batches import IGNORED
from unipelt.tasks.language_model import at_positions, token_losses

ROWS, PROMPT, ANSWER, STEPS = 4, 128, 32, 4


def measure(answers_only: bool) -> dict[str, float]:
    """Seconds of a step (median) and peak memory in megabytes of this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = unipelt.attach(load_base("smollm2"), "lora").train()
    ids = torch.randint(100, 40_000, (ROWS, PROMPT + ANSWER))
    before = torch.arange(PROMPT - 1, PROMPT + ANSWER - 1).expand(ROWS, -1)
    seconds = []
    for _ in range(STEPS):
        started = time.perf_counter()
        if answers_only:
            with at_positions(model, before):
                logits = model(input_ids=ids, use_cache=False).logits
            loss = token_losses(logits, ids[:, PROMPT:]).mean()
        else:
            targets = torch.full_like(ids, IGNORED)
            targets[:, PROMPT - 1 : -1] = ids[:, PROMPT:]
            loss = token_losses(model(input_ids=ids, use_cache=False).logits, targets).sum() / (ROWS * ANSWER)
        loss.backward()
        model.zero_grad()
        seconds.append(time.perf_counter() - started)
    return {
        "seconds": median(seconds[1:]), "loss": loss.item(),
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1] == "answers")))
        sys.exit()
    found = {}
    for way in ("all", "answers"):
        done = subprocess.run([sys.executable, __file__, way], capture_output=True, text=True, check=True)
        found[way] = json.loads(done.stdout.splitlines()[-1])
        print(way, {name: round(value, 3) for name, value in found[way].items()})
    for name in ("seconds", "megabytes"):
        print(f"{name}: answers alone ÷ all = {found['answers'][name] / found['all'][name]:.2f}")
