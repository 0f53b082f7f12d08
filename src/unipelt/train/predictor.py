"""Apply a finished run to new examples: predictions, probabilities and gate values."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unipelt import data
from unipelt.checkpoint.bases import run_tokenizer
from unipelt.checkpoint.description import TENSORS, describe
from unipelt.checkpoint.disk import BASELINE, resolve
from unipelt.checkpoint.fingerprint import check_tokenizer
from unipelt.checkpoint.loading import load
from unipelt.errors import CheckpointError, DataError, UserError
from unipelt.forms.gate import ScoredGate
from unipelt.inject.merge import merge
from unipelt.inject.shapes import most_tokens
from unipelt.tasks.base import Task
from unipelt.tasks.batches import IGNORED, Encoded, Part, check_tokens
from unipelt.tasks.language_model import token_losses
from unipelt.tasks.registry import task_of
from unipelt.train.forward import logits_of, longest_first, predict, predict_with_gates
from unipelt.train.records import RunRecord
from unipelt.train.run_folder import RECORD, read_record
from unipelt.train.setup import device_of
from unipelt.train.simplify import GateReport, ModelInputs, simplify_gates

Answers = tuple[Tensor | None, Encoded, list[str] | None]
"""of examples: logits, where there are any, what else `task.decide` reads, and the generated texts, where they were asked for"""


class TablePredictor:
    """Predicts for the examples of a file."""

    task: Task

    def outputs(self, examples: data.Examples) -> tuple[Tensor, Encoded]:
        """Logits as `task.decide` reads them, and what else it reads."""
        raise NotImplementedError

    def gates(self, examples: data.Examples) -> dict[str, Float[Tensor, " example"]]:
        """Each gate's value for each example by its location; empty if it has no gates."""
        return {}

    def generate(self, examples: data.Examples) -> list[str]:
        """The text generated for each example, if the task generates text."""
        raise NotImplementedError

    def answers(self, examples: data.Examples, texts: bool) -> Answers:
        return *self.outputs(examples), self.generate(examples) if texts else None

    def columns(
        self, path: str, *, text: str | None, pair: str | None, encoding: str | None = None, proba: bool = False,
        gates: bool = False, min_confidence: float = 0.0,
    ) -> tuple[dict[str, list[Any]], data.Dialect]:  # fmt: skip
        """The columns of a file, and after them `prediction`, probabilities `p(label)` and gates `gate(location)`; and how the
        file is written. An example without a text has none of them.

        min_confidence: the probability of the most probable class below which the prediction is left blank.
        """
        if not 0 <= min_confidence <= 1:
            raise UserError(f"--min-confidence {min_confidence:g}: expected a probability, from 0 to 1")
        if min_confidence and self.task.classes is None:
            raise UserError("--min-confidence: this run does not choose one of several classes; leave it out")
        if self.task.generates_text and proba:
            raise UserError("--proba: generated text has no class probabilities; leave it out")
        table, examples, indices = self.read_table(path, text=text, pair=pair, encoding=encoding)
        new_names = {"prediction", *(f"p({label})" for label in self.task.labels if proba)}
        for name in table.columns:
            if name in new_names or (gates and name.startswith("gate(")):
                raise UserError(f"{path}: has a column {name!r} already, which predict writes; rename it")
        gated = self.gates(examples) if gates else {}
        if gates and not gated:
            raise UserError("--gates: this run has no gates; train one with --method unipelt-apl")
        added: dict[str, list]
        if self.task.generates_text:
            added = {"prediction": self.generate(examples)}
        else:
            logits, encoded = self.outputs(examples)
            added = self.task.output_columns(logits, encoded, probabilities=proba)
        if min_confidence:
            probabilities = self.task.probabilities(logits)
            assert probabilities is not None, "a task that chooses one class has probabilities"
            sure = (probabilities.amax(dim=-1) >= min_confidence).tolist()
            added["prediction"] = [label if is_sure else None for label, is_sure in zip(added["prediction"], sure)]
        added |= {f"gate({name})": [round(value, 6) for value in values.tolist()] for name, values in gated.items()}
        columns = dict(table.columns)
        for name, values in added.items():
            columns[name] = [None] * len(table)
            for index, value in zip(indices, values):
                columns[name][index] = value
        return columns, table.dialect

    def read_table(
        self, path: str, *, text: str | None, pair: str | None, encoding: str | None = None, labelled: bool = False
    ) -> tuple[data.Table, data.Examples, list[int]]:
        """A file's table, its complete examples, and the index of each in the table.

        The columns are those given, else those of the training; labels are read where they are asked for and the file has them.
        """
        table, trained = data.read_table(path, encoding), self.task.columns
        label = trained.label if labelled and trained.label in table.columns else None
        columns = data.choose_columns(
            table, text=text, text_pair=pair, label=label, labelled=False, trained=trained
        )  # fmt: skip
        if (columns.text_pair is None) != (trained.text_pair is None):
            counts = {False: "pairs of texts", True: "single texts"}
            raise UserError(
                f"{path}: has {counts[columns.text_pair is None]}, the run was trained on {counts[trained.text_pair is None]}; "
                "name the columns with --text-column and --text-pair-column"
            )
        return table, *self.task.read(table, columns, skip_empty=True)

    def read(self, path: str, *, text: str | None, pair: str | None, labelled: bool = False) -> data.Examples:
        """A file's complete examples, as `read_table` has them."""
        return self.read_table(path, text=text, pair=pair, labelled=labelled)[1]


