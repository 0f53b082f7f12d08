"""Data sets of the Hugging Face hub, read through `datasets`."""

from collections.abc import Collection

from unipelt.data.columns import Table, choose_columns, task_and_rows
from unipelt.data.task import Dataset, Kind
from unipelt.errors import DataError


def load_hub(
    name: str,
    *,
    text: str | None = None,
    pair: str | None = None,
    label: str | None = None,
    kind: Kind | None = None,
) -> Dataset:
    """`owner/name`: split train, and as test set the split test, or validation where test is missing or unlabelled."""
    tables = hub_tables(name, None, advice="check the name, or give a file instead")
    if "train" not in tables:
        raise DataError(f"{name} has no split 'train' but {', '.join(tables)}; save the split you want as a file")
    columns = choose_columns(tables["train"], text=text, pair=pair, label=label, for_prediction=False)
    task, train = task_and_rows(tables["train"], columns, name=name.split("/")[-1], kind=kind)

    held_out = []
    for split in ("test", "validation"):
        labels = tables[split].columns.get(columns.label or "", []) if split in tables else []
        if any(value is not None and value != -1 for value in labels):  # -1: withheld
            held_out.append(task_and_rows(tables[split], columns, name=name, labels=task.labels, kind=task.kind)[1])
    test = held_out[0] if held_out else None
    validation = held_out[1] if len(held_out) == 2 else None
    return Dataset(task=task, train=train, test=test, validation=validation, complete=True, source=f"{name} on the hub")


def hub_tables(name: str, config: str | None, *, advice: str, only: Collection[str] | None = None) -> dict[str, Table]:
    """Every split, or `only` those, as tables; whatever goes wrong on the way becomes one line that ends in `advice`."""
    import datasets

    try:
        splits = datasets.load_dataset(name, config)
    except Exception as error:  # the hub's clients raise a dozen unrelated types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise DataError(f"{name} could not be had from the hub ({reason}); {advice}") from error
    return {
        str(split): Table(
            place=f"{name}, split {split}",
            columns={column: list(rows[column]) for column in rows.column_names},
            classes={
                column: tuple(feature.names)
                for column, feature in rows.features.items()
                if isinstance(feature, datasets.ClassLabel)
            },
        )
        for split, rows in splits.items()
        if only is None or split in only
    }
