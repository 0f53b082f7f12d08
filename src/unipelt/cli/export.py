"""`unipelt export`: a run in another form."""

from pathlib import Path

import typer

from unipelt.errors import UserError


def export(
    run: str = typer.Argument(..., help="folder of a run, or a hub repository of one"),
    merged: str = typer.Option(
        "",
        help="folder for a plain transformers model, everything in its weights; of minilm, only runs with --head model",
    ),
    peft: str = typer.Option("", help="folder for a peft LoRA adapter; of minilm, as --merged"),
    folded: str = typer.Option(
        "", help="folder for the run with each gate that hardly varies over --data fixed, for `unipelt predict`"
    ),
    fix_gates: bool = typer.Option(False, "--fix-gates", help="replace each gate by its mean over --data first"),
    data: str = typer.Option(
        "", help="file with texts, for --fix-gates and --folded; its labels tell what folding costs"
    ),
    text: str = typer.Option("", help="column of the text, or of the first text of a pair"),
    pair: str = typer.Option("", help="column of the second text"),
    deviation: float | None = typer.Option(
        None,
        help="for --folded: gates whose standard deviation over --data is below it are fixed at their mean; default: 0.05",
    ),
    least: float | None = typer.Option(
        None, help="for --folded: fixed gates below it are dropped, with their changes; default: 0.02"
    ),
    model: str = typer.Option("", help="another place of the run's base"),
) -> None:
    """Write a run as a plain model, as peft's LoRA, or folded; what cannot be merged exactly is refused by name."""
    given = {flag: folder for flag, folder in (("--merged", merged), ("--peft", peft), ("--folded", folded)) if folder}
    if len(given) != 1:
        raise UserError("expected one of --merged FOLDER, --peft FOLDER and --folded FOLDER")
    ((flag, out),) = given.items()
    place = Path(out)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise UserError(f"{flag} {place}: not empty; expected a new folder")
    if folded and not data:
        raise UserError("--folded needs --data: what a gate does is measured over texts")
    if fix_gates and not data:
        raise UserError("--fix-gates needs --data: the mean of a gate is taken over texts")
    from unipelt.checkpoint.description import describe
    from unipelt.checkpoint.disk import resolve
    from unipelt.checkpoint.export import export_merged, export_peft
    from unipelt.checkpoint.folder import save
    from unipelt.train.predictor import Predictor, fixed_at_means

    predictor = Predictor.load(run, model or None, "cpu")
    if not predictor.tuned:
        raise UserError(f"{run}: a full run is a plain transformers model as it stands; load it from its folder")
    if folded:
        _, rows = predictor.read(data, text=text or None, pair=pair or None, labelled=True)
        thresholds = {"deviation": deviation, "least": least}
        said = predictor.fold(rows, **{name: value for name, value in thresholds.items() if value is not None})
        whole = describe(resolve(run))
        results = {f"{said.metric} before folding": said.before, f"{said.metric} folded": said.after}
        save(
            predictor.model, folded, base=whole.base["name"], task=whole.task, recipe=whole.recipe,
            results=results if said.metric else {},
        )  # fmt: skip
        print(said)
    elif fix_gates:
        _, rows = predictor.read(data, text=text or None, pair=pair or None)
        fixed_at_means(predictor, rows)
    if merged:
        export_merged(predictor.model, merged, tokenizer=predictor.tokenizer)
    elif peft:
        export_peft(predictor.model, peft)
    print(f"{out}: written")
