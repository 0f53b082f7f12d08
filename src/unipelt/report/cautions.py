"""What a user of a comparison should know before the numbers are trusted: one sentence each, with exact counts."""

from collections.abc import Mapping, Sequence
from typing import Any

from unipelt.report.names import listed, seeds_text
from unipelt.report.samples import metric_of
from unipelt.report.study import Run

UNBALANCED = 5  # times as many examples in the most frequent class as in the rarest
FEW_VALIDATION = 100  # validation examples, below which one example moves a metric by over a point
WORDS = {"train": "training", "validation": "validation", "test": "test"}


def cautions(summary: Mapping[str, Any] | None, runs: Sequence[Run], folds: int = 0) -> list[str]:
    """summary: `data.splits.summarise`, of the first seed. runs: the finished runs of the recommended method."""
    if summary is None:
        return _of_training(runs)
    first = runs[0].record
    sentences = _of_classes(summary, first.labels or [])
    if n := summary["contradictory"]:
        texts = "text has" if n == 1 else "texts have"
        sentences.append(f"{n:,} {texts} different labels in different examples: no model can get all of them right.")
    if repeated := _counts(summary["repeated"]):
        sentences.append(f"Examples that repeat an earlier text: {repeated}. They count several times.")
    if shared := _counts(summary["shared"]):
        sentences.append(
            f"Examples whose text is also a training text: {shared}. They make the scores look better than they are."
        )
    counts = summary["examples"]
    if cut_texts := [f"{n:,} of {counts[split]:,} {WORDS[split]}" for split, n in (first.truncated or {}).items() if n]:
        sentences.append(f"Texts were cut to --max-length tokens: {listed(cut_texts)} texts are longer. A larger --max-length reads them whole and takes more time.")  # fmt: skip
    num_validation = counts.get("validation", FEW_VALIDATION)
    if 0 < num_validation < FEW_VALIDATION and (not folds or any(run.record.curve for run in runs)):
        chosen = "of each fold choose the epoch and the learning rate" if folds else "choose the epoch and the method"
        sentences.append(
            f"Only {num_validation} validation examples {chosen}: one of them moves the accuracy by {100 / num_validation:.1f} points."
        )
    return sentences + _of_training(runs)


def _counts(numbers: Mapping[str, int]) -> str:
    """`19 training and 5 test`; empty where there are none."""
    known = [f"{n:,} {WORDS[split]}" for split, n in numbers.items() if n]
    return listed(known) if known else ""


def _of_classes(summary: Mapping[str, Any], labels: Sequence[str]) -> list[str]:
    counts = summary["classes"]["train"]
    count_of = {label: counts.get(str(index), 0) for index, label in enumerate(labels)} if counts else {}
    if len(count_of) < 2:
        return []
    least, most = min(count_of, key=count_of.__getitem__), max(count_of, key=count_of.__getitem__)
    if count_of[most] < UNBALANCED * max(count_of[least], 1):
        return []
    return [
        f"Classes are unequal: {count_of[most]:,} of the {summary['examples']['train']:,} training examples are {most!r} and"
        f" {count_of[least]:,} are {least!r}. Accuracy says little about rare classes: look at the F1 of each class, and at"
        " --metric macro_f1."
    ]  # fmt: skip


def _of_training(runs: Sequence[Run]) -> list[str]:
    """Where the best epoch is the last one, and the run was not stopped early."""
    late = []
    for record in (run.record for run in runs if run.record.status == "finished"):
        curve = [point for point in record.curve or [] if record.metric in point]
        if len(curve) > 1:
            sign = metric_of(record.metric).sign
            best = max(curve, key=lambda point: (sign * point[record.metric], -point["epoch"]))
            late += [curve[-1]] if best is curve[-1] else []
    if not late:
        return []
    metric, epoch = runs[0].record.metric.replace("_", " "), late[0]["epoch"]
    return [
        f"The validation {metric} of {runs[0].method} was best at the last epoch ({epoch:.0f}) in {len(late)} of"
        f" {seeds_text(len(runs))}: it may improve with more --epochs."
    ]
