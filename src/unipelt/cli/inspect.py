"""`unipelt inspect`: the parts of a run, its results, and the values of its gates."""

from pathlib import Path

import typer

from unipelt.cli.fields import RUN_FOLDER, TEXT_COLUMN, TEXT_PAIR_COLUMN, option, switch
from unipelt.errors import UserError

NO_GATES = "--data: this run has no gates to show; train one with --method unipelt-apl"


def inspect(
    run: str = typer.Argument("", help=RUN_FOLDER),
    data: str = option(
        "Data", "file with texts, on which the gates are measured; with --show-labels with chats or answers"
    ),
    text: str = TEXT_COLUMN,
    pair: str = TEXT_PAIR_COLUMN,
    model: str = option("Model", "folder or Hub name of the base (default: the run's; with --show-labels smollm2)"),
    show_labels: bool = switch(
        "Output",
        "without RUN: show the tokens of the first examples of --data, and which of them the training loss counts",
        "--show-labels",
    ),
    show_modules: bool = switch(
        "Output",
        "without RUN: show the paths of the modules in the layers of --model, and check them",
        "--show-modules",
    ),
    figure: str = option("Output", "file for a heat map of the gates, such as gates.png or gates.svg"),
    overwrite: bool = switch("Output", "replace --figure where it exists (default: refuse)", "--overwrite"),
) -> None:
    """Show what a run holds: parameters of each change, size, results, and the gates of each layer on given texts.

    Examples:
        unipelt inspect --data chats.jsonl --model smollm2 --show-labels
        unipelt inspect runs/gated --data new.csv --figure gates.png
        unipelt inspect --model minilm --show-modules
    """
    from unipelt.checkpoint.description import CONFIG, describe
    from unipelt.checkpoint.disk import refuse_existing, resolve
    from unipelt.cli.figures import draw_gates, kind_of
    from unipelt.cli.tables import gate_table, parameter_table, result_lines, terminal
    from unipelt.train.run_folder import RECORD, read_record

    if show_labels:
        from unipelt.cli.labels import label_lines

        if not data:
            raise UserError("--show-labels needs --data: a file with chats or answers")
        for line in label_lines(data, model or "smollm2"):
            print(line)
        return
    if show_modules:
        from unipelt.cli.base_rows import row_lines

        if run or data:
            raise UserError("--show-modules shows a base alone; leave out the run and --data")
        if not model:
            raise UserError("--show-modules needs --model: a folder or the Hub name of a base")
        for line in row_lines(model):
            print(line)
        return
    if not run:
        raise UserError("the run is missing: expected its folder, such as `unipelt inspect runs/reviews`")
    if figure:
        kind_of(figure)
        refuse_existing(Path(figure), "--figure", overwrite)
        if not data:
            raise UserError("--figure needs --data: gates are drawn on texts")
    folder, console = resolve(run), terminal()
    if (folder / RECORD).exists() and not (folder / CONFIG).exists():  # a baseline, or a model that was tuned whole
        record = read_record(folder)
        assert record is not None
        print("\n".join(result_lines(record)))
        if data:
            raise UserError(NO_GATES)
        return
    description = describe(folder)
    trained_on, task, head = description.base, description.task, description.head
    size = (folder / description.tensors).stat().st_size if (folder / description.tensors).exists() else 0
    console.print(
        f"{description.mixture['name']} on {trained_on['name']} ({trained_on['model_type']}), task {task.get('name', 'not named')}",
        f"{description.tensors}: {size / 1e3:,.1f} kB; head reads {head['pooling']}, policy {head['policy']}",
        *(f"{name}: {value:.4f}" if isinstance(value, float) else f"{name}: {value}" for name, value in description.results.items()),
        sep="\n",
    )  # fmt: skip
    console.print(parameter_table(folder, description))
    if not data:
        return

    from unipelt.train.predictor import Predictor

    predictor = Predictor.load(run, model or None, "cpu")
    rows = predictor.read(data, text=text or None, pair=pair or None)
    values = predictor.gates(rows)
    if not values:
        raise UserError(NO_GATES)
    console.print(f"gates on {len(rows)} examples of {data}: mean ± standard deviation over examples")
    console.print(gate_table(values))
    if figure:
        title = f"{description.mixture['name']} on {trained_on['name']}: mean gates over {len(rows)} examples of {data}"
        draw_gates(values, figure, title)
        print(f"{figure}: drawn")
