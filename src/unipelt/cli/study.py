"""`unipelt study`: run the papers' studies; each finished run is stored in SQLite."""

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from unipelt.cli.fields import DEVICE, OVERWRITE, flags, integer, number, option, recipe_defaults, takes
from unipelt.cli.help import Command, Group
from unipelt.errors import DataError, UserError
from unipelt.study.plan import COLUMNS, METHODS, Grid, StudyConfig, parse_options, read_plan
from unipelt.study.plan import sweep as sweep_of
from unipelt.study.unified import DEFAULTS, unified_options
from unipelt.train.recipes import Recipe
from unipelt.train.records import DONE, RunConfig, RunKey, failures

if TYPE_CHECKING:
    import torch

    from unipelt.cli.progress import StudyWatch
    from unipelt.study.store import Store
    from unipelt.train.setup import DatasetCache

Train = Callable[..., None]
"""trains what is planned: called with a store and its study, and with watch, which shows how far it is"""
app = typer.Typer(
    help="""Run the papers' studies. Many runs train at once over one copy of the base.

    Examples:
        unipelt study grid --data sst2 rte --train-rows 100 500 --methods lora unipelt-apl full --out results/glue
        unipelt study unified --epochs 3 --precision bf16 --out results/unified
        unipelt report results/glue
    """,
    rich_markup_mode=None,
    cls=Group,
)
FIGURE_2 = ("3", "6", "12", "24", "48", "96", "192")  # sizes of adapters
_ENGINE = option(
    "Training",
    "local: in this process; ray: on the Ray cluster of RAY_ADDRESS, or one on this machine (default: local)",
    default="local",
    metavar="local|ray",
)
_GPUS = number(
    "Training", "with --engine ray: fraction of a GPU for each group of runs that train together (default: 1)"
)
_OUT = option("Output", "folder of the study; the same command trains what is missing (required)")
_PAPERS = {
    "tasks": "GLUE's eight tasks",
    "k": "100 500 1000 all",
    "methods": " ".join(METHODS) + ", those of UniPELT's tables",
}
_UNIFIED = {
    name: " ".join(map(str, value)) if isinstance(value, tuple) else str(value) for name, value in DEFAULTS.items()
}


def _shared(model: str = StudyConfig.model) -> list[inspect.Parameter]:
    """The options of every study. model: the default base."""
    return [
        *flags(StudyConfig, but=["recipe", "columns", "folds"], default={"model": model}),
        *flags(Recipe, but=["lr"], default=recipe_defaults()),
        *flags(RunConfig, only=COLUMNS),
    ]


@app.command(cls=Command)
@takes(*flags(Grid, default=_PAPERS), *_shared())
def grid(
    device: str = DEVICE,
    engine: str = _ENGINE,
    gpus_per_fleet: float | None = _GPUS,
    out: str = _OUT,
    plan: str = option(
        "Data", "TOML file with these options, underscores for dashes; options given here take precedence"
    ),
    **options: Any,
) -> None:
    """Train every combination of data set, size, method and seed: tables 1 to 3 of UniPELT.

    Examples:
        unipelt study grid --data sst2 rte --train-rows 100 500 --methods lora unipelt-apl full --out results/glue
        unipelt study grid --data reviews.csv tickets.csv --methods head lora --seeds 3 --out results/mine
        unipelt study grid --plan plan.toml --seeds 1 --out results/glue
    """
    _run((read_plan(plan) if plan else {}) | options, out, engine, device, gpus_per_fleet)


@app.command(cls=Command)
@takes(*flags(Grid, default=_UNIFIED), *_shared(model=DEFAULTS["model"]))
def unified(
    device: str = DEVICE, engine: str = _ENGINE, gpus_per_fleet: float | None = _GPUS, out: str = _OUT, **options: Any
) -> None:
    """Compare the methods of the unified view (He et al. 2022) on generated text, most of them at equal stored size.

    Examples:
        unipelt study unified --epochs 3 --precision bf16 --max-new-tokens 40 --out results/unified
        unipelt study unified --methods lora parallel-adapter mam --seeds 2 --out results/three
        unipelt study unified --data EdinburghNLP/xsum --model facebook/bart-large --train-rows all --epochs 30 --out results/xsum
    """
    _run(unified_options(options), out, engine, device, gpus_per_fleet)


