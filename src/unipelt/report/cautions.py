"""What a user of a comparison should know before the numbers are trusted: one sentence each, with exact counts."""

from collections.abc import Mapping, Sequence
from typing import Any

from unipelt.report.names import listed, seeds_text
from unipelt.report.runs import Run
from unipelt.report.samples import metric_of

UNBALANCED = 5  # times as many examples has the largest class as the smallest
FEW = 100  # validation examples, below which one example moves a metric by over a point
PARTS = {"train": "training", "validation": "validation", "test": "test"}


def cautions(summary: Mapping[str, Any] | None, labels: Sequence[str], runs: Sequence[Run], truncated: Mapping[str, int] | None, folds: int = 0) -> list[str]:  # fmt: skip
    """summary: `data.splits.summarise`, of the first seed. runs: the finished runs of the recommended method. truncated: by
    part, the texts that lost tokens."""
    said = [] if summary is None else [*_of_classes(summary, labels), *_of_texts(summary)]
    counts = {} if summary is None else summary["examples"]
    if truncated and any(truncated.values()):
        parts = [f"{n:,} of {counts[name]:,} {PARTS[name]}" if name in counts else f"{n:,} {PARTS[name]}" for name, n in truncated.items() if n]  # fmt: skip
        said.append(f"Texts were cut to --max-length tokens: {listed(parts)} texts are longer. A larger --max-length reads them whole and takes more time.")  # fmt: skip
    chosen = "of each fold choose the epoch and the learning rate" if folds else "choose the epoch and the method"
    if 0 < counts.get("validation", FEW) < FEW and (not folds or any(run.record.curve for run in runs)):
        said.append(f"Only {counts['validation']} validation examples {chosen}: one of them moves the accuracy by {100 / counts['validation']:.1f} points.")  # fmt: skip
    return said + _of_training(runs)


def _of_classes(summary: Mapping[str, Any], labels: Sequence[str]) -> list[str]:
    found = {labels[int(index)]: n for index, n in summary["classes"]["train"].items() if int(index) < len(labels)}
    found = {label: found.get(label, 0) for label in labels} if found else {}
    if len(found) < 2:
        return []
    (least, few), (most, many) = min(found.items(), key=lambda x: x[1]), max(found.items(), key=lambda x: x[1])
    if many < UNBALANCED * max(few, 1):
        return []
    whole = summary["examples"]["train"]
    return [
        f"Classes are unequal: {many:,} of the {whole:,} training examples are {most!r} and {few:,} are {least!r}. Accuracy says"
        " little about rare classes: look at the F1 of each class, and at --metric macro_f1."
    ]  # fmt: skip


def _of_texts(summary: Mapping[str, Any]) -> list[str]:
    said = []
    if n := summary["contradictory"]:
        said.append(f"{n:,} {'text has' if n == 1 else 'texts have'} different labels in different examples: no model can get all of them right.")  # fmt: skip
    repeated = [f"{n:,} {PARTS[part]}" for part, n in summary["repeated"].items() if n]
    if repeated:
        said.append(f"Examples that repeat an earlier text: {listed(repeated)}. They count several times.")
    shared = [f"{n:,} {PARTS[part]}" for part, n in summary["shared"].items() if n]
    if shared:
        said.append(f"Examples whose text is also a training text: {listed(shared)}. They make the scores look better than they are.")  # fmt: skip
    return said


def _of_training(runs: Sequence[Run]) -> list[str]:
    """Where the best epoch is the last one, and the run was not stopped early."""
    ended = [run.record for run in runs if run.record.status == "finished"]
    curves = [(one.metric, one.curve) for one in ended if one.curve and len(one.curve) > 1]
    late = [
        (metric, curve[-1]["epoch"]) for metric, curve in curves if _best_epoch(metric, curve) == curve[-1]["epoch"]
    ]
    if not late:
        return []
    metric, epoch = late[0]
    return [
        f"The validation {metric.replace('_', ' ')} of {runs[0].method} was best at the last epoch ({epoch:.0f}) in {len(late)} of"
        f" {seeds_text(len(runs))}: it may improve with more --epochs."
    ]  # fmt: skip


def _best_epoch(metric: str, curve: Sequence[Mapping[str, float]]) -> float:
    known, sign = [at for at in curve if metric in at], metric_of(metric).sign
    return max(known, key=lambda at: (sign * at[metric], -at["epoch"]))["epoch"]
