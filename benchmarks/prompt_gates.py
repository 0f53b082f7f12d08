"""Gates of each token's own and gates of the prompt on the shape of a small Llama: training ÷ full fine-tuning, inference ÷ plain.

6 layers, 576 wide, 9 heads, 3 key-value heads, 4 × 96 tokens, one thread, CPU seconds; the variants take turns, and a ratio is the
median over rounds of the ratio within the round. Inference is compared on one and the same weights, with and without what is
attached; a run has no prefix MLP, as a checkpoint has none. Ratios of inference differ by some points from process to process
(where its memory lies), so take several.

    python benchmarks/prompt_gates.py [ROUNDS] [fp32|bf16] [METHOD …]
"""

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from statistics import median
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import unipelt
from unipelt.inject.state import mixture_state
from unipelt.study.efficiency import inference_step, training_step

METHODS = ["unipelt-apl(pool='token')", "unipelt-apl(pool='prompt')"]
FULL = "full"


def llama(method: str) -> Any:
    torch.manual_seed(0)
    size = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 9}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=1000, num_key_value_heads=3, use_cache=False, **size))
    return model if method == FULL else unipelt.attach(model, method)


def seconds(step: Callable[[], None], within: AbstractContextManager) -> float:
    with within:
        began = time.process_time()
        step()
        return time.process_time() - began


def main(rounds: int, precision: str, methods: list[str]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ids = torch.randint(1000, (4, 96))
    rows = {"input_ids": ids, "labels": ids}
    mask = torch.ones_like(ids) * (torch.arange(96) < 64)
    full = training_step(llama(FULL), rows, precision)
    tuned = {method: llama(method) for method in methods}
    training = {method: training_step(model, rows, precision) for method, model in tuned.items()}
    written = {method: llama(f"{method[:-1]}, mlp=0)") for method in methods}
    inference = {method: inference_step(model, rows, precision) for method, model in written.items()}
    ratios: dict[tuple[str, str], list[float]] = {}
    for turn in range(rounds + 1):
        base = seconds(full, nullcontext())
        for method in methods:
            trained = seconds(training[method], unipelt.prompt(tuned[method], mask))
            model, step = written[method], inference[method]
            attached = seconds(step, unipelt.prompt(model, mask))
            state = mixture_state(model)
            state.remove_hooks()
            state.kernels.restore()
            plain = seconds(step, nullcontext())
            state.register_hooks(model)
            state.kernels.wrap()
            if turn:  # the first warms up
                ratios.setdefault(("training ÷ full fine-tuning", method), []).append(trained / base)
                ratios.setdefault(("inference ÷ plain model", method), []).append(attached / plain)
    for (what, method), values in ratios.items():
        print(f"{precision} {what}, {method}: {median(values):.3f} ({min(values):.3f} to {max(values):.3f})")


if __name__ == "__main__":
    given = sys.argv[1:]
    main(int((given or ["15"])[0]), (given[1:] or ["fp32"])[0], given[2:] or METHODS)
