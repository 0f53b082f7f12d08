"""A finished run applied to new rows: predictions, probabilities, and what its gates say."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from unipelt import data
from unipelt.checkpoint.bases import load_base, load_both, load_tokenizer
from unipelt.checkpoint.description import CONFIG, describe
from unipelt.checkpoint.disk import resolve
from unipelt.checkpoint.folder import load
from unipelt.data.columns import choose_columns, task_and_rows
from unipelt.data.files import read_table
from unipelt.errors import CheckpointError, UserError
from unipelt.forms.gate import Scored
from unipelt.inject.fixed_gates import fix_gates
from unipelt.inject.merge import merge
from unipelt.inject.shapes import most_tokens
from unipelt.inject.state import mixture_state
from unipelt.spec import Location
from unipelt.tasks import metrics
from unipelt.train.batches import collate, encode, longest_first
from unipelt.train.evaluation import decisions, predict, rows_each
from unipelt.train.fold import Folded, fold
from unipelt.train.recipes import Recipe
from unipelt.train.records import RECORD, read_record
from unipelt.train.setup import device_of


@dataclass
class Predictor:
    """A run's model, ready to use."""

    model: PreTrainedModel
    tokenizer: Any
    task: dict[str, Any]
    max_length: int
    tuned: bool

    @classmethod
    def load(cls, run: str, base: str | None = None, device: str = "auto") -> "Predictor":
        """Load a run and its base. Raises CheckpointError where the folder holds none, or one that is not finished."""
        target, folder = device_of(device), resolve(run)
        if not (folder / CONFIG).exists() and (folder / RECORD).exists():
            return cls._whole(folder, target)
        description = describe(folder)
        task = description.task
        if not {"labels", "pair"} <= task.keys():
            raise CheckpointError(f"{run}: does not say which task it was trained for; load it with unipelt.load")
        name = base or description.base["name"]
        if not name:
            raise CheckpointError(f"{run}: does not say where its base is; name it with --model")
        model, tokenizer = load_both(name, classes=len(task["labels"]) or 1)
        longest = most_tokens(model, description.recipe.get("max_length", Recipe.max_length))
        merge(load(model, folder), rest="attached")
        return cls(model.to(target).eval(), tokenizer, task, longest, True)

    @classmethod
    def _whole(cls, folder: Path, target: torch.device) -> "Predictor":
        record = read_record(folder)
        if record is not None and record.failed:
            raise CheckpointError(f"{folder}: {record.status}; train again with another --out")
        if record is None or not record.done:
            raise CheckpointError(
                f"{folder}: its run is not finished; the `unipelt train` command that began it goes on with it"
            )
        if not record.whole:
            raise CheckpointError(f"{folder}: no {CONFIG} in it, though its run is finished; train it again")
        model, task = load_base(str(folder), classes=len(record.description["labels"]) or 1), record.description
        longest = most_tokens(model, (record.recipe or {})["max_length"])
        return cls(model.to(target).eval(), load_tokenizer(str(folder)), task, longest, False)

    def columns(
        self, path: str, *, text: str | None, pair: str | None, proba: bool, gates: bool
    ) -> dict[str, list[Any]]:
        """The columns of a file, and behind them `prediction`, probabilities `p(label)` and gates `gate(path)`."""
        if gates and not (self.tuned and gate_paths(self.model)):
            raise UserError("--gates: this run has no gates; train one with --method unipelt-apl")
        if proba and not self.task["labels"]:
            raise UserError("--proba: a regression has no classes")
        columns, rows = self.read(path, text=text, pair=pair)
        labels = self.task["labels"]
        ours = ["prediction", *(f"p({label})" for label in labels if proba)]
        for name in columns:
            if name in ours or (gates and name.startswith("gate(")):
                raise UserError(f"{path}: has a column {name!r} already, which predict writes; rename it")
        encoded = encode(self.tokenizer, rows, self.max_length)
        gated: dict[str, Tensor] = {}
        logits = predict(self.model, self.tokenizer, [encoded], gates=[gated] if gates else None)[0]
        if labels:
            columns["prediction"] = [labels[i] for i in logits.argmax(dim=-1).tolist()]
        else:
            columns["prediction"] = [round(value, 6) for value in logits[:, 0].tolist()]
        if proba:
            for label, values in zip(labels, logits.softmax(dim=-1).T.tolist()):
                columns[f"p({label})"] = [round(value, 6) for value in values]
        for name, values in gated.items():
            columns[f"gate({name})"] = [round(value, 6) for value in values.tolist()]
        return columns

    def read(
        self, path: str, *, text: str | None, pair: str | None, labelled: bool = False
    ) -> tuple[dict[str, list[Any]], data.Examples]:
        """A file's columns, and its texts: from the columns given, else from those of the training; its labels too, where
        they are asked for and the file has them."""
        table, trained = read_table(path), self.task.get("columns")
        label = (trained or {}).get("label") if labelled else None
        columns = choose_columns(
            table, text=text, pair=pair, label=label if label in table.columns else None, for_prediction=True,
            trained=data.Columns(**trained) if trained else None,
        )  # fmt: skip
        found, rows = task_and_rows(table, columns, name=path, labels=self.task["labels"], kind=self.task.get("kind"))
        if found.pair != self.task["pair"]:
            counts = {True: "pairs of texts", False: "single texts"}
            raise UserError(
                f"{path}: has {counts[found.pair]}, the run was trained on {counts[self.task['pair']]}; name the columns with --text and --pair"
            )
        return dict(table.columns), rows

    def gates(self, rows: data.Examples) -> dict[str, Tensor]:
        """Each gate's value for each row `[rows]`; a gate of each token's own is averaged over the row's tokens."""
        values: dict[str, Tensor] = {}
        predict(self.model, self.tokenizer, [encode(self.tokenizer, rows, self.max_length)], gates=[values])
        return values

    def fold(self, rows: data.Examples, **thresholds: Any) -> Folded:
        """What `unipelt.fold` does over these rows; with labels, by the task's own metric."""
        encoded, batches = encode(self.tokenizer, rows, self.max_length), []
        for (mine,) in longest_first([encoded.lengths()], partial(rows_each, self.model.device, 1)):
            inputs, _ = collate([(encoded, mine)], self.tokenizer, self.model.device)
            if rows.labels is not None:
                inputs["labels"] = torch.tensor([rows.labels[row] for row in mine], device=self.model.device)
            batches.append(inputs)
        known = {name: self.task[name] for name in ("name", "kind", "metric", "pair")}
        task = data.Task(labels=tuple(self.task["labels"]), **known)

        def score(logits: Tensor, labels: Tensor) -> float:
            return metrics.score(task, decisions(task, logits), labels.tolist())[task.metric]

        return fold(self.model, batches, score=(task.metric, score), **thresholds)


def gate_paths(model: PreTrainedModel) -> list[str]:
    """The paths of a model's gates."""
    return [path for path, module in mixture_state(model).named_modules() if isinstance(module, Scored)]


def fixed_at_means(predictor: Predictor, rows: data.Examples) -> None:
    """Replace each gate by its mean over rows, one value a layer: over the stacks and places that the change has there."""
    values: dict[str, dict[int, list[float]]] = {}
    for path, gate in predictor.gates(rows).items():
        at = Location.parse(path)
        values.setdefault(at.change, {}).setdefault(at.layer or 0, []).append(float(gate.mean()))
    means = {change: [sum(v) / len(v) for _, v in sorted(layers.items())] for change, layers in values.items()}
    fix_gates(predictor.model, means)  # type: ignore[arg-type]