@dataclass
class Predictor(TablePredictor):
    """A run's model, ready to use."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: Task
    max_length: int
    has_mixture: bool
    runs: int = 1
    """of an ensemble: number of runs whose predictions are averaged"""

    @classmethod
    def load(
        cls, run: str, base: str | None = None, device: str = "auto", *, ensembles: bool = False
    ) -> "Predictor":  # fmt: skip
        """Load a run and its base. ensembles: whether the folder may hold an ensemble of runs.

        Raises CheckpointError where the folder holds none, or one that is not finished.
        """
        torch_device, folder = device_of(device), resolve(run)
        if (folder / BASELINE).is_file():
            raise CheckpointError(
                f"{run}: a baseline, which tunes nothing; expected a run of a tuned method, such as lora"
            )
        record = read_record(folder) if (folder / RECORD).exists() else None
        members = [folder / name for name in (record.members if record else None) or ()]
        if members and not ensembles:
            raise CheckpointError(
                f"{run}: an ensemble of {len(members)} runs, and one is expected; name it, such as {members[0]}"
            )
        if record and (members or not (folder / TENSORS).exists()):
            if record.failed:
                raise CheckpointError(f"{folder}: {record.status}; train again with another --out")
            if not record.done:
                again = "repeat its `unipelt train` command to finish it"
                raise CheckpointError(f"{folder}: its run is not finished; {again}")
            if not members:
                return cls._load_full(folder, record, torch_device)
        description = describe(members[0] if members else folder)
        task_description = record.description if record and members else description.task
        if not task_description:
            raise CheckpointError(f"{run}: does not say which task it was trained for; load it with unipelt.load")
        task = task_of(task_description)
        base_name = base or description.base["name"]
        if not base_name:
            raise CheckpointError(f"{run}: does not say where its base is; name it with --model")
        model, tokenizer = task.load(base_name)
        tokenizer = run_tokenizer(members[0] if members else folder, tokenizer)
        load(model, members or folder, tokenizer=tokenizer)
        longest = most_tokens(model, description.recipe.get("max_length", task.default_max_length))
        if not members:
            merge(model, unmergeable="keep")
        return cls(model.to(torch_device).eval(), tokenizer, task, longest, True, len(members) or 1)  # type: ignore[arg-type]  # transformers types it wrongly

    def logits(self, encoded: Encoded) -> Float[Tensor, "example ..."]:
        """Logits; of an ensemble those of its mean, from one batch routed to its runs."""
        run_logits = predict(self.model, self.tokenizer, [encoded] * self.runs, task_type=type(self.task))
        return run_logits[0] if self.runs == 1 else self.task.average(run_logits)

    def gates(self, examples: data.Examples) -> dict[str, Float[Tensor, " example"]]:
        """Each gate's value for each example, averaged over tokens and over the runs of an ensemble."""
        if not any(isinstance(module, ScoredGate) for module in self.model.modules()):
            return {}
        copies = [self.encode(examples)] * self.runs
        outputs = predict_with_gates(self.model, self.tokenizer, copies, task_type=type(self.task))
        run_gates = [gates for _, gates in outputs]
        return {name: torch.stack([gates[name] for gates in run_gates]).mean(dim=0) for name in run_gates[0]}

    @classmethod
    def _load_full(cls, folder: Path, record: RunRecord, torch_device: torch.device) -> "Predictor":
        if not record.key.full:
            raise CheckpointError(f"{folder}: no {TENSORS} in it, though its run is finished; train it again")
        task = task_of(record.description)
        model, tokenizer = task.load(str(folder))
        check_tokenizer(tokenizer, (record.identity or {}).get("tokenizer", ""), folder)
        longest = most_tokens(model, (record.recipe or {})["max_length"])
        return cls(model.to(torch_device).eval(), tokenizer, task, longest, False)  # type: ignore[arg-type]  # transformers types it wrongly

    def outputs(self, examples: data.Examples) -> tuple[Tensor, Encoded]:
        encoded = self.encode(examples)
        return self.logits(encoded), encoded

    def generate(self, examples: data.Examples) -> list[str]:
        return self.task.generate(self.model, self.tokenizer, [self.encode(examples)])[0]

    def encode(self, examples: data.Examples) -> Encoded:
        """Their tokens. Raises DataError where the base has no embedding for one."""
        encoded = self.task.encode(self.tokenizer, examples, self.max_length)
        return check_tokens(encoded, self.model, self.model.config._name_or_path)

    def simplify_gates(self, examples: data.Examples, **thresholds: Any) -> GateReport:
        """What `unipelt.simplify_gates` does over these examples; with targets, by the task's own metric, or the loss for tasks of tokens.

        Raises DataError for generated text without answers: gates are measured over prompts and answers, as in training.
        """
        if self.task.generates_text and examples.targets is None:
            raise DataError(
                f"--data: no column {self.task.columns.label!r}; gates are measured with the answers; add them"
            )
        encoded, batches, order = self.encode(examples), [], []
        for (indices,) in longest_first([encoded.lengths()], self.model.device):
            batch = self.task.collate([Part(self.task, encoded, indices)], self.tokenizer, self.model.device)
            batches.append(batch.inputs | ({"labels": batch.targets[0]} if examples.targets is not None else {}))
            order += indices
        if self.task.generates_text:
            return self._simplify_by_losses(batches, **thresholds)
        targets = [] if examples.targets is None else [examples.targets[index] for index in order]

        def score(logits: Tensor, labels: Tensor) -> float:
            return self.task.score(self.task.decide(logits, encoded), targets)[self.task.metric]

        return simplify_gates(
            self.model, batches, score=(self.task.metric, score) if self.task.pooled else None, **thresholds
        )

    def _simplify_by_losses(self, batches: list[dict[str, Tensor]], **thresholds: Any) -> GateReport:
        """Simplify the gates of a model that generates text, by the loss of each answer token. labels: the answers' tokens."""
        metric = "loss" if self.task.selects_by_text else self.task.metric

        def losses(batch: ModelInputs) -> Float[Tensor, " token"]:
            logits = logits_of(self.model, {name: value for name, value in batch.items() if name != "labels"})
            return token_losses(logits, batch["labels"])[batch["labels"] != IGNORED]

        def score(losses: Tensor, labels: Tensor) -> float:
            return self.task.score([(loss, 1) for loss in losses.tolist()], [None] * len(losses))[metric]

        return simplify_gates(self.model, batches, score=(metric, score), forward=losses, **thresholds)
