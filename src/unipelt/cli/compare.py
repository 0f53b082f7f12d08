"""`unipelt compare`: the best model for a file of labelled rows, with the evidence."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from unipelt.cli.fields import docs, size
from unipelt.errors import UserError
from unipelt.fleet.outcome import FILES, Request
from unipelt.fleet.recipe import Recipe
from unipelt.study.plan import MOST_RATES, Setting

_request, _recipe, _setting = docs(Request), docs(Recipe), docs(Setting)
_OWN = "; default: each method's own"
WINNER = "winner"
SPARE = 0.06  # share of the minutes that is kept for the last test and the report


def compare(
    data: str = typer.Option(
        "", help="needed: CSV, JSONL or Parquet file with labels; or a GLUE task, or docstrings (built in)"
    ),
    text: str = typer.Option("", help=_request["text"]),
    pair: str = typer.Option("", help=_request["pair"]),
    label: str = typer.Option("", help=_request["label"]),
    kind: str = typer.Option("", help=_request["kind"]),
    dev: str = typer.Option("", help=_request["dev"]),
    test: str = typer.Option("", help=_request["test"]),
    group: str = typer.Option("", help=_request["group"]),
    model: str = typer.Option("minilm", help=_request["model"]),
    methods: list[str] = typer.Option(
        [], help="presets with their options, or full; default: head lora adapter unipelt-apl"
    ),
    seeds: int = typer.Option(
        3, min=1, help="how often each is trained: other rows for development, other initial values"
    ),
    rates: int = typer.Option(
        2, min=1, max=MOST_RATES, help="learning rates of each method: its own, a third of it, …"
    ),
    lr: list[float] = typer.Option([], help="learning rates for all methods instead"),
    k: str = typer.Option("all", "--k", help=_request["k"]),
    dev_rows: int = typer.Option(1000, min=1, help=_request["dev_rows"]),
    stratify: bool = typer.Option(False, help=_request["stratify"]),
    minutes: float = typer.Option(
        0.0,
        min=0.0,
        help="time budget, kept: as many epochs as fit, where --epochs gives none; the same command with more goes on; 0: none",
    ),
    epochs: int | None = typer.Option(None, help=_recipe["epochs"] + _OWN),
    evaluate_every: int | None = typer.Option(None, help=_recipe["evaluate_every"] + _OWN),
    batch_size: int | None = typer.Option(None, help=_recipe["batch_size"] + _OWN),
    max_length: int | None = typer.Option(None, help=_recipe["max_length"] + _OWN),
    data_dir: str = typer.Option("", help=_request["data_dir"]),
    head: str = typer.Option("auto", help=_request["head"]),
    mix_methods: bool = typer.Option(False, help=_setting["mix_methods"]),
    device: str = typer.Option("auto", help="auto (the GPU when there is one), cpu or cuda"),
    out: str = typer.Option(
        "", help="needed: folder of the comparison; the same command again goes on where it stopped"
    ),
) -> None:
    """Try several methods on your rows, say which to take and how sure that is, and save the model."""
    import time

    began = time.monotonic()
    given = {"epochs": epochs, "evaluate_every": evaluate_every, "batch_size": batch_size, "max_length": max_length}
    recipe = {name: value for name, value in given.items() if value is not None}
    Recipe(**recipe)
    if not data:
        raise UserError("--data is missing: expected a file with labels, such as reviews.csv")
    if not out:
        raise UserError("--out is missing: expected a folder for the comparison, such as results/reviews")
    columns: dict[str, Any] = {
        name: value or None for name, value in zip(FILES, (text, pair, label, kind, dev, test, group))
    }
    columns |= {"dev_rows": dev_rows, "stratify": stratify}

    from unipelt.cli.progress import StudyWatch
    from unipelt.fleet.ready import device_of
    from unipelt.fleet.together import Corpus
    from unipelt.study.compare import METHODS, Keeper, cells, in_rounds
    from unipelt.study.engine import hidden_size, identities, run_study
    from unipelt.study.plan import Grid
    from unipelt.study.store import COMPARISON, Store

    setting = Setting(
        model=model, head=head, data_dir=data_dir or None, recipe=recipe, mix_methods=mix_methods, columns=columns
    )  # fmt: skip
    Grid(tasks=[data], k=[size(k)], methods=methods or METHODS, seeds=seeds, lr=lr)
    target = device_of(device)
    plan = cells(data, size(k), methods or METHODS, seeds, hidden_size(model), lr, rates)
    corpus = Corpus()
    notes = _rows(setting, plan, corpus)
    until = began + 60 * minutes * (1 - SPARE) if minutes else None
    if epochs is None:
        chosen, why = _epochs(setting, plan, corpus, target, Path(out), minutes, until)
        setting = replace(setting, recipe=recipe | ({"epochs": chosen} if chosen else {}))
        notes += [why] if why else []
    store = Store.create(out, {COMPARISON: plan[0].task, **setting.facts})
    store.plan(plan, identities(plan, setting, corpus))
    store.assign(lambda free: in_rounds(free, mix_methods))
    keeper = Keeper(store, setting)
    with StudyWatch(store) as watch:
        for note in notes:
            watch.tell(note)
        run_study(store, setting, device=device, tell=watch.tell, watch=watch, keep=keeper, until=until, corpus=corpus)
    _say(store, keeper, Path(out), minutes, watch.whole)


def _epochs(
    setting: Setting, plan: list[Any], corpus: Any, device: Any, out: Path, minutes: float, until: float | None
) -> tuple[int | None, str]:
    """The epochs where none are given, and what there is to say of them: those that this comparison was begun with, or as many
    as fit into the minutes; none: the recipe's own."""
    from unipelt.study.budget import fitted
    from unipelt.study.store import FILE, Store

    if (out / FILE).exists():
        store = Store.read(out)
        held = store.facts.get("recipe", {}).get("epochs")
        store.close()
        return held, f"--epochs {held}: as {out} was begun with" if held else ""
    if until is None:
        return None, ""
    first = [cell for cell in plan if cell.seed == plan[0].seed]
    return fitted(first, setting, corpus, device, minutes, until)


