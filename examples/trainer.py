"""Tune a classifier with transformers' Trainer: attach, train as usual, save a few megabytes.

python examples/trainer.py FOLDER [--model bert-base-uncased] [--steps 100]
"""

import argparse
from pathlib import Path

from datasets import load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

import unipelt

parser = argparse.ArgumentParser()
parser.add_argument("folder")
parser.add_argument("--model", default="bert-base-uncased")
parser.add_argument("--method", default="unipelt-apl")
parser.add_argument("--steps", type=int, default=100)
given = parser.parse_args()

data = load_dataset("csv", data_files=str(Path(__file__).with_name("tickets.csv")), split="train")
data = data.class_encode_column("area").train_test_split(test_size=16, seed=0, stratify_by_column="area")
names = data["train"].features["area"].names
tokenizer = AutoTokenizer.from_pretrained(given.model)
encoded = data.map(lambda rows: tokenizer(rows["text"], truncation=True, max_length=64), batched=True)
encoded = encoded.rename_column("area", "labels").remove_columns("text")

model = AutoModelForSequenceClassification.from_pretrained(given.model, num_labels=len(names))
unipelt.attach(model, given.method)
trained = sum(unipelt.trainable_parameters(model).values())

arguments = TrainingArguments(
    f"{given.folder}/trainer", max_steps=given.steps, learning_rate=5e-4, report_to="none", disable_tqdm=True
)
trainer = Trainer(
    model, arguments, train_dataset=encoded["train"], eval_dataset=encoded["test"],
    data_collator=DataCollatorWithPadding(tokenizer),
    compute_metrics=lambda result: {"accuracy": float((result.predictions.argmax(-1) == result.label_ids).mean())},
)  # fmt: skip
trainer.train()
print(f"{trained:,} trained parameters, test accuracy {trainer.evaluate()['eval_accuracy']:.2f}")
unipelt.save(model, f"{given.folder}/tuned", base=given.model)
