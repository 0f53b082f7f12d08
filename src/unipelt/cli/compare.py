"""`unipelt compare`: the best model for a file of labelled examples, with the evidence."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from unipelt.cli.fields import DEVICE, flags, number, option, recipe_defaults, takes
from unipelt.errors import UserError
from unipelt.study.plan import COLUMNS, Grid, StudyConfig, parse_options
from unipelt.train.recipes import Recipe
from unipelt.train.records import DONE, RunConfig, RunKey, RunRecord, failures

if TYPE_CHECKING:
    import torch

    from unipelt.study.compare import CheckpointSaver
    from unipelt.study.store import Store
    from unipelt.train.setup import DatasetCache

WINNER = "winner"
RETRAIN_FACTOR = 1.5  # times as many epochs must fit for finished runs to be trained again
RESERVED_SHARE = 0.06  # share of the minutes that is kept for the last test and the report
USUAL: dict[str, Any] = {"methods": ["head", "lora", "adapter", "unipelt-apl"], "seeds": 3, "rates": 2}
_FOLDS = {
    "folds": "5 for up to 2,000 examples; 0 for more, for data with its own test set, with --train-rows, --validation or --test, for generation, and where a class has fewer than 5 examples"
}
_USUAL = {name: " ".join(value) if isinstance(value, list) else str(value) for name, value in USUAL.items()}
_USUAL["seeds"] += "; with folds, --seeds is the number of cross-validations, by default 1"


@takes(
    *flags(RunConfig, only=["task", "k", *COLUMNS]), *flags(Grid, only=[*USUAL, "lr"], default=_USUAL),
    *flags(StudyConfig, but=["head", "runs_at_once", "recipe", "columns"], default=_FOLDS), *flags(Recipe, but=["lr"], default=recipe_defaults()),
)  # fmt: skip
def compare(
    minutes: float = number(
        "Training",
        "time budget in minutes; without --epochs it shortens training to fit two seeds per method, or one if two leave fewer than 3 epochs; rerun with more minutes to continue (default: no limit)",
        default=0.0,
        min=0.0,
    ),
    learning_curve: bool = option(
        "Training",
        "train the recommended method on a quarter and on half of the examples too, to see whether more labels would help (default: on)",
        "--learning-curve/--no-learning-curve",
        default=True,
    ),
    device: str = DEVICE,
    baselines: bool = option(
        "Model",
        "fit the task's baselines too and show them first: constant, tfidf, probe; probe alone for tags; zero-shot, nearest for generation (default: on)",
        "--baselines/--no-baselines",
        default=True,
    ),
    out: str = option("Output", "folder of the comparison; the same command resumes a stopped comparison (required)"),
    **options: Any,
) -> None:
    """Try several methods on your examples, recommend one with the evidence for it, and save the trained model.

    Examples:
        unipelt compare --data reviews.csv --text-column review --label-column stars --minutes 20 --out results/reviews
        unipelt compare --data tickets.csv --group-column customer --stratify --out results/tickets
        unipelt compare --data docstrings --methods head lora unipelt-apl --seeds 2 --train-rows 800 --out results/docstrings
    """
    import time

    began = time.monotonic()
    if "task" not in options:
        raise UserError("--data is missing: expected a file with labels, such as reviews.csv")
    if not out:
        raise UserError("--out is missing: expected a folder for the comparison, such as results/reviews")
    usual = {name: value for name, value in USUAL.items() if name != "rates" or "lr" not in options}
    grid, study = parse_options(usual | options | {"tasks": [options["task"]], "k": [options.get("k", "all")]})
    from unipelt.cli.progress import TRAINED_AGAIN, StudyWatch
    from unipelt.study.compare import CheckpointSaver, add_runs, open_store, usual_folds, with_baselines
    from unipelt.study.engine import hidden_size, run_study
    from unipelt.train.setup import DatasetCache, device_of

    target, cache, folder = device_of(device), DatasetCache(), Path(out)
    notes: list[str] = []
    if "folds" not in options:
        folds, why = usual_folds(study, grid.keys(1)[0], cache)
        study, notes = replace(study, folds=folds), [why] if why else []
    if study.folds and options.get("k", "all") != "all":
        raise UserError(
            f"--folds {study.folds}: takes every example, and --train-rows {options['k']} was given; leave one out"
        )
    if study.folds:
        grid = replace(grid, seeds=study.folds * options.get("seeds", 1))
    # seed by seed, so that a comparison that is stopped has looked at every method alike
    plan = sorted(grid.keys(hidden_size(study.model)), key=lambda key: key.seed)
    if baselines:
        plan, lacking = with_baselines(plan, study, cache)
        notes += lacking
    notes = [*_data_notes(study, plan, cache), *notes]
    deadline = began + 60 * minutes * (1 - RESERVED_SHARE) if minutes else None
    epochs_given, earlier = "epochs" in study.recipe, _earlier_budget(folder)
    if not epochs_given and earlier.epochs:
        study = replace(study, recipe=study.recipe | {"epochs": earlier.epochs})
    baseline_keys, tuned_keys = ([key for key in plan if key.baseline == which] for which in (True, False))
    saver = CheckpointSaver(folder)
    save_run = None if study.folds else saver  # with folds only the winner is saved, trained again on all examples
    with StudyWatch() as watch:
        how: dict[str, Any] = {"device": device, "log": watch.log, "cache": cache}
        for note in notes:
            watch.log(note)
        if baseline_keys:
            store, _ = open_store(folder, study, baseline_keys, plan, cache)
            pending, finished = Counter(key.method for key in store.pending()), dict[str, list[RunRecord]]()
            for run in run_study(store, study, only=lambda key: key.baseline, **how):
                if save_run:
                    save_run(run)
                finished.setdefault(run.key.method, []).append(run.record)
                if len(finished[run.key.method]) == pending[run.key.method]:
                    watch.log(_baseline_line(run.key.method, finished[run.key.method]))
        if tuned_keys and not epochs_given:
            try:
                chosen, why = _epochs(study, tuned_keys, cache, target, folder, earlier, minutes, deadline)
                study = replace(study, recipe=study.recipe | ({"epochs": chosen} if chosen else {}))
            except UserError as error:  # too few minutes to tune anything: the baselines are an answer
                if not baseline_keys:
                    raise
                why, tuned_keys = str(error), []
            watch.log(why) if why else None
        if tuned_keys:
            if baseline_keys:
                store.close()
            store, again = open_store(folder, study, plan, plan, cache, minutes)
            watch.store = store
            if again:
                watch.log(TRAINED_AGAIN.format(again))
            for run in run_study(store, study, on_step=watch, deadline=deadline, **how):
                if save_run:
                    save_run(run)
        if learning_curve and not store.pending() and (fewer := _fewer(store, study, cache)):
            add_runs(store, study, fewer, plan, cache)
            for _ in run_study(store, study, on_step=watch, deadline=deadline, **how):
                pass  # the model that is saved has learned from all examples
    _show_result(store, study, saver, folder, minutes, watch.fleet_seconds, device)


class EarlierBudget(NamedTuple):
    """Epochs and minutes of a comparison that exists."""

    tuned: bool = False
    """whether it has runs that are tuned"""
    epochs: int | None = None
    minutes: float = 0.0


def _earlier_budget(out: Path) -> EarlierBudget:
    """Epochs and minutes of the comparison in a folder, if there is one."""
    from unipelt.study.compare import MINUTES
    from unipelt.study.store import FILE, Store

    if not (out / FILE).exists():
        return EarlierBudget()
    store = Store.read(out)
    tuned = any(not key.baseline for key, _ in store.statuses())
    earlier = EarlierBudget(tuned, store.options.get("recipe", {}).get("epochs"), store.noted(MINUTES) or 0.0)
    store.close()
    return earlier


def _baseline_line(method: str, records: list[RunRecord]) -> str:
    """What a baseline gives, from all of its runs."""
    from statistics import fmean

    from unipelt.tasks.metrics import METRICS

    split = "out-of-fold" if records[0].validation_metrics is None else "validation"
    known = [(record.test_metrics if split != "validation" else record.validation_metrics) or {} for record in records]
    names = (records[0].metric, "rougeL", *known[0])  # a text alone has no loss
    metric = next(name for name in names if name in known[0])
    shown = METRICS[metric].display_factor * fmean(metrics[metric] for metrics in known if metric in metrics)
    seconds = fmean(record.seconds for record in records)
    return f"{method}: {split} {metric.replace('_', ' ')} {shown:.2f} in {seconds:.1f} s"


def _fewer(store: "Store", study: StudyConfig, cache: "DatasetCache") -> list[RunKey]:
    """The runs of the recommended method on fewer examples; none where no run is finished."""
    from unipelt.report.recommendation import recommend
    from unipelt.report.study import read
    from unipelt.study.compare import learning_curve_keys

    try:
        finished = read(store)
    except UserError:
        return []
    recommended = recommend(finished)
    runs = [run for run in finished.chosen if (run.method, run.lr) == (recommended.method, recommended.lr)]
    return learning_curve_keys([run.key for run in runs], study, cache)


def _epochs(
    study: StudyConfig, plan: list[RunKey], cache: "DatasetCache", device: "torch.device", out: Path,
    earlier: EarlierBudget, minutes: float, deadline: float | None,
) -> tuple[int | None, str]:  # fmt: skip
    """(epochs, note) where --epochs is not given: as many as fit into the minutes; None: the recipe's own.

    A comparison that exists keeps its epochs, unless it was begun with fewer minutes and many more epochs fit now.
    """
    from unipelt.study.trials import fit_epochs
    from unipelt.train.recipes import default_recipe

    epochs, before = earlier.epochs, earlier.minutes
    if earlier.tuned and (
        epochs is None or not before or 0 < minutes <= before
    ):  # the same budget again, or none before
        return epochs, f"--epochs {epochs}: as {out} was begun with" if epochs else ""
    if deadline is None and epochs is None:
        return None, ""
    chosen, why = fit_epochs(plan, study, cache, device, minutes, deadline) if deadline is not None else (None, "")
    if epochs is None:
        return chosen, why
    first = study.config(plan[0])
    longest = chosen or default_recipe(first.method, 1, len(cache.splits(first).train)).epochs
    if longest < RETRAIN_FACTOR * epochs:  # every run would be trained again for little
        return epochs, f"--epochs {epochs}: as {out} was begun with"
    return longest, f"--epochs {longest} instead of {epochs}, as there is more time"


def _data_notes(study: StudyConfig, plan: list[RunKey], cache: "DatasetCache") -> list[str]:
    """Which columns are used and what was left out, before anything is trained; as the first seed draws the examples."""
    from unipelt.train.train_run import notes_of

    notes: dict[str, None] = {}
    for key in plan:
        config = study.config(key)
        splits = cache.splits(config)
        if key.seed == plan[0].seed:
            notes |= dict.fromkeys(notes_of(config, splits, cache.task(config)))
    return list(notes)


def _show_result(
    store: "Store", study: StudyConfig, saver: "CheckpointSaver", out: Path, minutes: float, needed: float, device: str
) -> None:
    """Save the recommended model and the report, and print the report. needed: seconds that the fleet at work takes."""
    from unipelt.checkpoint.disk import write_whole
    from unipelt.cli.progress import Watch
    from unipelt.cli.tables import terminal
    from unipelt.report.build import PAGE, build
    from unipelt.report.terminal import show
    from unipelt.study.compare import refit
    from unipelt.study.trials import minutes_of

    rows = store.runs(["task", "status"])
    done = [row for row in rows if row["status"] in DONE]
    failed = [*failures(row["status"] for row in rows)]
    if not done and failed:
        raise UserError(f"{out}: every run failed, the first because {failed[0]}")
    if not done:
        took = f", which takes {minutes_of(needed)} minutes at most by its steps so far" if needed else ""
        raise UserError(
            f"--minutes {minutes:g}: too short for one run{took}; run the same command with more minutes to continue"
        )
    report, console = build(out), terminal()
    assert report.recommendation, "a comparison has a recommendation"
    method, winner = report.recommendation.method, out / WINNER
    if study.folds:
        with Watch() as watch:
            watch.log(f"{method}: trains once more, without a test set")
            refit(
                study, method, report.recommendation.lr, rows[0]["task"],
                saver.folder_of(method, report.recommendation.lr), device=device, log=lambda text: None, on_step=watch,
            )  # fmt: skip
    notes = saver.copy(method, report.recommendation.lr, winner)  # everything is on disk before anything is shown
    write_whole(out / "report", report.files)
    show(report, console)
    for note in notes:
        console.print(note)
    if len(done) < len(rows):
        missing = f"{len(done)} of {len(rows)} runs are done"
        missing += f", {len(failed)} failed: {failed[0]}" if failed else ""
        more = "; run the same command with more --minutes for the rest" if len(done) + len(failed) < len(rows) else ""
        console.print(missing + more)
    refitted = ", trained once more without a test set" if study.folds else ""
    console.print(f"{winner}: {method}{refitted}, ready for `unipelt predict {winner} --data FILE`")
    console.print(f"{out / 'report' / PAGE}: the evidence")
