"""Train eight runs of one method at once, over one frozen base, with eight seeds; save each as a checkpoint of its own.

One forward and one backward per step serve all runs: the batch has one block of examples for each run.

    python examples/many_runs.py FOLDER [--model bert-base-uncased] [--steps 40]
"""

import argparse
import csv
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import unipelt

parser = argparse.ArgumentParser()
parser.add_argument("folder")
parser.add_argument("--model", default="bert-base-uncased")
parser.add_argument("--method", default="lora(r=8)")
parser.add_argument("--steps", type=int, default=40)
given = parser.parse_args()
RUNS, BATCH = 8, 4

with Path(__file__).with_name("tickets.csv").open(encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
tokenizer = AutoTokenizer.from_pretrained(given.model)
encoded = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
labels = torch.tensor([int(row["area"] == "billing") for row in rows])

model = AutoModelForSequenceClassification.from_pretrained(given.model, num_labels=2)
unipelt.attach(model, given.method, runs=RUNS, seeds=range(RUNS))
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
orders = [torch.Generator().manual_seed(seed) for seed in range(RUNS)]  # each run draws its own examples

for step in range(given.steps):
    chosen = torch.cat([torch.randint(len(rows), (BATCH,), generator=order) for order in orders])
    logits = model.train()(**{name: value[chosen] for name, value in encoded.items()}).logits
    losses = torch.nn.functional.cross_entropy(logits, labels[chosen], reduction="none").view(RUNS, BATCH).mean(dim=1)
    losses.sum().backward()  # the sum: each run gets the gradient that it would get alone
    optimizer.step()
    optimizer.zero_grad()
    if step in (0, given.steps - 1):
        print(f"step {step + 1}: losses " + " ".join(f"{loss:.2f}" for loss in losses.tolist()))

for run in range(RUNS):
    unipelt.save(model, f"{given.folder}/run-{run}", run=run, base=given.model)
