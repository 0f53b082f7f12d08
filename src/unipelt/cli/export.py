"""`unipelt export`: a run in another form."""

from pathlib import Path

import typer

from unipelt.cli.fields import BASE_OF_RUN, RUN_FOLDER, TEXT_COLUMN, TEXT_PAIR_COLUMN, number, option
from unipelt.errors import UserError


def export(
    run: str = typer.Argument(..., help=RUN_FOLDER),
    data: str = option(
        "Data",
        "file with texts on which the gates are measured. Required with --simplified; if the file has labels, the change of the metric is printed. With --merged or --peft each gate is replaced by its mean",
    ),
    text: str = TEXT_COLUMN,
    pair: str = TEXT_PAIR_COLUMN,
    model: str = BASE_OF_RUN,
    max_deviation: float | None = number(
        "Model",
        "with --simplified: gates whose standard deviation over --data is below this become constants (default: 0.05)",
    ),
    drop_below: float | None = number(
        "Model",
        "with --simplified: a constant gate below this value is removed with its change (default: 0.02)",
    ),
    merged: str = option("Output", "folder for a plain transformers model: base, changes and head merged"),
    peft: str = option("Output", "folder for a peft adapter: LoRA, DoRA, IA³, a prefix or a prompt"),
    simplified: str = option(
        "Output", "folder for the run with constants in place of gates that hardly vary, for `unipelt predict`"
    ),
) -> None:
    """Write a run as a plain transformers model, as a peft adapter, or with constants in place of gates that hardly vary.

    A change that cannot be merged is an error that names the change and the reason. A gate can be merged only with
    --data, which replaces it by its mean.

    Examples:
        unipelt export runs/lora --merged models/lora
        unipelt export runs/lora --peft adapters/lora
        unipelt export runs/gated --simplified runs/simplified --data validation.csv
    """
    outputs = {
        flag: folder
        for flag, folder in (("--merged", merged), ("--peft", peft), ("--simplified", simplified))
        if folder
    }
    if len(outputs) != 1:
        raise UserError("expected one of --merged FOLDER, --peft FOLDER and --simplified FOLDER")
    ((flag, out),) = outputs.items()
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{flag} {target}: not empty; expected a new folder")
    if simplified and not data:
        raise UserError("--simplified needs --data: a file with texts on which the gates are measured")
    from unipelt.checkpoint.description import describe
    from unipelt.checkpoint.disk import resolve
    from unipelt.checkpoint.export import export_merged
    from unipelt.checkpoint.folder import save
    from unipelt.checkpoint.formats.peft_export import export_peft
    from unipelt.train.predictor import Predictor

    predictor = Predictor.load(run, model or None, "cpu")
    if not predictor.has_mixture:
        raise UserError(
            f"{run}: a full run is already a plain transformers model; load its folder with from_pretrained"
        )
    if simplified:
        rows = predictor.read(data, text=text or None, pair=pair or None, labelled=True)
        thresholds = {"max_deviation": max_deviation, "drop_below": drop_below}
        report = predictor.simplify_gates(
            rows, **{name: value for name, value in thresholds.items() if value is not None}
        )
        description = describe(resolve(run))
        results = {f"{report.metric} with all gates": report.before, f"{report.metric} simplified": report.after}
        save(
            predictor.model, simplified, base=description.base["name"], task=description.task, recipe=description.recipe,
            results=results if report.metric else {}, tokenizer=predictor.tokenizer,
        )  # fmt: skip
        print(report)
    elif data:
        answers = predictor.task.generates_text  # these gates are measured over prompts and answers
        rows = predictor.read(data, text=text or None, pair=pair or None, labelled=answers)
        predictor.simplify_gates(rows, max_deviation=1, drop_below=0)
    if merged:
        export_merged(predictor.model, merged, tokenizer=predictor.tokenizer)
    elif peft:
        export_peft(predictor.model, peft)
    print(f"{out}: written")
