"""`unipelt inspect`: the parts of a run, its results, and the values of its gates."""

import io
import textwrap
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from unipelt.checkpoint.disk import write_whole
from unipelt.cli.fields import RUN_FOLDER, TEXT_COLUMN, TEXT_PAIR_COLUMN, option, switch
from unipelt.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

NO_GATES = "--data: this run has no gates to show; train one with --method unipelt-apl"
SHOWN = 3  # examples whose labels are shown
KINDS = ("pdf", "png", "svg")
LEAST_SPAN = 0.05  # of gate values, from the darkest to the lightest colour: noise stays pale


def inspect(
    run: str = typer.Argument("", help=RUN_FOLDER),
    data: str = option(
        "Data",
        "file with texts on which gates are measured; for --show-labels with chats, or texts with answers",
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
    from unipelt.checkpoint.description import TENSORS, describe
    from unipelt.checkpoint.disk import refuse_existing, resolve
    from unipelt.cli.tables import gate_table, parameter_table, result_lines, terminal
    from unipelt.train.run_folder import RECORD, read_record

    if show_labels:
        if not data:
            raise UserError("--show-labels needs --data: a file with chats or answers")
        for line in label_lines(data, model or "smollm2"):
            print(line)
        return
    if show_modules:
        from unipelt.cli.architectures import base_lines

        if run or data:
            raise UserError("--show-modules shows a base alone; leave out the run and --data")
        if not model:
            raise UserError("--show-modules needs --model: a folder or the Hub name of a base")
        for line in base_lines(model):
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
    if (folder / RECORD).exists() and not (folder / TENSORS).exists():  # a baseline, or a model that was tuned whole
        record = read_record(folder)
        assert record is not None
        print("\n".join(result_lines(record)))
        if data:
            raise UserError(NO_GATES)
        return
    description = describe(folder)
    trained_on, task, head = description.base, description.task, description.head
    console.print(
        f"{description.mixture['name']} on {trained_on['name']} ({trained_on['model_type']}), task {task.get('name', 'not named')}",
        f"{TENSORS}: {(folder / TENSORS).stat().st_size / 1e3:,.1f} kB; head reads {head['pooling']}, policy {head['policy']}",
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


def label_lines(data: str, base: str) -> Iterator[str]:
    """The tokens of a file's first examples as spans, each read or learned. Raises UserError for a file without answers."""
    from unipelt.tasks import registry
    from unipelt.tasks.generation import Generation

    task, dataset = registry.load(data)
    if not isinstance(task, Generation):
        raise UserError(f"--show-labels: {data} is a {task.kind} data set; expected chats, or texts with answers")
    model, tokenizer = task.load(base)
    task = task.prepare(model, tokenizer)
    encoded = task.encode(tokenizer, dataset.train, task.default_max_length)
    learned = sum(map(len, encoded.answers))
    total = sum(map(len, encoded.features["input_ids"]))
    yield f"{data}: {len(encoded)} examples, {total:,} tokens, {learned:,} of them learned; template {task.hash or 'none'}"
    for index in range(min(SHOWN, len(encoded))):
        tokens, answer = encoded.features["input_ids"][index].tolist(), encoded.answers[index].tolist()
        yield f"{dataset.train.name_of(index)}: {len(tokens)} tokens, {len(answer)} learned"
        if encoded.decoder_start is not None:
            spans = [(False, tokens), (True, answer)]
        else:
            answered = {position + 1 for position in encoded.positions[index].tolist()}
            marked = groupby(enumerate(tokens), key=lambda pair: pair[0] in answered)
            spans = [(is_learned, [token for _, token in span]) for is_learned, span in marked]
        for is_learned, span in spans:
            yield f"  {'learned' if is_learned else 'read   '}  {tokenizer.decode(span)!r}"


def kind_of(path: str) -> str:
    """The kind of figure that a file's suffix asks for. Raises UserError for one that cannot be drawn."""
    kind = Path(path).suffix.removeprefix(".").lower()
    if kind not in KINDS:
        raise UserError(
            f"--figure {path}: ends in {Path(path).suffix or 'no suffix'!r}; expected .{', .'.join(KINDS)}, such as gates.png"
        )
    return kind


def draw_gates(values: Mapping[str, "Tensor"], path: str, title: str) -> None:
    """A heat map of mean gate values, layers by changes, into a file; its colours span the values that there are."""
    from unipelt.report.drawing import canvas
    from unipelt.report.figures import heat
    from unipelt.report.names import gate_labels

    means = {gate_labels(location): float(value.mean()) for location, value in values.items()}
    rows, columns = (len({labels[axis] for labels in means}) for axis in (0, 1))
    low, high = min(means.values()), max(means.values())
    middle, half = (high + low) / 2, max(LEAST_SPAN, high - low) / 2
    with canvas("gates", 1, 1, 1.6 + 1.5 * columns, 1.2 + 0.35 * rows) as (drawing, (panel,)):
        mesh = heat(panel, means, max(0.0, middle - half), min(1.0, middle + half), digits=3)
        drawing.suptitle("\n".join(textwrap.wrap(title, width=24 + 14 * columns)), fontsize=10)
        drawing.colorbar(mesh, label="mean gate")
        drawn = io.BytesIO()
        drawing.savefig(drawn, dpi=150, format=kind_of(path))
    write_whole(Path(path).parent, {Path(path).name: drawn.getvalue()})
