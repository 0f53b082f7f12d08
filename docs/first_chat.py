"""Tunes smollm2 on a chat file and asks it the same questions before and after: `python docs/first_chat.py FOLDER`.

The chats are real text that every Python has: functions of the standard library, and the first sentence of their docstrings.
"""

import json
import sys
import time
from pathlib import Path

import torch

from unipelt.data.builtin import docstring_summaries
from unipelt.tasks.generation import Generation
from unipelt.train.fleet import Fleet
from unipelt.train.records import RunConfig
from unipelt.train.setup import build_fleet
from unipelt.train.train_run import save_checkpoint

LARGEST = 350  # characters of a function
RECIPE = {"epochs": 1, "batch_size": 8, "lr": 1e-3, "max_length": 192, "precision": "bf16"}
SHOWN = 3


def write_chats(path: Path, pairs: list[tuple[str, str]]) -> None:
    """One chat a line: the function is the user's message, the sentence is the answer."""
    roles = ("user", "assistant")
    chats = [[{"role": role, "content": text} for role, text in zip(roles, pair)] for pair in pairs]
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats), encoding="utf-8")


def asked(fleet: Fleet) -> tuple[dict[str, float], list[str]]:
    """Metrics of the model as it is on the held-out chats, and its answers."""
    plan = fleet.plans[0]
    task, held_out = plan.task, plan.test
    assert isinstance(task, Generation) and held_out is not None and held_out.targets is not None
    losses = task.decide(fleet.predict([held_out])[0], held_out)
    (answers,) = task.generate(fleet.model, fleet.tokenizer, [held_out])
    return task.score(losses, held_out.targets) | task.score(answers, held_out.targets), answers


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    began, cpu = time.monotonic(), time.process_time()
    found = docstring_summaries()
    short = [[pair for pair in part if len(pair[0]) <= LARGEST] for part in (found.train, found.test)]
    train, held_out = short[0][:180], short[1][:24]
    write_chats(folder / "chats.jsonl", train)
    write_chats(folder / "held-out.jsonl", held_out)
    config = RunConfig(
        model="smollm2", task=str(folder / "chats.jsonl"), test=str(folder / "held-out.jsonl"), method="lora",
        validation_rows=20, max_new_tokens=40, recipe=RECIPE,
    )  # fmt: skip
    fleet = build_fleet([config], runs_at_once=1, device=torch.device("cpu"))
    before, first = asked(fleet)
    (run,) = fleet.train()
    save_checkpoint(run, folder / "run")
    after, texts = run.record.test_metrics or {}, run.record.texts or []
    print(f"{len(fleet.plans[0].train)} chats train, {len(held_out)} are held out; smollm2 with lora")
    for metric in ("loss", "rougeL"):
        print(f"held-out {metric}: {before[metric]:.2f} before, {after[metric]:.2f} after")
    for (source, target), old, new in list(zip(held_out, first, texts))[:SHOWN]:
        code = source.partition("\n\n")[2]
        print(
            f"\n{code}\n  docstring  {target}\n  before     {' '.join(old.split())}\n  after      {' '.join(new.split())}"
        )
    print(
        f"\n{time.monotonic() - began:.0f} s ({time.process_time() - cpu:.0f} CPU seconds); {folder / 'run'}: the tuned model"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
