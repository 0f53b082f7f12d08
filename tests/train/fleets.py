"""Tiny fleets over tiny bases: rows of random words, and a tokenizer of which the loop needs four facts."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import tiny
import torch
from laws.lawbook import small

import unipelt
from unipelt.data import Task
from unipelt.train.batches import Encoded
from unipelt.train.fleet import Fleet, Plan
from unipelt.train.recipes import Recipe

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
    kind, metric = ("classification", "accuracy") if classes else ("regression", "spearman")
    task = Task(name="words", kind=kind, labels=tuple("abcdef"[:classes]), metric=metric, pair=False)
    recipe = {"lr": 1e-2, "epochs": 3, "batch_size": 8, "patience": 0} | recipe
    given = rows(train, seed, classes), rows(validation, seed + 100, classes)
    return Plan(task=task, train=given[0], validation=given[1], recipe=Recipe(**recipe), seed=seed)


def fleet(
    plans: list[Plan],
    preset: str | list[str] = "unipelt-apl",
    arch: str = "bert",
    dropout: bool = False,
    width: int = 0,
    watch: Callable[[Fleet, str], None] = lambda trained, event: None,
    **how: Any,
) -> Fleet:
    """A fleet over the same base every time, in float64; `full`: the base itself is tuned; a list: the preset of each plan.
    width: runs of each preset at once, all by default. watch: of steps and evaluations."""
    model = tiny.build(arch, dtype=torch.float64, **({} if dropout else NO_DROPOUT[arch]))
    if preset == "full":
        model.requires_grad_(True)
    else:
        every = preset if isinstance(preset, list) else [preset] * len(plans)
        presets = list(dict.fromkeys(every))
        plans = [replace(one, mixture=presets.index(its)) for one, its in zip(plans, every)]
        seeds = [[one.seed for one, its in zip(plans, every) if its == name][: width or None] for name in presets]
        unipelt.attach(
            model, [small(name) for name in presets], runs=[*map(len, seeds)], seeds=[*chain(*seeds)], fresh_head=True
        )

    def watched(trained: Fleet, event: str) -> None:
        if event != "predicted":
            watch(trained, event)

    return Fleet(model, plans, Words(padding_side="left" if arch == "gpt2" else "right"), watch=watched, **how)


def parameters(trained: Fleet, run: int = 0) -> dict[str, torch.Tensor]:
    """What one of the model's runs has now."""
    if trained.tuned is None:
        return {name: value.detach().clone() for name, value in trained.model.named_parameters()}
    part, own = trained.tuned.one_run(run)
    return {name: value.detach()[own].clone() for name, value in part.named_parameters()}


class Kept(dict[int, dict[str, torch.Tensor]]):
    """The best parameters of every plan that has ended, by its place."""

    def __call__(self, trained: Fleet, plans: list[int]) -> None:
        assert trained.tuned is None or trained.tuned.runs == len(plans)
        self.update({plan: parameters(trained, run) for run, plan in enumerate(plans)})
