"""Tune a sentence encoder with sentence-transformers: tickets of one area move closer together.

python examples/sentence_embeddings.py FOLDER [--model sentence-transformers/all-MiniLM-L6-v2] [--steps 20]
"""

import argparse
import csv
from pathlib import Path

from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.util import cos_sim

try:
    from sentence_transformers.sentence_transformer.losses import BatchAllTripletLoss
except ImportError:  # before sentence-transformers 6
    from sentence_transformers.losses import BatchAllTripletLoss

import unipelt

parser = argparse.ArgumentParser()
parser.add_argument("folder")
parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
parser.add_argument("--method", default="unipelt-apl")
parser.add_argument("--steps", type=int, default=20)
given = parser.parse_args()

with Path(__file__).with_name("tickets.csv").open(encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
texts, areas = [row["text"] for row in rows], [int(row["area"] == "billing") for row in rows]

encoder = SentenceTransformer(given.model, device="cpu")
unipelt.attach(encoder[0].auto_model, given.method)  # the transformers model inside


def separation() -> float:
    """Mean cosine similarity within an area minus that between areas."""
    similarity = cos_sim(*[encoder.encode(texts, convert_to_tensor=True)] * 2)
    same = [[a == b for b in areas] for a in areas]
    pairs = [(float(similarity[i, j]), same[i][j]) for i in range(len(texts)) for j in range(i)]
    means = [
        sum(value for value, alike in pairs if alike is kind) / sum(alike is kind for _, alike in pairs)
        for kind in (True, False)
    ]
    return means[0] - means[1]


before = separation()
arguments = SentenceTransformerTrainingArguments(
    f"{given.folder}/trainer", max_steps=given.steps, learning_rate=1e-3, per_device_train_batch_size=16, report_to="none",
    disable_tqdm=True, save_strategy="no",
)  # fmt: skip
trainer = SentenceTransformerTrainer(
    encoder,
    arguments,
    train_dataset=Dataset.from_dict({"sentence": texts, "label": areas}),
    loss=BatchAllTripletLoss(encoder),
)
trainer.train()
print(f"separation of the two areas: {before:.3f} before, {separation():.3f} after")
unipelt.save(encoder[0].auto_model, f"{given.folder}/tuned", base=given.model)
