"""What the methods of a comparison wrote, side by side: text metrics of each, and examples with their scores."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from unipelt.errors import UserError
from unipelt.report.mistakes import shown_text
from unipelt.report.names import seeds_text
from unipelt.report.runs import Run
from unipelt.report.tables import Block, Cell, Section, Table
from unipelt.study.store import ANSWER, Store
from unipelt.tasks.metrics import METRICS
from unipelt.tasks.text_metrics import TEXT_METRICS

SHOWN = 5  # examples
SCORE = "rougeL"
METRIC_NAMES = ("loss", *TEXT_METRICS, "exact_match")


def written(store: Store, runs: Sequence[Run], take: str) -> list[Section]:
    """The section of a comparison whose runs wrote texts; none of another task's. take: the recommended method."""
    rows = {row["id"]: row for row in store.runs(("id", "texts", "test_metrics", "rows"), [run.id for run in runs])}
    metrics: dict[str, list[dict[str, float]]] = defaultdict(list)
    first: dict[str, dict[str, Any]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        row = rows[run.id]
        if row["texts"]:
            first.setdefault(run.method, row)
        if row["test_metrics"]:
            metrics[run.method].append(row["test_metrics"])
    if not first:
        return []
    take = take if take in first else next(iter(first))
    found, fingerprint = [text_metrics(metrics)], first[take]["rows"]["test"]["fingerprint"]
    kept = store.examples(fingerprint)
    if kept and ANSWER in kept[0]:
        same = {m: row["texts"] for m, row in first.items() if row["rows"]["test"]["fingerprint"] == fingerprint}
        found.append(examples(*kept, same, take))
    return [Section("Written texts", found)]


def text_metrics(metrics: Mapping[str, Sequence[Mapping[str, float]]]) -> Table:
    """A row per method, a column per metric: the mean over its seeds, from the lowest to the highest."""
    names = [name for name in METRIC_NAMES if any(name in own for of in metrics.values() for own in of)]
    rows = [[Cell(m), *(_over_seeds(name, of) for name in names), Cell(seeds_text(len(of)))] for m, of in metrics.items()]  # fmt: skip
    columns = ["method", *(name.replace("_", " ") for name in names), "seeds"]
    note = "Test examples; the mean over seeds, and the lowest and highest of them. ROUGE without stemming."
    return Table("text-metrics", "Metrics of the written texts", columns, [Block("", rows)], [note])


def _over_seeds(name: str, of: Sequence[Mapping[str, float]]) -> Cell:
    values = [METRICS[name].shown_as * own[name] for own in of if name in own]
    low, high = (min(values), max(values)) if len(values) > 1 else (None, None)
    return Cell(fmean(values), low=low, high=high) if values else Cell()


def examples(inputs: dict[str, list], names: list[str], texts: dict[str, list[str]], take: str) -> Table:
    """The right answer and each method's of some examples: from the worst answer of the recommended method to its best."""
    answers = inputs[ANSWER]
    asked = {name: [_plain(value) for value in values] for name, values in inputs.items() if name != ANSWER}
    mine = [_score(text, right) for text, right in zip(texts[take], answers)]
    order = sorted(range(len(answers)), key=lambda i: (mine[i] or 0.0, i))
    chosen = [order[round(place * (len(order) - 1) / (SHOWN - 1))] for place in range(SHOWN)]
    blocks = []
    for i in dict.fromkeys(chosen):
        rows = [[Cell("right answer"), Cell(answers[i]), Cell()]]
        rows += [[Cell(method), Cell(own[i]), Cell(_score(own[i], answers[i]))] for method, own in texts.items()]
        blocks.append(Block(f"{names[i].rpartition(', ')[2]}: {shown_text(asked, i)}", rows))
    note = f"From the worst answer of {take} to its best, by ROUGE-L; of each method the first seed."
    return Table("written", "Answers side by side", ["", "text", "ROUGE-L"], blocks, [note])


def _plain(value: object) -> str:
    """The text of an input; of a chat, its messages."""
    return " / ".join(one["content"] for one in value) if isinstance(value, list) else str(value)


def _score(text: str, right: str) -> float | None:
    try:
        return METRICS[SCORE]([text], [right])
    except UserError:  # rouge-score is not installed
        return None
