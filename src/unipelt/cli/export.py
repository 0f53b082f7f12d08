"""`unipelt export`: a run in another form."""

from pathlib import Path

import typer

from unipelt.errors import UserError


def export(
    run: str = typer.Argument(..., help="folder of a run, or a hub repository of one"),
    merged: str = typer.Option(
        "", help="folder for a plain transformers model, with everything folded into its weights"
    ),
    peft: str = typer.Option("", help="folder for a peft LoRA adapter"),
    fix_gates: bool = typer.Option(False, "--fix-gates", help="replace each gate by its mean over --data first"),
    data: str = typer.Option("", help="file with texts, for --fix-gates"),
    text: str = typer.Option("", help="column of the text, or of the first text of a pair"),
    pair: str = typer.Option("", help="column of the second text"),
    model: str = typer.Option("", help="another place of the run's base"),
) -> None:
    """Write a run as a plain model, or as peft's LoRA; what cannot be folded exactly is refused by name."""
    if bool(merged) == bool(peft):
        raise UserError("expected one of --merged FOLDER and --peft FOLDER")
    place = Path(merged or peft)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise UserError(f"{'--merged' if merged else '--peft'} {place}: not empty; expected a new folder")
    if fix_gates and not data:
        raise UserError("--fix-gates needs --data: the mean of a gate is taken over texts")
    from unipelt.checkpoint.export import export_merged, export_peft
    from unipelt.fleet.apply import Applied, fixed_at_means

    applied = Applied.load(run, model or None, "cpu")
    if not applied.tuned:
        raise UserError(f"{run}: a full run is a plain transformers model as it stands; load it from its folder")
    if fix_gates:
        _, rows = applied.read(data, text=text or None, pair=pair or None)
        fixed_at_means(applied, rows)
    if merged:
        labels = applied.task["labels"]
        if labels:
            applied.model.config.id2label = dict(enumerate(labels))
            applied.model.config.label2id = {label: index for index, label in enumerate(labels)}
        export_merged(applied.model, merged, tokenizer=applied.tokenizer)
    else:
        export_peft(applied.model, peft)
    print(f"{merged or peft}: written")
