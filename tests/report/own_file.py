"""Comparisons on one's own file whose answers are known, of every kind of task, written as `unipelt compare` writes them."""

from pathlib import Path
from typing import Any

import numpy as np

from unipelt.data.examples import Examples
from unipelt.data.splits import Splits, summarise
from unipelt.study.store import Store
from unipelt.tasks.metrics import METRICS
from unipelt.train.records import RunKey, RunRecord

LABELS = ["good", "<script>alert(1)</script>", "so-so", "a class with quite a long name of its own"]
EVIL = '<img src=x onerror=alert(1)> & "quoted" {{ 7 * 7 }} ' + "long " * 200
TEST, TRAIN = 300, 1000
TAGS = ("tags", "parts of speech")


def saved(kind: str) -> int:
    """The seed whose model is saved: the best, the last of equal ones."""
    scores = [METRICS[metric](said, targets) for targets, said, _, metric in (drawn(kind, TEST, s) for s in (0, 1))]
    return int(scores[1] >= scores[0])


def drawn(
    kind: str, rows: int, seed: int, skill: float = 2.0, labels: int = 4
) -> tuple[list[Any], list[Any], list[list[float]] | None, str]:
    """Targets (the same for every seed), predictions, logits that are twice too large, and the metric."""
    truth, luck = np.random.default_rng(7), np.random.default_rng(seed)
    if kind == "classification":
        targets = truth.choice(4, rows, p=[0.6, 0.25, 0.1, 0.05])
        noisy = truth.normal(size=(rows, 4)) + 0.2 * luck.normal(size=(rows, 4)) + skill * np.eye(4)[targets]
        logits = 2 * skill * np.pad(noisy, ((0, 0), (0, labels - 4)), constant_values=-9)
        return targets.tolist(), noisy.argmax(axis=1).tolist(), logits.round(4).tolist(), "accuracy"
    if kind == "multi-label":
        wanted = (truth.random((rows, 4)) < 0.4).astype(int)
        noisy = 2 * wanted - 1 + truth.normal(size=(rows, 4)) + 0.2 * luck.normal(size=(rows, 4))
        return wanted.tolist(), (noisy > 0).astype(int).tolist(), (4 * noisy).round(4).tolist(), "micro_f1"
    if kind == "regression":
        values = truth.normal(50_000, 9_000, rows)
        return values.tolist(), (0.8 * values + 9_000 + luck.normal(0, 3_000, rows)).tolist(), None, "spearman"
    if kind == "losses":
        counts = truth.integers(3, 30, rows)
        return counts.tolist(), (counts * truth.gamma(4, 0.5, rows)).round(4).tolist(), None, "loss"
    if kind == "texts":
        right = [f"<b>answer</b> number {i} of many" for i in range(rows)]
        return right, [text if truth.random() < 0.3 else text[:-8] for text in right], None, "exact_match"
    words = ["O", "B-PER", "I-PER", "B-LOC", "O"] if kind == "tags" else ["X", "NOUN", "VERB", "NOUN", "X"]
    tags = [words for _ in range(rows)]
    said = [[tag if truth.random() < 0.9 else words[0] for tag in own] for own in tags]
    return tags, said, None, "span_f1" if kind == "tags" else "tag_accuracy"


def own_file(folder: Path, kind: str = "classification", seeds: int = 2, fewer: tuple[int, ...] = (250, 500), labels: list[str] = LABELS) -> Path:  # fmt: skip
    """The folder of a comparison of head and lora, the second better, with a learning curve of lora."""
    has_classes = kind in ("classification", "multi-label")
    store = Store.create(folder, {"data": "reviews.csv", "k": "all", "model": "minilm"})
    texts = [
        EVIL if i % 50 == 0 else f"text {i} of the <img src=x onerror=alert({i})> file" for i in range(TRAIN + TEST)
    ]
    inputs = {"tokens": [text.split()[:5] + ["x"] * 5 for text in texts]} if kind in TAGS else {"text": texts}
    targets = drawn(kind, TEST, 0)[0]
    test = Examples(inputs={name: of[:TEST] for name, of in inputs.items()}, targets=targets)
    train = Examples(inputs={name: of[TEST:] for name, of in inputs.items()}, targets=drawn(kind, TRAIN, 0)[0])
    store.note("examples", summarise(Splits(train=train, validation=test, test=test, notes=())))
    names = [f"reviews.csv, example {i + 1} (line {i + 2})" for i in range(TEST)]
    store.note(test.fingerprint, {"inputs": test.inputs, "names": names})
    results = {}
    for method, skill, sizes in (("head", 1.0, ()), ("lora", 2.0, fewer)):
        for k in ("all", *sizes):
            for seed in range(seeds):
                less = 0.0 if k == "all" else 0.3 * (TRAIN / k) ** 0.5
                targets, said, logits, metric = drawn(kind, TEST, seed, skill - less, len(labels))
                score, better = METRICS[metric](said, targets), 0.05 if METRICS[metric].higher_is_better else -0.05
                curve = [{"epoch": float(e), "step": 10.0 * e, metric: score - 0.1 / e} for e in (1, 2, 3)]
                results[RunKey(task="reviews.csv", k=k, method=method, seed=seed, lr=1e-3)] = RunRecord(
                    status="finished", metric=metric, validation=score - better * (method == "head"), test=score, curve=curve, predictions=said, targets=targets,
                    logits=logits, temperature=2.0 if logits else None, labels=labels if has_classes else [], parameters={"head": 10 + len(method)},
                    seconds=12.0, predicting=0.9, truncated={"train": 17, "validation": 0, "test": 3}, steps=30, runs_at_once=1,
                    examples={"train": {"number": TRAIN if k == "all" else k, "fingerprint": "x"}, "test": {"number": TEST, "fingerprint": test.fingerprint}},
                )  # fmt: skip
    store.plan(results)
    store.finish(results)
    store.close()
    return folder