def _rows(setting: Any, plan: list[Any], corpus: Any) -> list[str]:
    """What there is to say of the rows, before anything is trained, and as the first seed draws them."""
    from unipelt.fleet.tune import what_was_read

    notes: dict[str, None] = {}
    for cell in plan:
        request = setting.request(cell)
        splits = corpus.splits(request)
        if cell.seed == plan[0].seed:
            notes |= dict.fromkeys((what_was_read(request, splits.task), *splits.notes))
    return list(notes)


def _say(store: Any, keeper: Any, out: Path, minutes: float, whole: float) -> None:
    """The ranked answer; the chosen model and the report put in their places. whole: seconds that the fleet at work takes."""
    from unipelt.checkpoint.disk import write_whole
    from unipelt.cli.tables import gate_lines, terminal, verdict_table
    from unipelt.report.build import PAGE, build
    from unipelt.report.verdict import verdict
    from unipelt.study.budget import minutes_of
    from unipelt.study.store import DONE

    rows = store.runs()
    done = [row for row in rows if row["status"] in DONE]
    failed = [row for row in rows if row["status"].startswith("failed")]
    if not done and failed:
        raise UserError(f"{out}: every run failed, the first because {failed[0]['status'].removeprefix('failed: ')}")
    if not done:
        took = f", which takes {minutes_of(whole)} minutes at most by its steps so far" if whole else ""
        raise UserError(
            f"--minutes {minutes:g}: too short for one run{took}; the same command with more minutes goes on"
        )
    found, console = verdict(done), terminal()
    console.print(verdict_table(found))
    console.print(found.why, markup=False, highlight=False)
    for line in gate_lines(done, found):
        console.print(line, markup=False, highlight=False)
    if len(done) < len(rows):
        missing = f"{len(done)} of {len(rows)} runs are done" + (f", {len(failed)} failed: {failed[0]['status'][8:]}" if failed else "")  # fmt: skip
        console.print(f"{missing}{'; the same command with more --minutes does the rest' * bool(len(done) + len(failed) < len(rows))}", markup=False, highlight=False)  # fmt: skip
    keeper.put(found.take, found.chosen.lr, out / WINNER)
    made = build(out)
    write_whole(out / "report", made.files)
    console.print(f"{out / WINNER}: {found.take}, ready for `unipelt predict {out / WINNER} --data FILE`", markup=False, highlight=False)  # fmt: skip
    console.print(f"{out / 'report' / PAGE}: the evidence", markup=False, highlight=False)
