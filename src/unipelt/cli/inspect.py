"""`unipelt inspect`: what a run holds, and what its gates say."""

import typer


def inspect(
    run: str = typer.Argument(..., help="folder of a run, or a hub repository of one"),
    data: str = typer.Option("", help="file with texts, to see the gates on them"),
    text: str = typer.Option("", help="column of the text, or of the first text of a pair"),
    pair: str = typer.Option("", help="column of the second text"),
    figure: str = typer.Option("", help="file to draw the gates into, such as gates.png or gates.svg"),
    model: str = typer.Option("", help="another place of the run's base"),
) -> None:
    """Show a run's parameters by change, its size, results, and its gates by layer on given data."""
    from rich.console import Console

    from unipelt.checkpoint.folder import CONFIG, TENSORS, describe, resolve
    from unipelt.cli.tables import gate_table, parameter_table
    from unipelt.errors import UserError

    folder = resolve(run)
    if (folder / "run.json").exists() and not (folder / CONFIG).exists():
        from unipelt.fleet.tune import read_outcome

        outcome = read_outcome(folder)
        print(f"{run}: {outcome.request['method']} on {outcome.request['task']}, {outcome.status}, test {outcome.test}")  # type: ignore[union-attr]
        return
    description, console = describe(folder), Console()
    base, task = description.base, description.task
    size = (folder / TENSORS).stat().st_size if (folder / TENSORS).exists() else 0
    console.print(
        f"{description.mixture['name']} on {base['name']} ({base['model_type']}), task {task.get('name', 'not named')}",
        markup=False,
    )
    console.print(
        f"{TENSORS}: {size / 1e6:.2f} MB; head reads {description.head['pooling']}, policy {description.head['policy']}",
        markup=False,
    )
    for name, value in description.results.items():
        console.print(f"{name}: {value:.4f}", markup=False)
    console.print(parameter_table(folder, description))
    if figure and not data:
        raise UserError("--figure needs --data: gates are drawn on texts")
    if data:
        from unipelt import data as rooms
        from unipelt.fleet.apply import Applied, gate_paths

        applied = Applied.load(run, model or None, "cpu")
        if not any(True for _ in gate_paths(applied.model)):
            raise UserError("--data: this run has no gates to show; train one with --method unipelt-apl")
        _, rows = rooms.load_file(data, text=text or None, pair=pair or None, for_prediction=True)
        values = applied.gates(rows)
        console.print(f"gates on {len(rows)} rows of {data}: mean ± standard deviation over rows", markup=False)
        console.print(gate_table(values))
        if figure:
            from unipelt.cli.figures import draw_gates

            draw_gates(values, figure)
            print(f"{figure}: drawn")
