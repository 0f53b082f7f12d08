"""The kinds of task, and the task that a data set holds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unipelt import data
from unipelt.data import Columns, Dataset
from unipelt.errors import CheckpointError, DataError, did_you_mean
from unipelt.tasks.base import Task
from unipelt.tasks.classification import Classification
from unipelt.tasks.generation import Generation
from unipelt.tasks.multi_label import MultiLabel
from unipelt.tasks.regression import Regression
from unipelt.tasks.token_classification import TokenClassification

TASKS: dict[str, type[Task]] = {
    task.kind: task for task in (Generation, TokenClassification, MultiLabel, Regression, Classification)
}
"""by kind; the first whose `matches` says so takes a table, so that the most general stands last"""


def load(
    name: str | Path, *, kind: str | None = None, metric: str | None = None, label_separator: str | None = None,
    skip_empty: bool = False, group_column: str | None = None, generation: dict[str, Any] | None = None, **files: Any,
) -> tuple[Task, Dataset]:  # fmt: skip
    """The task and the examples of a data set; `files` as `unipelt.data.find` takes them. Raises DataError."""
    if kind is not None and kind not in TASKS:
        raise DataError(f"--kind {kind}: {did_you_mean(kind, TASKS)}")
    source = data.find(name, group_column=group_column, **files)
    train, columns = source.tables["train"], source.columns
    kind = (
        kind or source.kind or next(cls.kind for cls in TASKS.values() if cls.matches(train, columns, label_separator))
    )
    task = TASKS[kind].from_table(
        source.name, train, columns, labels=source.labels, metric=metric or source.metric,
        separator=label_separator, skip_empty=skip_empty,
    )  # fmt: skip
    task = task.with_options(generation or {})
    parts: dict[str, data.Examples] = {}
    notes: list[str] = []
    for part, table in source.tables.items():
        parts[part], indices = task.read(table, columns, group=group_column, skip_empty=skip_empty)
        notes += table.notes
        if len(indices) < len(table):
            notes.append(
                f"{table.name}: {len(table) - len(indices)} of {len(table)} examples are incomplete and left out."
            )
    if metric == "f1":
        notes.append(f"f1 is that of the class {task.labels[1]!r}; --metric macro_f1 counts both classes alike.")
    _refuse_copies(parts, source)
    return task, Dataset(
        name=source.name, classes=task.classes, complete=source.complete, source=source.where,
        notes=(*notes, *task.notes(parts["train"])), **parts,
    )  # fmt: skip


def task_of(description: Mapping[str, Any]) -> Task:
    """The task that a checkpoint describes. Raises CheckpointError where it does not describe one."""
    fields = dict(description)
    kind = fields.pop("kind", None)
    if not isinstance(kind, str) or kind not in TASKS:
        raise CheckpointError(f"task.kind is {kind!r}, expected one of {', '.join(TASKS)}")
    try:
        columns = Columns(**fields.pop("columns"))
        labels = fields.pop("labels")
        if not isinstance(labels, list | tuple) or not all(isinstance(label, str) for label in labels):
            raise TypeError(f"labels {labels!r}, expected names")
        if not fields.get("temperature", 1.0) > 0:
            raise TypeError(f"temperature {fields['temperature']!r}, expected a number above 0")
        task = TASKS[kind](columns=columns, labels=tuple(labels), **fields)
        if task.metric not in TASKS[kind].metrics(task.labels):
            raise TypeError(f"metric {task.metric!r}, expected one of {', '.join(TASKS[kind].metrics(task.labels))}")
        return task
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"the task is not described as expected: {error}") from None


def _refuse_copies(parts: dict[str, data.Examples], source: data.Source) -> None:
    """Raise DataError where a --validation or --test file has the examples of another set."""
    names: dict[str, str] = {}
    for part, examples in parts.items():
        name = source.tables[part].name
        if examples.fingerprint in names:
            raise DataError(
                f"--{part} {name}: has the same examples as {names[examples.fingerprint]}; give other examples, or leave it out and some are held out"
            )
        names[examples.fingerprint] = name
