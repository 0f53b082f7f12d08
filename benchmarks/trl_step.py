"""One optimizer step of LoRA on smollm2: ours beside TRL's SFTTrainer with peft, on the same examples in the same precision.

Each trainer is a process of its own with one thread; they take turns, and a ratio is the median over the turns of CPU seconds of a
step. Both train rank 8 on query and value, on 8 chats of `docstring-summaries` with the loss on the answers; TRL's own defaults
but for gradient checkpointing, which is off. Reading a batch is part of our step and not of TRL's. TRL needs no place in this environment: --python names
one that has trl, peft, transformers, torch and this project.

    python benchmarks/trl_step.py [--python ENV/bin/python] [--precision bf16] [--turns 5]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from statistics import median
from typing import Any

ROWS = 8


def chats() -> tuple[Any, Any]:
    from unipelt.train.records import RunConfig
    from unipelt.train.setup import DatasetCache

    cache = DatasetCache()
    config = RunConfig(model="smollm2", task="docstring-summaries", method="lora", k=ROWS, validation_rows=10)
    return config, cache


def unipelt_steps(precision: str) -> None:
    from dataclasses import replace

    import torch

    from unipelt.train.setup import build_fleet

    config, cache = chats()
    config = replace(config, recipe={"batch_size": ROWS, "precision": precision, "lr": 1e-4})
    fleet = build_fleet([config], runs_at_once=1, device=torch.device("cpu"), cache=cache)
    for _ in sys.stdin:
        began = time.process_time()
        fleet.step()
        print(json.dumps(time.process_time() - began), flush=True)


def trl_steps(precision: str) -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from unipelt.checkpoint.bases import load_base, load_tokenizer

    config, cache = chats()
    examples = cache.splits(config).train
    rows = [
        {"prompt": [{"role": "user", "content": text}], "completion": [{"role": "assistant", "content": answer}]}
        for text, answer in zip(examples.inputs["source"], examples.targets)
    ]

    class Turns(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if not sys.stdin.readline():
                sys.exit()
            self.began = time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            print(json.dumps(time.process_time() - self.began), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            folder, max_steps=1000, per_device_train_batch_size=ROWS, learning_rate=1e-4, max_length=512, use_cpu=True,
            bf16=precision == "bf16", gradient_checkpointing=False, report_to="none", disable_tqdm=True, save_strategy="no",
            logging_strategy="no", completion_only_loss=True,
        )  # fmt: skip
        lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        trainer = SFTTrainer(
            load_base("smollm2"), arguments, train_dataset=Dataset.from_list(rows), peft_config=lora,
            processing_class=load_tokenizer("smollm2"), callbacks=[Turns()],
        )  # fmt: skip
        trainer.train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--serve", choices=["unipelt", "trl"])
    given = parser.parse_args()
    if given.serve:
        import torch

        torch.set_num_threads(1)
        {"unipelt": unipelt_steps, "trl": trl_steps}[given.serve](given.precision)
        return
    processes = {}
    for name, python in {"unipelt": sys.executable, "trl": given.python}.items():
        command = [python, __file__, "--serve", name, "--precision", given.precision]
        processes[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    seconds: dict[str, list[float]] = {name: [] for name in processes}
    for _ in range(given.turns + 1):  # the first warms up
        for name, process in processes.items():
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write("step\n")
            process.stdin.flush()
            while not (line := process.stdout.readline()).strip().replace(".", "").replace("e-", "").isdigit():
                if not line:
                    raise SystemExit(f"{name} ended; its message is above")
            seconds[name].append(float(line))
    for process in processes.values():
        process.kill()
    each = {name: round(median(values[1:]), 2) for name, values in seconds.items()}
    ratio = median(ours / theirs for ours, theirs in list(zip(seconds["unipelt"], seconds["trl"]))[1:])
    print(f"{given.precision}: CPU seconds a step {each}, unipelt ÷ TRL {ratio:.2f}")


if __name__ == "__main__":
    main()
