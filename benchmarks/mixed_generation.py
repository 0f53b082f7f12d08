"""32 prompts of 32 runs in one batch against 32 prompts of one run: seconds to write the same number of tokens.

python benchmarks/mixed_generation.py [METHOD]
"""

import sys
import time
from statistics import median

import torch

import unipelt
from unipelt.checkpoint.bases import load_base, load_tokenizer
from unipelt.tasks.language_model import write
from unipelt.tasks.settings import GenerationSettings

RUNS, TOKENS, REPEATS = 32, 16, 3


def main(method: str) -> None:
    torch.set_num_threads(1)
    tokenizer, times, models = load_tokenizer("smollm2"), {}, {}
    text = "Say a number in words and then explain what a list is, please."
    prompts = [tokenizer(text)["input_ids"][: 10 + i % 5] for i in range(RUNS)]
    for runs in (1, RUNS):
        models[runs], times[runs] = unipelt.attach(load_base("smollm2"), method, runs=runs), []
    how = GenerationSettings(max_new_tokens=TOKENS, min_new_tokens=TOKENS)
    for _ in range(REPEATS):
        for runs, model in models.items():
            given = [prompts] if runs == 1 else [[prompt] for prompt in prompts]
            started = time.process_time()
            write(model, tokenizer, given, how, stop=[tokenizer.eos_token_id])
            times[runs].append(time.process_time() - started)
    each = {runs: round(median(seconds), 2) for runs, seconds in times.items()}
    print(f"{method}: seconds {each}, ratio {median(times[RUNS]) / median(times[1]):.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:] or ["unipelt-apl"])
