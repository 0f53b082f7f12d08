"""One example of every kind of task: a file, and texts to predict. A new kind is one entry here; every law runs over it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORDS = [f"word{i}" for i in range(20)]


@dataclass(frozen=True)
class Kind:
    """How a file of one kind is made: rows of a JSONL file, and the options by which it is read."""

    row: Any
    options: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path, count: int = 60, labels: int = 3) -> Path:
        path.write_text("".join(json.dumps(self.row(index, labels)) + "\n" for index in range(count)))
        return path


def text(index: int) -> str:
    return " ".join(WORDS[(index * step) % 20] for step in (1, 3, 7)[: 1 + index % 3]) + f" word{index % 13}"


KINDS: dict[str, Kind] = {
    "classification": Kind(lambda i, labels: {"text": text(i), "label": "abcdef"[i % labels]}),
    "multi-label": Kind(
        lambda i, labels: {"text": text(i), "label": "|".join("abcdef"[k] for k in range(labels) if i % (k + 2))},
        {"label_separator": "|"},
    ),
    "regression": Kind(lambda i, labels: {"text": text(i), "label": 100 * labels + i / 4}),
    "token-classification": Kind(
        lambda i, labels: {
            "tokens": text(i).split(),
            "tags": ["OBI"[(i + j) % 2] + "-" * ((i + j) % 2) + "ABCDEF"[i % labels] * ((i + j) % 2) for j in range(len(text(i).split()))],
        }
    ),
}  # fmt: skip
