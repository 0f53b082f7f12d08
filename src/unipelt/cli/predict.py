"""`unipelt predict`: a finished run labels new texts."""

from typing import Any

import typer

from unipelt.cli.fields import (
    BASE_OF_RUN,
    DEVICE_HELP,
    OVERWRITE,
    RUN_FOLDER,
    TEXT_COLUMN,
    TEXT_PAIR_COLUMN,
    flags,
    number,
    option,
    switch,
    takes,
)
from unipelt.tasks.settings import GenerationSettings

_TRAINED = dict.fromkeys(("max_new_tokens", "num_beams", "no_repeat_ngram_size"), "as in training")


@takes(*flags(GenerationSettings, but=["min_new_tokens"], default=_TRAINED))
def predict(
    run: str = typer.Argument(..., help=RUN_FOLDER),
    data: str = option("Data", "file with the texts, in a format that `unipelt train` reads (required)", default=...),
    text: str = TEXT_COLUMN,
    pair: str = TEXT_PAIR_COLUMN,
    encoding: str = option(
        "Data", "encoding of a text file, such as cp1252 (default: utf-8, or what the file's byte order mark says)"
    ),
    model: str = BASE_OF_RUN,
    device: str = option("Model", DEVICE_HELP, default="auto", metavar="auto|cpu|cuda"),
    out: str = option(
        "Output",
        "file to write, .csv, .tsv, .json, .jsonl, .parquet or .xlsx (default: standard output, in the input's format; CSV for Parquet and Excel)",
    ),
    overwrite: bool = OVERWRITE,
    proba: bool = switch("Output", "add the probability of each label", "--proba"),
    min_confidence: float = number(
        "Output",
        "leave the prediction blank where every label is less probable than this (default: 0, predict all)",
        "--min-confidence",
        default=0.0,
    ),
    gates: bool = switch("Output", "add the value of each gate, one column per layer and change", "--gates"),
    **generation_options: Any,
) -> None:
    """Predict a label, a number or a text for each example of a file, and add it as a column; --proba and --gates add
    more columns after it.

    With --out, a text file keeps the delimiter, encoding and byte order mark of the input; standard output is UTF-8. An example
    without a text gets a blank prediction.
    Cells are not escaped: a cell such as =1+2 stays a formula. Import a CSV file of unknown origin into a spreadsheet as text.

    Examples:
        unipelt predict runs/reviews --data new.csv
        unipelt predict runs/reviews --data new.csv --proba --min-confidence 0.8 --out answers.csv
        unipelt predict results/reviews/winner --data new.csv --text-column comment --gates --out answers.csv
    """
    import sys
    from pathlib import Path

    from unipelt.checkpoint.disk import refuse_existing, write_whole
    from unipelt.data.tables import Dialect
    from unipelt.data.writers import SUFFIXES, TEXT, table_bytes
    from unipelt.errors import UserError
    from unipelt.train.baselines import load_predictor

    path = Path(out)
    if out and path.is_dir():
        raise UserError(f"--out {out}: is a folder; expected a file, such as {path / 'predictions.csv'}")
    if out and (path.is_symlink() or (path.exists() and not path.is_file())):
        raise UserError(f"--out {out}: not a regular file; expected a new file, or an old table to replace")
    if out and path.exists() and path.resolve() == Path(data).resolve():
        raise UserError(f"--out {out}: is --data itself; take another file")
    if out:
        refuse_existing(path, "--out", overwrite)
    if out and path.suffix.lower() not in SUFFIXES:
        raise UserError(f"--out {out}: expected a file that ends in {', '.join(SUFFIXES)}")
    predictor = load_predictor(run, model or None, device)
    predictor.task = predictor.task.with_options(generation_options)
    columns, dialect = predictor.columns(
        data,
        text=text or None,
        pair=pair or None,
        encoding=encoding or None,
        proba=proba,
        gates=gates,
        min_confidence=min_confidence,
    )
    if not out:
        suffix = dialect.suffix if dialect.suffix in TEXT else ".csv"
        sys.stdout.write(table_bytes(columns, suffix, Dialect(suffix=suffix, delimiter=dialect.delimiter)).decode())
        return
    write_whole(path.parent, {path.name: table_bytes(columns, path.suffix.lower(), dialect)})
    print(f"{out}: {len(columns['prediction'])} examples")
