"""Gates of each token's own and gates of the prompt on the shape of a small Llama: training ÷ full fine-tuning, inference ÷ plain.

6 layers, 576 wide, 9 heads, 3 key-value heads, 4 × 96 tokens, one thread, CPU seconds; the variants take turns, and a ratio is the
median over rounds of the ratio within the round. Inference is of merged models, as `unipelt predict` has them.

    python benchmarks/prompt_gates.py [ROUNDS] [fp32|bf16] [METHOD …]
"""

import sys
import time
from contextlib import AbstractContextManager, nullcontext
from statistics import median
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import unipelt
from unipelt.inject.state import NAME
from unipelt.study.efficiency import inference_step, training_step

METHODS = ["unipelt-apl(pool='token')", "unipelt-apl(pool='prompt')"]
PLAIN = "full"


def llama(method: str) -> Any:
    torch.manual_seed(0)
    size = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 9}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=1000, num_key_value_heads=3, use_cache=False, **size))
    return model if method == PLAIN else unipelt.attach(model, method)


def main(rounds: int, precision: str, methods: list[str]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ids = torch.randint(1000, (4, 96))
    rows = {"input_ids": ids, "labels": ids}
    mask = torch.ones_like(ids) * (torch.arange(96) < 64)
    steps, models = {}, {}
    for method in (PLAIN, *methods):
        saved = (
            method if method == PLAIN else f"{method[:-1]}, mlp=0)"
        )  # a checkpoint has the MLP's prefixes in its place
        models["train", method], models["infer", method] = llama(method), llama(saved)
        if method != PLAIN:
            unipelt.merge(models["infer", method], unmergeable="keep")
        steps["train", method] = training_step(models["train", method], rows, precision)
        steps["infer", method] = inference_step(models["infer", method], rows, precision)
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in steps}
    for _ in range(rounds + 1):  # the first warms up
        for key, step in steps.items():
            tuned = hasattr(models[key], NAME)
            asked: AbstractContextManager = unipelt.prompt(models[key], mask) if tuned else nullcontext()
            with asked:
                began = time.process_time()
                step()
                seconds[key].append(time.process_time() - began)
    for kind, against in (("train", "full fine-tuning"), ("infer", "the plain model")):
        for method in methods:
            ratios = [a / b for a, b in zip(seconds[kind, method][1:], seconds[kind, PLAIN][1:])]
            print(
                f"{kind} {precision} {method} ÷ {against}: {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
            )


if __name__ == "__main__":
    given = sys.argv[1:]
    main(int((given or ["15"])[0]), (given[1:] or ["fp32"])[0], given[2:] or METHODS)
