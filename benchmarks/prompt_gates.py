"""Gates of each token's own and gates of the prompt, on the shape of a small Llama: CPU seconds beside the plain model.

6 layers, 576 wide, 9 heads, 3 key-value heads, 4 × 96 tokens, float32, one thread; the variants take turns.

    python benchmarks/prompt_gates.py [ROUNDS]
"""

import sys
import time
from contextlib import nullcontext
from statistics import median

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import unipelt

VARIANTS = {"plain": None, "token": "unipelt-apl(pool='token')", "prompt": "unipelt-apl(pool='prompt')"}


def main(rounds: int) -> None:
    torch.set_num_threads(1)
    size = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 9}
    config = LlamaConfig(vocab_size=1000, num_key_value_heads=3, **size)
    torch.manual_seed(0)
    ids = torch.randint(1000, (4, 96))
    mask = torch.ones_like(ids) * (torch.arange(96) < 64)
    models = {name: LlamaForCausalLM(config) for name in VARIANTS}
    for name, method in VARIANTS.items():
        if method:
            unipelt.attach(models[name], method)
            unipelt.merge(models[name], unmergeable="keep")  # as `unipelt predict` does
        models[name].eval()
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with torch.no_grad():
        for _ in range(rounds):
            for name, model in models.items():
                with unipelt.prompt(model, mask) if VARIANTS[name] else nullcontext():
                    began = time.process_time()
                    model(ids, use_cache=False)
                    seconds[name].append(time.process_time() - began)
    for name in ("token", "prompt"):
        ratios = [mine / plain for mine, plain in zip(seconds[name], seconds["plain"])]
        print(f"inference, gates of the {name} ÷ plain: {median(ratios):.3f}")


if __name__ == "__main__":
    main(int((sys.argv[1:] or ["15"])[0]))
