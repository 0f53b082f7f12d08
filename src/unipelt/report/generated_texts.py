"""Texts that the methods of a comparison generated, side by side: text metrics of each, and examples with their scores."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from unipelt.errors import UserError
from unipelt.report.mistakes import shown_text
from unipelt.report.study import Run
from unipelt.report.tables import Block, Cell, Section, Table, side_by_side
from unipelt.study.store import REFERENCE, Store
from unipelt.tasks.metrics import METRICS
from unipelt.tasks.text_metrics import TEXT_METRICS

SHOWN = 5  # examples
SCORE = "rougeL"
METRIC_NAMES = ("loss", *TEXT_METRICS, "exact_match")


def generated_texts(store: Store, runs: Sequence[Run], recommended: str) -> list[Section]:
    """The section of a comparison whose runs generated texts; none of another task's. recommended: the method."""
    texts = {row["id"]: row["texts"] for row in store.runs(("id", "texts"), [run.id for run in runs]) if row["texts"]}
    if not texts:
        return []
    metrics: dict[str, list[dict[str, float]]] = defaultdict(list)
    first: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        if run.record.test_metrics:
            metrics[run.method].append(run.record.test_metrics)
        if run.id in texts:
            first.setdefault(run.method, run)
    recommended = recommended if recommended in first else next(iter(first))
    tables, fingerprint = [text_metrics(metrics)], _test_examples(first[recommended])
    test_set = store.noted(fingerprint)
    if test_set and REFERENCE in test_set["inputs"]:
        texts_by_method = {method: texts[run.id] for method, run in first.items() if _test_examples(run) == fingerprint}
        tables.append(examples(test_set["inputs"], test_set["names"], texts_by_method, recommended))
    return [Section("Generated texts", tables)]


def _test_examples(run: Run) -> str:
    """Their fingerprint."""
    return run.record.examples["test"]["fingerprint"] if run.record.examples else ""


def text_metrics(metrics: Mapping[str, Sequence[Mapping[str, float]]]) -> Table:
    """A row per method, a column per metric: mean and standard deviation over its seeds."""
    names = [name for name in METRIC_NAMES if any(name in run for runs in metrics.values() for run in runs)]
    columns = []
    for name in names:
        values = {method: [METRICS[name].display_factor * run[name] for run in runs if name in run] for method, runs in metrics.items()}  # fmt: skip
        columns.append({method: Cell.mean(known) for method, known in values.items() if known})
    columns.append({method: Cell.count(len(runs)) for method, runs in metrics.items()})
    note = "Test examples; mean and standard deviation over the seeds. ROUGE without stemming."
    heads = ["method", *(name.replace("_", " ") for name in names), "seeds"]
    return Table(
        "text-metrics", "Metrics of the generated texts", heads, [Block("", side_by_side(metrics, columns))], [note]
    )


def examples(inputs: dict[str, list], names: list[str], texts: dict[str, list[str]], recommended: str) -> Table:
    """The right answer and each method's of some examples: from the worst answer of the recommended method to its best."""
    answers = inputs[REFERENCE]
    shown_inputs = {name: [_plain(value) for value in values] for name, values in inputs.items() if name != REFERENCE}
    scores = [_score(text, right) for text, right in zip(texts[recommended], answers)]
    order = sorted(range(len(answers)), key=lambda i: (scores[i] or 0.0, i))
    chosen = [order[round(rank * (len(order) - 1) / (SHOWN - 1))] for rank in range(SHOWN)]
    blocks = []
    for i in dict.fromkeys(chosen):
        rows = [[Cell("right answer"), Cell(answers[i]), Cell()]]
        rows += [
            [Cell(method), Cell(method_texts[i]), Cell(_score(method_texts[i], answers[i]))]
            for method, method_texts in texts.items()
        ]
        blocks.append(Block(f"{names[i].rpartition(', ')[2]}: {shown_text(shown_inputs, i)}", rows))
    note = f"From the worst answer of {recommended} to its best, by ROUGE-L; of each method the first seed."
    return Table("written", "Answers side by side", ["", "text", "ROUGE-L"], blocks, [note])


def _plain(value: object) -> str:
    """The text of an input; of a chat, its messages."""
    return " / ".join(message["content"] for message in value) if isinstance(value, list) else str(value)


def _score(text: str, right: str) -> float | None:
    try:
        return METRICS[SCORE]([text], [right])
    except UserError:  # rouge-score is not installed
        return None
