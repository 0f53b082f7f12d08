"""Tune a chat model with TRL's SFTTrainer on a JSONL file of conversations: needs `pip install 'unipelt[trl]'`.

Only the assistant's tokens count in the loss. unipelt marks them, because TRL's own `assistant_only_loss` refuses a chat
template without `{% generation %}`, which most lack, SmolLM2's too. Several GPUs, with FSDP2:

    python examples/chat_sft.py FOLDER [--model smollm2] [--steps 100]
    accelerate launch --use_fsdp --fsdp_version 2 --num_processes 8 examples/chat_sft.py FOLDER --model NAME
"""

import argparse
from pathlib import Path

import torch
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

import unipelt
from unipelt.checkpoint.bases import load_base, load_tokenizer
from unipelt.data.chats import read_chat
from unipelt.tasks.rendering import Renderer

parser = argparse.ArgumentParser()
parser.add_argument("folder")
parser.add_argument("--model", default="smollm2")
parser.add_argument("--method", default="lora(r=16, target_modules='all-linear')")
parser.add_argument("--steps", type=int, default=100)
given = parser.parse_args()

data = load_dataset("json", data_files=str(Path(__file__).with_name("chat.jsonl")), split="train")
model, tokenizer = load_base(given.model), load_tokenizer(given.model)
unipelt.attach(model, given.method)
renderer = Renderer(tokenizer, max_length=256)


def tokens(example: dict, number: int) -> dict:
    """The chat as tokens, and 1 for each token of an answer."""
    where = f"chat.jsonl, line {number + 1}"
    chat = renderer.render("messages", *read_chat(example["messages"], where), where)
    return {"input_ids": chat.tokens, "assistant_masks": [int(learned) for learned in chat.learned]}


arguments = SFTConfig(
    f"{given.folder}/trainer", max_steps=given.steps, learning_rate=5e-4, max_length=256,
    packing=False, bf16=torch.cuda.is_available(), gradient_checkpointing=False, report_to="none", disable_tqdm=True, logging_steps=1,
)  # fmt: skip
trainer = SFTTrainer(
    model,
    arguments,
    train_dataset=data.map(tokens, with_indices=True, remove_columns=data.column_names),
    processing_class=tokenizer,
)
trainer.train()
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
print(f"loss {losses[0]:.3f} at the first step, {losses[-1]:.3f} at the last")
unipelt.save(model, f"{given.folder}/tuned", base=given.model)

prompt = tokenizer.apply_chat_template(
    data[0]["messages"][:1], add_generation_prompt=True, return_tensors="pt", return_dict=True
)
answer = model.eval().generate(**prompt, max_new_tokens=8, do_sample=False)
print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
