"""`unipelt train`: one run, from a task to a checkpoint."""

from pathlib import Path
from typing import Any

import typer

from unipelt.cli.fields import docs, size
from unipelt.errors import UserError
from unipelt.fleet.outcome import Request
from unipelt.fleet.recipe import Recipe

_recipe, _request = docs(Recipe), docs(Request)
_DEFAULT = "; default: the method's own"


def train(
    task: str = typer.Option("", help="needed: " + _request["task"]),
    model: str = typer.Option("minilm", help=_request["model"]),
    method: str = typer.Option("unipelt-apl", help=_request["method"] + "; see `unipelt methods`"),
    k: str = typer.Option("all", "--k", help=_request["k"]),
    seed: int = typer.Option(0, help=_request["seed"]),
    out: str = typer.Option("", help="needed: folder of the run; the same command again goes on where it stopped"),
    data_dir: str = typer.Option("", help=_request["data_dir"]),
    text: str = typer.Option("", help=_request["text"]),
    pair: str = typer.Option("", help=_request["pair"]),
    label: str = typer.Option("", help=_request["label"]),
    kind: str = typer.Option("", help=_request["kind"]),
    dev: str = typer.Option("", help=_request["dev"]),
    test: str = typer.Option("", help=_request["test"]),
    group: str = typer.Option("", help=_request["group"]),
    dev_rows: int = typer.Option(1000, min=1, help=_request["dev_rows"]),
    stratify: bool = typer.Option(False, help=_request["stratify"]),
    head: str = typer.Option("auto", help=_request["head"]),
    head_policy: str = typer.Option("train", help=_request["policy"]),
    lr: float | None = typer.Option(None, help=_recipe["lr"] + _DEFAULT),
    epochs: int | None = typer.Option(None, help=_recipe["epochs"] + _DEFAULT),
    batch_size: int | None = typer.Option(None, help=_recipe["batch_size"] + _DEFAULT),
    evaluate_every: int | None = typer.Option(None, help=_recipe["evaluate_every"] + _DEFAULT),
    patience: int | None = typer.Option(None, help=_recipe["patience"] + _DEFAULT),
    warmup: float | None = typer.Option(None, help=_recipe["warmup"] + _DEFAULT),
    weight_decay: float | None = typer.Option(None, help=_recipe["weight_decay"] + _DEFAULT),
    clip: float | None = typer.Option(None, help=_recipe["clip"] + _DEFAULT),
    max_length: int | None = typer.Option(None, help=_recipe["max_length"] + _DEFAULT),
    device: str = typer.Option("auto", help="auto (the GPU when there is one), cpu or cuda"),
) -> None:
    """Train one method on one task and write a checkpoint of a few megabytes."""
    given: dict[str, Any] = {name: value for name, value in locals().items() if name in _recipe and value is not None}
    if not task:
        raise UserError("--task is missing: expected a GLUE task, docstrings, or a file such as reviews.csv")
    if not out:
        raise UserError("--out is missing: expected a folder for the run, such as runs/first")
    Recipe(**given)
    request = Request(
        model=model, task=task, k=size(k), method=method, seed=seed, head=head, policy=head_policy,
        data_dir=data_dir or None, text=text or None, pair=pair or None, label=label or None, kind=kind or None,
        dev=dev or None, test=test or None, group=group or None, dev_rows=dev_rows, stratify=stratify, recipe=given,
    )  # fmt: skip
    from unipelt.cli.progress import Watch
    from unipelt.cli.tables import result_lines
    from unipelt.fleet.tune import tune

    with Watch() as watch:
        outcome = tune(request, Path(out), device=device, tell=watch.tell, watch=watch)
    print("\n".join(result_lines(outcome)))
    print(f"  {out}: predict with `unipelt predict {out} --data FILE`")
