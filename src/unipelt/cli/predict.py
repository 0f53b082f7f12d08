"""`unipelt predict`: a finished run labels new texts."""

import json
from typing import Any

import typer


def predict(
    run: str = typer.Argument(..., help="folder of a run, or a hub repository of one"),
    data: str = typer.Option(..., help="CSV, JSONL or Parquet file with the texts"),
    text: str = typer.Option("", help="column of the text, or of the first text of a pair"),
    pair: str = typer.Option("", help="column of the second text"),
    out: str = typer.Option("", help="CSV file to write; not given: the terminal"),
    proba: bool = typer.Option(False, "--proba", help="each label's probability too"),
    gates: bool = typer.Option(False, "--gates", help="each gate's value too, as one column a layer and change"),
    model: str = typer.Option("", help="another place of the run's base"),
    device: str = typer.Option("auto", help="auto (the GPU when there is one), cpu or cuda"),
) -> None:
    """Write a label, or a value, for each row of a file."""
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
