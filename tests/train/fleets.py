"""Tiny fleets over tiny bases: rows of random words, and a tokenizer of which the loop needs four facts."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import tiny
import torch
from laws.lawbook import small

import unipelt
from unipelt.data import Columns
from unipelt.spec import Mixture
from unipelt.tasks.batches import Encoded
from unipelt.tasks.classification import Classification
from unipelt.tasks.regression import Regression
from unipelt.train.fleet import Fleet, Observer
from unipelt.train.frozen import StateCache, reusable_states
from unipelt.train.recipes import Recipe
from unipelt.train.records import RunConfig, RunRecord
from unipelt.train.runs import FinishedRun, Plan

CLASSES = 3
NO_DROPOUT = {
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}


@dataclass
class Words:
    """What the loop asks of a tokenizer."""

    pad_token_id: int = 0
    pad_token_type_id: int = 0
    padding_side: str = "right"


def rows(count: int, seed: int = 0, classes: int = CLASSES) -> Encoded:
    """Rows of 3 to 13 words; classes that a row's first word decides, or, for 0 classes, a number."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 14, (count,), generator=generator).tolist()
    ids = [torch.randint(tiny.SPECIAL, tiny.VOCABULARY, (n,), generator=generator).tolist() for n in lengths]
    labels = [row[0] % classes if classes else row[0] / 10 for row in ids]
    features = {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}
    return Encoded({name: [np.array(row) for row in values] for name, values in features.items()}, labels, 64)


def plan(seed: int = 0, train: int = 20, validation: int = 17, classes: int = CLASSES, **recipe: Any) -> Plan:
    kind, metric = (Classification, "accuracy") if classes else (Regression, "spearman")
    task = kind(name="words", metric=metric, columns=Columns(text="text"), labels=tuple("abcdef"[:classes]))
    recipe = {"lr": 1e-2, "epochs": 3, "batch_size": 8, "patience": 0} | recipe
    given = rows(train, seed, classes), rows(validation, seed + 100, classes)
    config = RunConfig(task="words", k=train, method="small", seed=seed, recipe={"lr": recipe["lr"]})
    record = RunRecord(config=config, metric=metric, recipe=asdict(Recipe(**recipe)))
    return Plan(
        initial_record=record, task=task, train=given[0], validation=given[1], test=given[1], recipe=Recipe(**recipe)
    )


def fleet(
    plans: list[Plan], preset: str | Mixture = "unipelt-apl", arch: str = "bert", dropout: bool = False, runs_at_once: int = 0,
    on_step: Observer = lambda trained, event: None, dtype: torch.dtype = torch.float64,
    states: StateCache | None = None, **how: Any,
) -> Fleet:  # fmt: skip
    """A fleet over the same base every time, in float64 by default; `full`: the base itself is tuned. runs_at_once: number of runs, all by
    default. on_step: called after steps and evaluations. states: where what the frozen layers give is kept; None: it is computed."""
    model = tiny.build(arch, dtype=dtype, **({} if dropout else NO_DROPOUT[arch]))
    if preset == "full":
        model.requires_grad_(True)
    else:
        seeds = [one.key.seed for one in plans][: runs_at_once or None]
        unipelt.attach(
            model, small(preset) if isinstance(preset, str) else preset, runs=len(seeds), seeds=seeds, fresh_head=True
        )

    def steps(trained: Fleet, event: str) -> None:
        if event != "prediction":
            on_step(trained, event)

    words = Words(padding_side="left" if arch == "gpt2" else "right")
    frozen = None if states is None else reusable_states(model, words, plans, states, arch)
    return Fleet(model, plans, words, on_step=steps, frozen=frozen, **how)


def parameters(trained: Fleet, run: int = 0) -> dict[str, torch.Tensor]:
    """What one of the model's runs has now."""
    if trained.attached is None:
        return {name: value.clone() for name, value in trained.model.state_dict().items()}
    return {name: value.clone() for name, value in trained.attached.state_of(run).items()}


def train(trained: Fleet) -> dict[int, FinishedRun]:
    """Every run of a fleet, trained to its end, by the place of its plan."""
    return {run.plan_index: run for run in trained.train()}
