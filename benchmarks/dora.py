"""A training step with DoRA, against peft's, on the shape of bert-base: steps of both in turns, so that a busy machine slows both.

python benchmarks/dora.py                            # one thread, rank 8 on query and value, 8 × 64 tokens
python benchmarks/dora.py --method ia3 --rounds 40
"""

import argparse
import time
from statistics import median, quantiles
from typing import Any

import peft
import torch
from transformers import BertConfig, BertForSequenceClassification

import unipelt

THEIRS = {
    "dora": lambda: peft.LoraConfig(
        task_type="SEQ_CLS", r=8, lora_alpha=16, use_dora=True, target_modules=["query", "value"]
    ),
    "ia3": lambda: peft.IA3Config(
        task_type="SEQ_CLS",
        target_modules=["key", "value", r"\d.output.dense"],
        feedforward_modules=[r"\d.output.dense"],
    ),
    "lora": lambda: peft.LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"]),
}


def step(model: Any, optimiser: torch.optim.Optimizer, batch: dict[str, torch.Tensor]) -> float:
    """Seconds of one forward, backward and update: of the processor, which other work on the machine does not lengthen, on a CPU."""
    clock = time.perf_counter if batch["input_ids"].is_cuda else time.process_time
    started = clock()
    model(**batch).loss.backward()
    optimiser.step()
    optimiser.zero_grad()
    if batch["input_ids"].is_cuda:
        torch.cuda.synchronize()
    return clock() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=THEIRS, default="dora")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    models = {
        "unipelt": unipelt.attach(BertForSequenceClassification(BertConfig()), given.method),
        "peft": peft.get_peft_model(BertForSequenceClassification(BertConfig()), THEIRS[given.method]()),
    }
    ids = torch.randint(1000, 30_000, (given.rows, given.tokens))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(given.rows) % 2}
    batch = {name: value.to(given.device) for name, value in batch.items()}
    optimisers = {}
    for name, model in models.items():
        model.to(given.device).train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimisers[name] = torch.optim.AdamW(trained, lr=1e-4)
        print(name, f"{sum(parameter.numel() for parameter in trained):,} parameters train")
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(given.rounds + 2):  # the first two warm up
        for name in sorted(models, reverse=turn % 2 == 1):
            taken = step(models[name], optimisers[name], batch)
            if turn > 1:
                seconds[name].append(taken)
    ratios = [ours / theirs for ours, theirs in zip(seconds["unipelt"], seconds["peft"])]
    low, _, high = quantiles(ratios, n=4)
    for name, values in seconds.items():
        print(f"{name}: {1000 * median(values):,.0f} ms a step, median of {given.rounds}")
    print(f"unipelt ÷ peft, in pairs: {median(ratios):.3f} (quartiles {low:.3f}–{high:.3f})")


if __name__ == "__main__":
    main()
