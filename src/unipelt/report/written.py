"""What the methods of a comparison wrote, side by side: text metrics of each, and examples with their scores."""

from collections.abc import Sequence
from statistics import fmean

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
    texts = {run.id: row["texts"] for run in runs if (row := rows[run.id])["texts"]}
    if not texts:
        return []
    table = text_metrics(runs, {name: row["test_metrics"] or {} for name, row in rows.items()})
    first: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        if run.id in texts:
            first.setdefault(run.method, run)
    mine = first.get(take) or next(iter(first.values()))
    fingerprint = str(rows[mine.id]["rows"]["test"]["fingerprint"])
    kept = store.examples(fingerprint)
    found: list[Table] = [table]
    if kept and ANSWER in kept[0]:
        same = {m: texts[run.id] for m, run in first.items() if rows[run.id]["rows"]["test"]["fingerprint"] == fingerprint}  # fmt: skip
        found.append(examples(*kept, same, mine.method))
    return [Section("Written texts", found)]


def text_metrics(runs: Sequence[Run], metrics: dict[str, dict[str, float]]) -> Table:
    """A row per method, a column per metric: the mean over its seeds, from the lowest to the highest."""
    names = [name for name in METRIC_NAMES if any(name in own for own in metrics.values())]
    rows = []
    for method in dict.fromkeys(run.method for run in runs):
        own = [metrics[run.id] for run in runs if run.method == method and metrics[run.id]]
        cells = []
        for name in names:
            values = [METRICS[name].shown_as * one[name] for one in own if name in one]
            several = len(values) > 1
            cells.append(
                Cell(fmean(values), low=min(values) if several else None, high=max(values) if several else None)
                if values
                else Cell()
            )
        if own:
            rows.append([Cell(method), *cells, Cell(seeds_text(len(own)))])
    columns = ["method", *(name.replace("_", " ") for name in names), "seeds"]
    note = "Test examples; the mean over seeds, and the lowest and highest of them. ROUGE without stemming."
    return Table("text-metrics", "Metrics of the written texts", columns, [Block("", rows)], [note])


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
