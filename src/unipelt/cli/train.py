"""`unipelt train`: train one run and save it."""

from pathlib import Path
from typing import Any

from unipelt.cli.fields import DEVICE, flags, integer, option, recipe_defaults, takes
from unipelt.errors import UserError
from unipelt.train.recipes import Recipe
from unipelt.train.records import RunConfig

_RECIPE = flags(Recipe, default=recipe_defaults())


@takes(*flags(RunConfig, but=["recipe", "folds"]), *_RECIPE)
def train(
    device: str = DEVICE,
    ensemble: int | None = integer(
        "Training",
        "number of runs trained on the same examples, with the seeds --seed, --seed + 1, …; `predict` averages their probabilities or numbers; at most 64; not for generation (default: 1)",
    ),
    out: str = option("Output", "folder of the run; the same command resumes a stopped run (required)"),
    **options: Any,
) -> None:
    """Train one method on one data set and save it: a few megabytes beside the unchanged base model.

    Examples:
        unipelt train --data reviews.csv --text-column review --label-column stars --out runs/reviews
        unipelt train --data docstrings --train-rows 800 --method 'lora(r=16)' --out runs/lora
        unipelt train --model bert-base-uncased --data sst2 --train-rows 100 --seed 1 --lr 5e-4 --out runs/sst2
    """
    recipe = {flag.name: options.pop(flag.name) for flag in _RECIPE if flag.name in options}
    if "task" not in options:
        raise UserError("--data is missing: expected a GLUE task, docstrings, or a file such as reviews.csv")
    if not out:
        raise UserError("--out is missing: expected a folder for the run, such as runs/first")
    Recipe(**recipe)
    config = RunConfig(**options, recipe=recipe)
    from unipelt.cli.progress import Watch
    from unipelt.cli.tables import result_lines
    from unipelt.train.train_run import train_run

    with Watch() as watch:
        count = 1 if ensemble is None else ensemble
        record = train_run(config, Path(out), ensemble=count, device=device, log=watch.log, on_step=watch)
    print("\n".join(result_lines(record)))
    print(f"  {out}: predict with `unipelt predict {out} --data FILE`")