@app.command(cls=Command)
@takes(*flags(Grid, but=["methods"], default={"tasks": "cola", "k": "100"}), *_shared())
def sweep(
    method: str = option("Model", "method whose option is varied (default: adapter)", default="adapter"),
    option_: str = option(
        "Model",
        "option of the method, such as bottleneck (figure 2), alpha (figure 3), prefix or length (default: bottleneck)",
        "--option",
        default="bottleneck",
    ),
    values: list[str] = option(
        "Model", f"values of the option (default for bottleneck: figure 2's {' '.join(FIGURE_2)})", default=[]
    ),
    device: str = DEVICE,
    engine: str = _ENGINE,
    gpus_per_fleet: float | None = _GPUS,
    out: str = _OUT,
    **options: Any,
) -> None:
    """Vary one option of one method: figures 2 and 3 of UniPELT.

    Examples:
        unipelt study sweep --method adapter --option bottleneck --values 8 48 192 --out results/figure2
        unipelt study sweep --method lora --option alpha --values 2 8 32 --data cola sst2 --out results/figure3
        unipelt study sweep --method prefix --option length --values 5 10 50 --data reviews.csv --out results/length
    """
    if not values and option_ != "bottleneck":
        raise UserError(f"--values is missing: expected values of {option_}, such as --values 2 4 8")
    varied = sweep_of(method, option_, values or FIGURE_2)
    _run({"tasks": ["cola"], "k": [100]} | options | {"methods": varied}, out, engine, device, gpus_per_fleet)


@app.command(cls=Command)
@takes(*flags(StudyConfig, only=["model"]))
def efficiency(
    methods: list[str] = option(
        "Model",
        f"methods with their options, such as lora(r=16); full fine-tuning is always measured (default: {_PAPERS['methods']})",
        default=[],
    ),
    batch: int = integer("Training", "examples per step (default: 16)", "--batch-size", default=16),
    length: int = integer("Training", "tokens per example (default: 128)", "--max-length", default=128),
    rounds: int = integer("Training", "timed steps of each method, interleaved (default: 5)", default=5),
    device: str = DEVICE,
    out: str = option("Output", "folder of a study, whose report then shows the table, or a new folder (required)"),
    **options: Any,
) -> None:
    """Measure time and memory of each method compared with full fine-tuning on this machine: table 4 of UniPELT.

    Examples:
        unipelt study efficiency --out results/glue
        unipelt study efficiency --model bert-base-uncased --methods lora unipelt-apl full --out results/costs
        unipelt study efficiency --batch-size 32 --max-length 64 --rounds 9 --device cuda --out results/costs
    """
    if not out:
        raise UserError("--out is missing: expected a folder, such as that of a study")
    existing_path = next(path for path in (Path(out).absolute(), *Path(out).absolute().parents) if path.exists())
    if not existing_path.is_dir() or not os.access(existing_path, os.W_OK):
        raise UserError(
            f"--out {out}: {existing_path} is {'not writable' if existing_path.is_dir() else 'a file'}; expected a folder"
        )
    from unipelt.cli.progress import Watch
    from unipelt.cli.tables import terminal
    from unipelt.report.details import cost_table
    from unipelt.report.tables import on_terminal
    from unipelt.study.efficiency import measure, write_efficiency
    from unipelt.train.setup import device_of

    costs = measure(
        StudyConfig(**options).model, methods or METHODS, batch=batch, length=length, rounds=rounds,
        device=device_of(device), log=Watch().log,
    )  # fmt: skip
    write_efficiency(Path(out), costs)
    table = cost_table(costs)
    for block in table.blocks:
        terminal().print(on_terminal(table, block))


@app.command(cls=Command)
def export(
    results: str = typer.Argument(help="folder of the study"),
    out: str = option(
        "Output", "file to write, .parquet, .csv, .tsv, .json or .jsonl, with one row per run (required)"
    ),
    overwrite: bool = OVERWRITE,
) -> None:
    """Write every run of a study into one file for other tools. Fields of runs that are not finished stay empty.

    Examples:
        unipelt study export results/glue --out runs.csv
        unipelt study export results/glue --out runs.parquet
        unipelt study export results/reviews --out reviews.csv
    """
    if not out:
        raise UserError("--out is missing: expected a file such as runs.parquet or runs.csv")
    from unipelt.checkpoint.disk import refuse_existing
    from unipelt.study.export import write_runs
    from unipelt.study.store import Store

    refuse_existing(Path(out), "--out", overwrite)
    print(f"{out}: {write_runs(Store.read(results), Path(out))} runs")


