"""`unipelt study`: the papers' studies, run by run into a store that any kill leaves whole."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import typer

from unipelt.cli.fields import docs, size
from unipelt.errors import DataError, UserError
from unipelt.fleet.outcome import FILES, Request
from unipelt.fleet.recipe import Recipe
from unipelt.study.plan import MOST_RATES, Grid, Setting, arranged, read_plan
from unipelt.study.plan import sweep as varied
from unipelt.study.store import Cell

app = typer.Typer(
    help="The papers' studies: tasks × sizes × methods × seeds, trained as fleets, in a store that resumes.",
    rich_markup_mode=None,
)
_grid, _setting, _recipe, _request = docs(Grid), docs(Setting), docs(Recipe), docs(Request)
_OWN = "; default: the method's own"
_OUT = typer.Option("", help="needed: folder of the study; the same command again does what is missing")
FIGURE_2 = ("3", "6", "12", "24", "48", "96", "192")  # sizes of adapters
# no default here: a flag that is given takes precedence over a plan's, whatever its value
_MODEL = typer.Option(None, help=_setting["model"] + "; default: minilm")
_HEAD = typer.Option(None, help=_setting["head"] + "; default: auto")
_POLICY = typer.Option(None, help=_setting["policy"] + "; default: train")
_DATA = typer.Option(None, help=_setting["data_dir"])
_WIDTH = typer.Option(None, min=0, help=_setting["width"] + "; default: 0")
_MIX = typer.Option(None, help=_setting["mix_methods"] + "; default: no-mix-methods")
_DEVICE = typer.Option("auto", help="auto (the GPU when there is one), cpu or cuda")
_ENGINE = typer.Option("here", help="here: this process; ray: a Ray cluster, that of RAY_ADDRESS or else this machine")
_GPUS = typer.Option(None, help="with Ray: the share of a GPU that a fleet has, where there are GPUs; default: 1")
_TASKS = typer.Option([], help=_grid["tasks"] + "; default: GLUE's eight")
_SEEDS = typer.Option(None, min=1, help=_grid["seeds"] + "; default: 5")
_LR = typer.Option([], help=_grid["lr"])
_RATES = typer.Option(None, min=1, max=MOST_RATES, help=_grid["rates"] + "; default: 1")
_TEXT, _PAIR, _LABEL, _KIND, _DEV, _TEST, _GROUP = (typer.Option(None, help=_request[name]) for name in FILES)
_ROWS = typer.Option(None, help=_request["dev_rows"] + "; default: 1000")
_STRATIFY = typer.Option(None, help=_request["stratify"] + "; default: no-stratify")
_EPOCHS = typer.Option(None, help=_recipe["epochs"] + _OWN)
_EVERY = typer.Option(None, help=_recipe["evaluate_every"] + _OWN)
_PATIENCE = typer.Option(None, help=_recipe["patience"] + _OWN)
_BATCH = typer.Option(None, help=_recipe["batch_size"] + _OWN)
_LENGTH = typer.Option(None, help=_recipe["max_length"] + _OWN)


@app.command()
def glue(
    tasks: list[str] = _TASKS,
    k: list[str] = typer.Option([], "--k", help=_grid["k"] + "; default: 100 500 1000 all"),
    methods: list[str] = typer.Option([], help=_grid["methods"] + "; default: the paper's"),
    seeds: int | None = _SEEDS, lr: list[float] = _LR, rates: int | None = _RATES, epochs: int | None = _EPOCHS, evaluate_every: int | None = _EVERY,
    patience: int | None = _PATIENCE, batch_size: int | None = _BATCH, max_length: int | None = _LENGTH,
    text: str | None = _TEXT, pair: str | None = _PAIR, label: str | None = _LABEL, kind: str | None = _KIND,
    dev: str | None = _DEV, test: str | None = _TEST, group: str | None = _GROUP, dev_rows: int | None = _ROWS, stratify: bool | None = _STRATIFY,
    data_dir: str | None = _DATA, model: str | None = _MODEL, head: str | None = _HEAD, head_policy: str | None = _POLICY,
    width: int | None = _WIDTH, mix_methods: bool | None = _MIX,
    device: str = _DEVICE, engine: str = _ENGINE, gpus_per_fleet: float | None = _GPUS, out: str = _OUT,
    plan: str = typer.Option("", help="TOML file with these options (underscores for dashes); flags take precedence"),
) -> None:  # fmt: skip
    """Tables 1 to 3 of UniPELT: every task, size, method and seed."""
    given = _given(locals())
    _run((read_plan(plan) if plan else {}) | given, out, engine, device, gpus_per_fleet)


@app.command()
def sweep(
    method: str = typer.Option("adapter", help="preset whose option is varied"),
    option: str = typer.Option("bottleneck", help="option of the preset: bottleneck (figure 2), alpha (figure 3), prefix or length"),
    values: list[str] = typer.Option([], help=f"values of the option; default, of bottleneck alone: figure 2's {' '.join(FIGURE_2)}"),
    tasks: list[str] = typer.Option(["cola"], help=_grid["tasks"]),
    k: list[str] = typer.Option(["100"], "--k", help=_grid["k"]),
    seeds: int | None = _SEEDS, lr: list[float] = _LR, rates: int | None = _RATES, epochs: int | None = _EPOCHS, evaluate_every: int | None = _EVERY,
    patience: int | None = _PATIENCE, batch_size: int | None = _BATCH, max_length: int | None = _LENGTH,
    text: str | None = _TEXT, pair: str | None = _PAIR, label: str | None = _LABEL, kind: str | None = _KIND,
    dev: str | None = _DEV, test: str | None = _TEST, group: str | None = _GROUP, dev_rows: int | None = _ROWS, stratify: bool | None = _STRATIFY,
    data_dir: str | None = _DATA, model: str | None = _MODEL, head: str | None = _HEAD, head_policy: str | None = _POLICY,
    width: int | None = _WIDTH, mix_methods: bool | None = _MIX,
    device: str = _DEVICE, engine: str = _ENGINE, gpus_per_fleet: float | None = _GPUS, out: str = _OUT,
) -> None:  # fmt: skip
    """Figures 2 and 3 of UniPELT: one option of one preset, varied."""
    given = _given(locals())
    if not values and option != "bottleneck":
        raise UserError(f"--values is missing: expected values of {option}, such as --values 2 4 8")
    _run(given | {"methods": varied(method, option, values or FIGURE_2)}, out, engine, device, gpus_per_fleet)


@app.command()
def efficiency(
    model: str = typer.Option("minilm", help=_setting["model"]),
    methods: list[str] = typer.Option([], help=_grid["methods"] + "; default: the paper's"),
    batch: int = typer.Option(16, help="rows a step"),
    length: int = typer.Option(128, help="tokens a row"),
    rounds: int = typer.Option(5, help="timed steps of each method, in turns, of training and of inference"),
    device: str = _DEVICE,
    out: str = typer.Option(
        "",
        help="needed: folder of a study, in whose report it then stands; or a new one, where the study may come later",
    ),
) -> None:
    """Table 4 of UniPELT on this machine: what each method costs beside full fine-tuning."""
    if not out:
        raise UserError("--out is missing: expected a folder, such as that of a study")
    where = next(path for path in (Path(out).absolute(), *Path(out).absolute().parents) if path.exists())
    if not where.is_dir() or not os.access(where, os.W_OK):
        raise UserError(f"--out {out}: {where} is {'not writable' if where.is_dir() else 'a file'}; expected a folder")
    from unipelt.cli.progress import Watch
    from unipelt.cli.tables import cost_table, terminal
    from unipelt.fleet.ready import device_of
    from unipelt.study.efficiency import measure, write_efficiency
    from unipelt.study.plan import METHODS

    found = measure(
        model, methods or METHODS, batch=batch, length=length, rounds=rounds, device=device_of(device), tell=Watch().tell
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
        from unipelt.fleet.ready import device_of
        from unipelt.study.engine import run_study

        yield device_of(device), partial(run_study, device=device, corpus=corpus)


def _run(given: dict[str, Any], out: str, engine: str, device: str, gpus: float | None) -> None:
    grid, setting = arranged(given)
    if not out:
        raise UserError("--out is missing: expected a folder for the study, such as results/glue")
    from unipelt.cli.progress import StudyWatch
    from unipelt.fleet.together import Corpus
    from unipelt.study.engine import hidden_size, identities, planned_width
    from unipelt.study.plan import in_fleets
    from unipelt.study.store import DONE, FILE, Store

    cells = grid.cells(hidden_size(setting.model))
    corpus = Corpus()
    if not (Path(out) / FILE).exists():
        _notes(cells, setting, corpus)  # a mistake leaves no study behind, whose options would have to be kept
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
    from unipelt.fleet.tune import what_was_read

    notes: dict[str, None] = {}
    for task in dict.fromkeys(cell.task for cell in cells):
        firsts = {cell.k: setting.request(cell) for cell in reversed(cells) if cell.task == task}
        whole = replace(next(iter(firsts.values())), k="all")
        notes[what_was_read(whole, corpus.splits(whole).task)] = None
        for request in reversed(firsts.values()):
            with suppress(DataError):  # a size that these rows do not have: said in each of its runs' rows
                notes |= dict.fromkeys(corpus.splits(request).notes)
    return list(notes)


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given."""
    given = {name: value for name, value in flags.items() if value not in (None, [], "")}
    return given | ({"k": [size(one) for one in given["k"]]} if "k" in given else {})
