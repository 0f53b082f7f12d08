"""`unipelt study`: the papers' studies, run by run into a store that any kill leaves whole."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import typer

from unipelt.cli.fields import flags, takes
from unipelt.errors import DataError, UserError
from unipelt.study.plan import COLUMNS, METHODS, Grid, Setting, parse_options, read_plan
from unipelt.study.plan import sweep as sweep_of
from unipelt.study.store import Cell
from unipelt.train.recipes import Recipe
from unipelt.train.records import Request

app = typer.Typer(
    help="The papers' studies: tasks × sizes × methods × seeds, trained as fleets, in a store that resumes.",
    rich_markup_mode=None,
)
FIGURE_2 = ("3", "6", "12", "24", "48", "96", "192")  # sizes of adapters
_DEVICE = typer.Option("auto", help="auto (the GPU when there is one), cpu or cuda")
_ENGINE = typer.Option("here", help="here: this process; ray: a Ray cluster, that of RAY_ADDRESS or else this machine")
_GPUS = typer.Option(None, help="with Ray: the share of a GPU that a fleet has, where there are GPUs; default: 1")
_OUT = typer.Option("", help="needed: folder of the study; the same command again does what is missing")
_PAPERS = {"tasks": "GLUE's eight", "k": "100 500 1000 all", "methods": "the paper's"}
_EVERY = [
    *flags(Setting, but=["recipe", "columns"]), *flags(Recipe, but=["lr"], default="the method's own"), *flags(Request, only=COLUMNS),
]  # fmt: skip


@app.command()
@takes(*flags(Grid, default=_PAPERS), *_EVERY)
def glue(
    device: str = _DEVICE,
    engine: str = _ENGINE,
    gpus_per_fleet: float | None = _GPUS,
    out: str = _OUT,
    plan: str = typer.Option("", help="TOML file with these options (underscores for dashes); flags take precedence"),
    **given: Any,
) -> None:
    """Tables 1 to 3 of UniPELT: every task, size, method and seed."""
    _run((read_plan(plan) if plan else {}) | given, out, engine, device, gpus_per_fleet)


@app.command()
@takes(*flags(Grid, but=["methods"], default={"tasks": "cola", "k": "100"}), *_EVERY)
def sweep(
    method: str = typer.Option("adapter", help="preset whose option is varied"),
    option: str = typer.Option(
        "bottleneck", help="option of the preset: bottleneck (figure 2), alpha (figure 3), prefix or length"
    ),
    values: list[str] = typer.Option(
        [], help=f"values of the option; default, of bottleneck alone: figure 2's {' '.join(FIGURE_2)}"
    ),
    device: str = _DEVICE,
    engine: str = _ENGINE,
    gpus_per_fleet: float | None = _GPUS,
    out: str = _OUT,
    **given: Any,
) -> None:
    """Figures 2 and 3 of UniPELT: one option of one preset, varied."""
    if not values and option != "bottleneck":
        raise UserError(f"--values is missing: expected values of {option}, such as --values 2 4 8")
    varied = sweep_of(method, option, values or FIGURE_2)
    _run({"tasks": ["cola"], "k": [100]} | given | {"methods": varied}, out, engine, device, gpus_per_fleet)


@app.command()
@takes(*flags(Setting, only=["model"]), *flags(Grid, only=["methods"], default={"methods": "the paper's"}))
def efficiency(
    batch: int = typer.Option(16, help="rows a step"),
    length: int = typer.Option(128, help="tokens a row"),
    rounds: int = typer.Option(5, help="timed steps of each method, in turns, of training and of inference"),
    device: str = _DEVICE,
    out: str = typer.Option(
        "",
        help="needed: folder of a study, in whose report it then stands; or a new one, where the study may come later",
    ),
    **given: Any,
) -> None:
    """Table 4 of UniPELT on this machine: what each method costs beside full fine-tuning."""
    if not out:
        raise UserError("--out is missing: expected a folder, such as that of a study")
    where = next(path for path in (Path(out).absolute(), *Path(out).absolute().parents) if path.exists())
    if not where.is_dir() or not os.access(where, os.W_OK):
        raise UserError(f"--out {out}: {where} is {'not writable' if where.is_dir() else 'a file'}; expected a folder")
    from unipelt.cli.progress import Watch
    from unipelt.cli.tables import cost_table, terminal
    from unipelt.study.efficiency import measure, write_efficiency
    from unipelt.train.setup import device_of

    methods = given.pop("methods", METHODS)
    found = measure(
        Setting(**given).model, methods, batch=batch, length=length, rounds=rounds, device=device_of(device), tell=Watch().tell
    )  # fmt: skip
    write_efficiency(Path(out), found)
    terminal().print(cost_table(found))


@app.command()
def export(
    out: str = typer.Argument(help="folder of the study"),
    to: str = typer.Option("", help="needed: file to write, .csv or .parquet: one row a run, every column"),
) -> None:
    """A study's rows as one file for other tools; what is not there yet is empty."""
    if not to:
        raise UserError("--to is missing: expected a file such as rows.parquet or rows.csv")
    from unipelt.study.rows import write_rows
    from unipelt.study.store import Store

    print(f"{to}: {write_rows(Store.read(out), Path(to))} rows")


