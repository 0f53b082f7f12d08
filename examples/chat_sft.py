"""Tune a chat model with TRL's SFTTrainer on a JSONL file of conversations: needs `pip install 'unipelt[trl]'`.

Only the assistant's tokens count in the loss. `accelerate launch examples/chat_sft.py …` uses several GPUs; docs/generation.md
has the command that shards a model over them with FSDP2.

    python examples/chat_sft.py FOLDER [--model HuggingFaceTB/SmolLM2-135M-Instruct] [--steps 100]
"""

import argparse
from pathlib import Path

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import unipelt

parser = argparse.ArgumentParser()
parser.add_argument("folder")
parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
parser.add_argument("--method", default="lora(r=16, target_modules='all-linear')")
parser.add_argument("--steps", type=int, default=100)
given = parser.parse_args()

data = load_dataset("json", data_files=str(Path(__file__).with_name("chat.jsonl")), split="train")
tokenizer = AutoTokenizer.from_pretrained(given.model)
model = AutoModelForCausalLM.from_pretrained(given.model)
unipelt.attach(model, given.method)

arguments = SFTConfig(
    f"{given.folder}/trainer", max_steps=given.steps, learning_rate=5e-4, max_length=256, assistant_only_loss=True,
    packing=False, bf16=torch.cuda.is_available(), gradient_checkpointing=False, report_to="none", disable_tqdm=True, logging_steps=1,
)  # fmt: skip
trainer = SFTTrainer(model, arguments, train_dataset=data, processing_class=tokenizer)
trainer.train()
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
print(f"loss {losses[0]:.3f} at the first step, {losses[-1]:.3f} at the last")
trainer.save_model(f"{given.folder}/tuned")  # by the first process, gathered from all

if arguments.world_size == 1:  # a sharded model answers in all processes at once: load the run for that
    prompt = tokenizer.apply_chat_template(
        data[0]["messages"][:1], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.eval().generate(**prompt, max_new_tokens=8, do_sample=False)
    print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
