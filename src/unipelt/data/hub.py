"""Data sets of the Hugging Face hub, read through `datasets`."""

from collections.abc import Collection
from typing import Any

from unipelt.data.columns import choose_columns
from unipelt.data.load import Source
from unipelt.data.tables import Table, is_missing
from unipelt.errors import DataError


def load_hub(name: str, columns: dict[str, str | None]) -> Source:
    """`owner/name`, or `owner/name/subset`: split train, and as test set the split test, or validation where test is missing or
    unlabelled."""
    owner, dataset, *subset = name.split("/")
    tables = hub_tables(
        f"{owner}/{dataset}", subset[0] if subset else None, advice="check the name, or give a file instead"
    )
    if "train" not in tables:
        raise DataError(
            f"{name} has no split 'train' but {', '.join(tables)}; save the split that you want as a file and give that file"
        )
    chosen = choose_columns(tables["train"], **columns)  # type: ignore[arg-type]
    used_tables = {"train": tables["train"]}
    for split in ("test", "validation"):
        labels = tables[split].columns.get(chosen.label or "", []) if split in tables else []
        if any(not is_missing(value) and value != -1 for value in labels):  # -1: withheld
            used_tables[split if "test" in used_tables else "test"] = tables[split]
    return Source(name=name.split("/")[-1], tables=used_tables, columns=chosen, where=f"{name} on the hub")


def hub_tables(name: str, config: str | None, *, advice: str, only: Collection[str] | None = None) -> dict[str, Table]:
    """Every split, or `only` those, as tables. Raises DataError, in one line that ends in `advice`, whatever goes wrong."""
    import datasets

    try:
        splits = datasets.load_dataset(name, config)
    except Exception as error:  # the hub's clients raise a dozen unrelated types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise DataError(f"{name} could not be downloaded from the Hub ({reason}); {advice}") from error
    return {
        str(split): Table(
            name=f"{name}, split {split}",
            columns={column: list(rows[column]) for column in rows.column_names},
            classes={column: names for column, feature in rows.features.items() if (names := _names(feature))},
        ).with_languages_apart()
        for split, rows in splits.items()
        if only is None or split in only
    }


def _names(feature: Any) -> tuple[str, ...]:
    """Class names that a feature, or the elements of a list feature, declare."""
    return tuple(getattr(getattr(feature, "feature", feature), "names", None) or ())