@contextmanager
def _engine(
    name: str, device: str, gpus: float | None, cache: "DatasetCache"
) -> Iterator[tuple["torch.device", Train]]:
    """What a study trains on, and how."""
    if name == "ray":
        from unipelt.study.cluster import Cluster

        with Cluster(device, 1.0 if gpus is None else gpus) as cluster:
            yield cluster.device, lambda *study, watch: cluster.run_study(*study, log=watch.log, on_work=watch.show)
        return
    if name != "local":
        raise UserError(f"--engine {name}: expected local or ray")
    if gpus is not None:
        raise UserError(f"--gpus-per-fleet {gpus:g}: needs --engine ray; add it, or leave --gpus-per-fleet out")
    from unipelt.study.engine import run_study
    from unipelt.train.setup import device_of

    def train(store: "Store", study: StudyConfig, watch: "StudyWatch") -> None:
        for _ in run_study(store, study, device=device, cache=cache, log=watch.log, on_step=watch):
            pass  # nothing but the store keeps what a study's runs give

    yield device_of(device), train


def _run(options: dict[str, Any], out: str, engine: str, device: str, gpus: float | None) -> None:
    grid, study = parse_options(options)
    if not out:
        raise UserError("--out is missing: expected a folder for the study, such as results/glue")
    from unipelt.cli.progress import TRAINED_AGAIN, StudyWatch
    from unipelt.study.engine import dataset_identities, hidden_size
    from unipelt.study.plan import group_into_fleets
    from unipelt.study.store import Store
    from unipelt.train.setup import DatasetCache

    keys = grid.keys(hidden_size(study.model))
    cache = DatasetCache()
    with _engine(engine, device, gpus, cache) as (target, train):
        store = Store.create(out, study.options)
        done = {key for key, status in store.statuses() if status in DONE}
        missing = [key for key in keys if key not in done]
        notes = _notes(missing, study, cache)
        again = store.plan(keys, dataset_identities(missing, study, cache))
        if again:
            notes.append(TRAINED_AGAIN.format(again))
        at_once, mixed = study.most_at_once(target.type), target.type != "cpu"
        store.assign(
            lambda free: group_into_fleets(free, at_once, mixed, lambda key: cache.task(study.config(key)).kind)
        )
        with StudyWatch(store) as watch:
            for note in notes:
                watch.log(note)
            train(store, study, watch=watch)
    statuses = [status for _, status in store.statuses()]
    failed = [*failures(statuses)]
    if failed and len(failed) == len(statuses):
        raise UserError(f"{out}: every run failed, the first because {failed[0]}")
    print(f"{out}: {len(statuses) - len(failed)} of {len(statuses)} runs done" + (f", {len(failed)} failed: {failed[0]}; repeat the command to try again" if failed else ""))  # fmt: skip
    print(f"  tables and figures: `unipelt report {out}`; all runs: `unipelt study export {out} --out runs.csv`")


def _notes(keys: list[RunKey], study: StudyConfig, cache: "DatasetCache") -> list[str]:
    """Notes about the data of each task and size, from the splits of the first seed.

    Raises DataError where a task's data cannot be had, before anything is trained.
    """
    from unipelt.train.train_run import describe_columns

    notes: dict[str, None] = {}
    for task in dict.fromkeys(key.task for key in keys):
        firsts = {key.k: study.config(key) for key in reversed(keys) if key.task == task}
        all_config = replace(next(iter(firsts.values())), k="all")
        cache.splits(all_config)  # raises where no examples can be drawn at all
        notes[describe_columns(all_config, cache.task(all_config))] = None
        for config in reversed(firsts.values()):
            with suppress(DataError):  # too few examples for this size: each of its runs says so in its status
                notes |= dict.fromkeys(cache.splits(config).notes)
    return list(notes)
