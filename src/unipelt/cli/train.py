"""`unipelt train`: one run, from a task to a checkpoint."""

from pathlib import Path
from typing import Any

import typer

from unipelt.cli.fields import flags, takes
from unipelt.errors import UserError
from unipelt.train.recipes import Recipe
from unipelt.train.records import Request

_RECIPE = flags(Recipe, default="the method's own")


@takes(*flags(Request, but=["recipe"]), *_RECIPE)
def train(
    device: str = typer.Option("auto", help="auto (the GPU when there is one), cpu or cuda"),
    out: str = typer.Option("", help="needed: folder of the run; the same command again goes on where it stopped"),
    **given: Any,
) -> None:
    """Train one method on one task and write a checkpoint of a few megabytes; `unipelt methods` lists the methods."""
    recipe = {flag.name: given.pop(flag.name) for flag in _RECIPE if flag.name in given}
    if "task" not in given:
        raise UserError("--task is missing: expected a GLUE task, docstrings, or a file such as reviews.csv")
    if not out:
        raise UserError("--out is missing: expected a folder for the run, such as runs/first")
    Recipe(**recipe)
    request = Request(**given, recipe=recipe)
    from unipelt.cli.progress import Watch
    from unipelt.cli.tables import result_lines
    from unipelt.train.train_run import tune

    with Watch() as watch:
        outcome = tune(request, Path(out), device=device, tell=watch.tell, watch=watch)
    print("\n".join(result_lines(outcome)))
    print(f"  {out}: predict with `unipelt predict {out} --data FILE`")
