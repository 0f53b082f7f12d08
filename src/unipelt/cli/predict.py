"""`unipelt predict`: a finished run labels new texts."""

import json
from typing import Any

import typer

from unipelt.cli.fields import option


def predict(
    run: str = typer.Argument(..., help="folder of a run, or its hub repository"),
    data: str = option(..., panel="Data", help="CSV, JSONL or Parquet file with the texts (required)"),
    text: str = option(
        "",
        "--text-column",
        "--text",
        panel="Data",
        help="column of the text, or of the first text of a pair (default: as in training)",
    ),
    pair: str = option(
        "", "--text-pair-column", "--pair", panel="Data", help="column of the second text (default: as in training)"
    ),
    model: str = option("", panel="Model", help="folder or hub name of the base (default: the one that the run names)"),
    device: str = option("auto", panel="Model", help="auto, cpu or cuda (default: auto, the GPU where there is one)"),
    out: str = option("", panel="Output", help="CSV file to write (default: the terminal)"),
    proba: bool = option(False, "--proba", panel="Output", help="add the probability of each label"),
    gates: bool = option(
        False, "--gates", panel="Output", help="add the value of each gate, one column per layer and change"
    ),
) -> None:
    """Predict a label, or a number, for each row of a file, and write it behind the file's own columns.

    Examples:
        unipelt predict runs/reviews --data new.csv
        unipelt predict runs/reviews --data new.csv --proba --out answers.csv
        unipelt predict results/reviews/winner --data new.csv --text-column comment --gates --out answers.csv
    """
    import csv
    import io
    import sys
    from pathlib import Path

    from unipelt.checkpoint.disk import write_whole
    from unipelt.errors import UserError
    from unipelt.train.predictor import Predictor

    path = Path(out)
    if out and path.is_dir():
        raise UserError(f"--out {out}: is a folder; expected a file, such as {path / 'predictions.csv'}")
    if out and (path.is_symlink() or (path.exists() and not path.is_file())):
        raise UserError(f"--out {out}: not a regular file; expected a new file, or an old table to replace")
    if out and path.exists() and path.resolve() == Path(data).resolve():
        raise UserError(f"--out {out}: is --data itself; take another file")
    if out and path.suffix.lower() != ".csv":
        raise UserError(
            f"--out {out}: what is written is CSV; expected a .csv file, such as {path.with_suffix('.csv')}"
        )
    predictor = Predictor.load(run, model or None, device)
    columns = predictor.columns(data, text=text or None, pair=pair or None, proba=proba, gates=gates)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(map(_cell, row) for row in zip(*columns.values()))
    if not out:
        sys.stdout.write(buffer.getvalue())
        return
    write_whole(path.parent, {path.name: buffer.getvalue().encode()})
    print(f"{out}: {len(columns['prediction'])} rows")


def _cell(value: Any) -> Any:
    """What a CSV file cannot hold as it is, such as an object of a JSONL file, as JSON."""
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, bool | dict | list) else value