@contextmanager
def _engine(name: str, device: str, gpus: float | None, corpus: Any) -> Iterator[tuple[Any, Callable]]:
    """What a study trains on, and how."""
    if name not in ("here", "ray"):
        raise UserError(f"--engine {name}: expected here or ray")
    if name != "ray" and gpus is not None:
        raise UserError(f"--gpus-per-fleet {gpus:g}: counts with --engine ray alone; add that, or leave it out")
    if name == "ray":
        from unipelt.study.cluster import Cluster

        with Cluster(device, 1.0 if gpus is None else gpus) as cluster:
            yield cluster.device, cluster.run_study
    else:
        from unipelt.study.engine import run_study
        from unipelt.train.setup import device_of

        yield device_of(device), partial(run_study, device=device, corpus=corpus)


def _run(given: dict[str, Any], out: str, engine: str, device: str, gpus: float | None) -> None:
    grid, setting = parse_options(given)
    if not out:
        raise UserError("--out is missing: expected a folder for the study, such as results/glue")
    from unipelt.cli.progress import StudyWatch
    from unipelt.study.engine import hidden_size, identities, planned_width
    from unipelt.study.plan import in_fleets
    from unipelt.study.store import DONE, Store
    from unipelt.train.runner import DatasetCache

    cells = grid.cells(hidden_size(setting.model))
    corpus = DatasetCache()
    with _engine(engine, device, gpus, corpus) as (target, train):
        store = Store.create(out, setting.facts)
        done = {cell for cell, status in store.statuses() if status in DONE}
        missing = [cell for cell in cells if cell not in done]
        notes = _notes(missing, setting, corpus)
        store.plan(cells, identities(missing, setting, corpus))
        width, mixed = planned_width(setting, target), target.type != "cpu"
        store.assign(lambda free: in_fleets(free, width, mixed, setting.mix_methods))
        with StudyWatch(store) as watch:
            for note in notes:
                watch.tell(note)
            train(store, setting, tell=watch.tell, watch=watch)
    statuses = [status for _, status in store.statuses()]
    failed = [status for status in statuses if status.startswith("failed")]
    if failed and len(failed) == len(statuses):
        raise UserError(f"{out}: every run failed, the first because {failed[0].removeprefix('failed: ')}")
    print(f"{out}: {len(statuses) - len(failed)} of {len(statuses)} runs done" + (f", {len(failed)} failed: {failed[0][8:]}; the same command tries again" if failed else ""))  # fmt: skip
    print(f"  tables and figures: `unipelt report {out}`; rows: {Path(out) / 'study.sqlite'}, table runs")


def _notes(cells: list[Cell], setting: Setting, corpus: Any) -> list[str]:
    """What there is to say of the rows, once for each task and size, as the first seed draws them.

    Raises DataError where a task's data cannot be had, before anything is trained.
    """
    from unipelt.train.train_run import describe_columns

    notes: dict[str, None] = {}
    for task in dict.fromkeys(cell.task for cell in cells):
        firsts = {cell.k: setting.request(cell) for cell in reversed(cells) if cell.task == task}
        whole = replace(next(iter(firsts.values())), k="all")
        notes[describe_columns(whole, corpus.splits(whole).task)] = None
        for request in reversed(firsts.values()):
            with suppress(DataError):  # a size that these rows do not have: said in each of its runs' rows
                notes |= dict.fromkeys(corpus.splits(request).notes)
    return list(notes)
