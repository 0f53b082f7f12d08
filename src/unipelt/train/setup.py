"""Build a fleet from run configurations: load base and task, attach the method, plan the runs."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unipelt import data, spec
from unipelt.checkpoint.bases import declared_pooling
from unipelt.checkpoint.fingerprint import tokenizer_fingerprint, weights_fingerprint
from unipelt.data.folds import inner_folds
from unipelt.errors import CheckpointError, UserError
from unipelt.inject.attach import attach
from unipelt.inject.fixed_gates import stored_parameters
from unipelt.inject.heads import find_head, output_of
from unipelt.inject.record import trainable_parameters
from unipelt.inject.shapes import most_tokens
from unipelt.tasks.base import Task
from unipelt.tasks.batches import Encoded, check_tokens
from unipelt.tasks.metrics import METRICS
from unipelt.tasks.registry import load
from unipelt.train.fleet import Fleet, Observer
from unipelt.train.forward import cast_frozen_weights, choose_attention, chosen_precision
from unipelt.train.frozen import StateCache, reusable_states
from unipelt.train.recipes import BALANCED, PROBE, RANDOM, default_recipe
from unipelt.train.records import FILES, FULL, GENERATION, SPLIT_FIELDS, RunConfig, RunRecord
from unipelt.train.runs import Plan

DATASET_FIELDS = ("task", "data_dir", *FILES, "metric")  # fields of a RunConfig that determine its data set


class DatasetCache:
    """Caches tasks, data sets, splits, encoded examples and outputs of frozen layers, which several runs share."""

    def __init__(self):
        self.loaded: dict[tuple, tuple[Task, data.Dataset]] = {}
        self.split: dict[tuple, data.Splits] = {}
        self.encoded: dict[tuple, Encoded] = {}
        self.states = StateCache()

    def _load(self, config: RunConfig) -> tuple[Task, data.Dataset]:
        key = tuple(getattr(config, name) for name in (*DATASET_FIELDS, *GENERATION))
        if key not in self.loaded:
            source, *options = key[: len(DATASET_FIELDS)]
            generation = {name: value for name in GENERATION if (value := getattr(config, name)) is not None}
            self.loaded[key] = load(source, **dict(zip(DATASET_FIELDS[1:], options)), generation=generation)
        return self.loaded[key]

    def task(self, config: RunConfig) -> Task:
        return self._load(config)[0]

    def dataset(self, config: RunConfig) -> data.Dataset:
        return self._load(config)[1]

    def splits(self, config: RunConfig) -> data.Splits:
        k = config.k if config.k == "all" else int(config.k)
        choice = k, config.seed, *(getattr(config, name) for name in SPLIT_FIELDS), config.folds
        key = (*(getattr(config, name) for name in DATASET_FIELDS), *choice)
        if key not in self.split:
            self.split[key] = data.split(self.dataset(config), *choice)  # type: ignore[arg-type]
        return self.split[key]

    def encode(
        self, task: Task, tokenizer: PreTrainedTokenizerBase, examples: data.Examples, max_length: int
    ) -> Encoded:
        """`task.encode` with a cache."""
        key = repr(task), tokenizer.name_or_path, max_length, examples.fingerprint
        if key not in self.encoded:
            self.encoded[key] = task.encode(tokenizer, examples, max_length)
        return self.encoded[key]


def build_fleet(
    configs: Sequence[RunConfig], *, runs_at_once: int, device: torch.device, cache: DatasetCache | None = None,
    folder: Path | None = None, on_step: Observer | None = None, deadline: float | None = None,
    identity: dict[str, str] | None = None, examples: data.Splits | None = None,
) -> Fleet:  # fmt: skip
    """Build a fleet of runs that differ only in task, examples, seed and recipe; their tasks are of one kind.

    runs_at_once: largest number of runs at once. examples: splits for all runs, instead of those that each seed draws. identity:
    fingerprints of base and tokenizer in earlier runs.

    Raises DataError if the examples of a run are not available, UserError if the base cannot take the method, and
    CheckpointError if base or tokenizer differ from `identity`.
    """
    cache, first = cache or DatasetCache(), configs[0]
    if first.key.full and len(configs) > 1:
        raise UserError(f"{FULL} tunes the base itself: expected one run, got {len(configs)}")
    splits, tasks = [examples or cache.splits(config) for config in configs], [cache.task(config) for config in configs]
    if len(kinds := dict.fromkeys(task.kind for task in tasks)) > 1:
        raise UserError(f"a fleet trains one kind of task: expected one, got {', '.join(kinds)}")
    outputs, seeds = max(task.outputs for task in tasks), [config.seed for config in configs[:runs_at_once]]
    loaded = load_and_attach(first, tasks[0], outputs=outputs, seeds=seeds, device=device)
    check_identity(first.model, loaded.identity, identity)
    plans = [plan_of(config, run_splits, cache, loaded, outputs) for config, run_splits in zip(configs, splits)]
    model, tokenizer = loaded.model, loaded.tokenizer
    if plans[0].recipe.gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise UserError(f"--gradient-checkpointing: {type(model).__name__} does not support it; leave it out")
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    frozen = reusable_states(model, tokenizer, plans, cache.states, loaded.identity["base"])
    choose_attention(model, plans[0].recipe.precision, max(max(plan.train.lengths()) for plan in plans))
    cast_frozen_weights(model, plans[0].recipe.precision)
    torch.manual_seed(first.seed)  # dropout
    return Fleet(model, plans, tokenizer, folder=folder, on_step=on_step, deadline=deadline, frozen=frozen)


class Loaded(NamedTuple):
    """A base with a method attached."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    parameters: dict[str, int]
    """number of trainable parameters of one run by change"""
    identity: dict[str, str]
    """fingerprints of base and tokenizer"""


def load_and_attach(
    config: RunConfig, task: Task, *, outputs: int, seeds: Sequence[int], device: torch.device
) -> Loaded:
    """Load the base with a head of `outputs` outputs and attach the method, one run per seed; for `full`, make all parameters
    trainable; for a baseline, attach nothing."""
    if not task.pooled and config.pooling not in ("auto", "model"):
        raise UserError(f"--pooling {config.pooling}: {task.kind} reads the state of every token; expected model")
    model, tokenizer = task.load(config.model, outputs=outputs, seed=config.seed)
    head = list(find_head(model)) if task.trains_head else []
    identity = {"base": weights_fingerprint(model, head), "tokenizer": tokenizer_fingerprint(tokenizer)}
    if config.key.full:
        counts = {FULL: sum(p.numel() for p in model.requires_grad_(True).parameters())}
    else:
        counts = {} if config.key.baseline else _attach(config, task, model, seeds)
    return Loaded(model.to(device), tokenizer, counts, identity)  # type: ignore[arg-type]  # transformers types it wrongly


def _attach(config: RunConfig, task: Task, model: PreTrainedModel, seeds: Sequence[int]) -> dict[str, int]:
    """Attach the method of a run; the number of its trainable parameters by change."""
    if not task.trains_head and config.head == "paper":
        raise UserError(f"--head paper: {task.kind} trains no head; leave it out")
    pooling = pooling_of(config) if task.pooled else "model"
    head = config.head if task.trains_head else "frozen"
    mixture = spec.mixture(config.method)
    attach(model, mixture, runs=len(seeds), seeds=list(seeds), head=head, pooling=pooling, fresh_head=True)
    counts = trainable_parameters(model)
    if not sum(counts.values()):
        if not task.trains_head:
            raise UserError(
                f"--method {config.method}: trains only the head, and {task.kind} has none; use lora or adapter"
            )
        raise UserError(f"--head {config.head}: {mixture.name!r} has nothing else to train; use --head train")
    return counts


def pooling_of(config: RunConfig) -> str:
    """The pooling of a run: that of its config, or for auto that of its base."""
    return declared_pooling(config.model) if config.pooling == "auto" else config.pooling


def export_note(config: RunConfig, task: Task) -> list[str]:
    """A note about the limits of exporting a run with this pooling; an empty list if there are none."""
    if config.key.full or not task.pooled or (pooling := pooling_of(config)) == "model":
        return []
    read = {"mean": "the mean of the tokens", "cls": "the first token"}[pooling]
    why = f", as the settings of {config.model} say" if config.pooling == "auto" else ""
    return [
        f"the head reads {read}{why}, which plain transformers models cannot do: `unipelt predict` and unipelt.pipeline "
        "work with this run; for `unipelt export --merged` or `--peft`, train with --pooling model"
    ]


def check_identity(base: str, identity: dict[str, str], expected: dict[str, str] | None) -> None:
    """Raise CheckpointError if the fingerprint of a base or its tokenizer differs from the expected one."""
    words = {"base": "its weights differ from those", "tokenizer": "its tokenizer differs from the one"}
    for name, value in (expected or {}).items():
        if identity.get(name) != value:
            raise CheckpointError(
                f"--model {base}: {words.get(name, name)} of the earlier runs; use the same model as before, or another --out"
            )


def plan_of(config: RunConfig, splits: data.Splits, cache: DatasetCache, loaded: Loaded, head_outputs: int) -> Plan:
    """Plan one run: encode its examples, fill in the defaults of its recipe, and begin its record. head_outputs: of
    the model's head."""
    model, tokenizer, targets = loaded.model, loaded.tokenizer, splits.train.targets or []
    task = cache.task(config).prepare(model, tokenizer)
    recipe_fields = {"max_length": task.default_max_length} | config.recipe
    recipe = default_recipe(config.method, model.config.hidden_size, len(splits.train), **recipe_fields)
    recipe = replace(recipe, precision=chosen_precision(model.device, recipe.precision))
    if recipe.label_smoothing and not task.generates_text:
        raise UserError(
            f"--label-smoothing {recipe.label_smoothing:g}: for generated text only; the task is {task.kind}, so leave it out"
        )
    training_task = task.with_class_weights(targets) if recipe.class_weights == BALANCED else task
    longest = most_tokens(model, recipe.max_length)
    encoded = {name: cache.encode(task, tokenizer, examples, longest) for name, examples in splits.parts.items()}
    for examples in encoded.values():
        check_tokens(examples, model, f"--model {config.model}")
    output = output_of(model)
    bias = None if output is None else output.bias is not None
    # parameters of the outputs that only other tasks of the fleet have
    unused = 0 if output is None else (head_outputs - task.outputs) * (output.weight.shape[-1] + bool(bias))
    parameters = {name: count - unused * (name in (FULL, "head")) for name, count in loaded.parameters.items()}
    record = start_record(config, splits, cache, task, parameters, loaded.identity)
    record.stored = parameters[FULL] if FULL in parameters else stored_parameters(model) - unused
    record.recipe, record.truncated = asdict(recipe), {name: examples.truncated for name, examples in encoded.items()}
    folds: list[int] = []
    if recipe.head_start == PROBE:
        why = "has no head" if not task.trains_head else "has no head that pools" if not task.pooled else ""
        if why or not bias:
            problem = f"{task.kind} {why}" if why else f"the head of {type(model).__name__} has no bias"
            raise UserError(f"--head-start {PROBE}: {problem}; use --head-start {RANDOM}")
        folds = inner_folds(splits.train, splits.train.targets if task.classes else None)
    return Plan(
        initial_record=record, task=training_task.fit(targets, bias=bias), recipe=recipe, train=encoded["train"], validation=encoded["validation"],
        test=encoded.get("test"), folds=folds,
    )  # fmt: skip


def start_record(
    config: RunConfig, splits: data.Splits, cache: DatasetCache, task: Task, parameters: dict[str, int],
    identity: dict[str, str] | None,
) -> RunRecord:  # fmt: skip
    """What is known of a run before it is trained."""
    majority = None
    if splits.test is not None and "accuracy" in task.metrics(task.labels):
        constant, targets = task.constant_prediction(splits.train.targets or []), splits.test.targets or []
        majority = None if constant is None else METRICS["accuracy"]([constant] * len(targets), targets)
    return RunRecord(
        config=config, description=task.describe(), metric=task.metric, labels=list(task.labels), parameters=parameters,
        examples=splits.fingerprints, complete=config.k != "all" or cache.dataset(config).complete, majority=majority, identity=identity,
    )  # fmt: skip


def device_of(name: str) -> torch.device:
    """The device of `--device`; auto: a GPU if there is one. Raises UserError if the machine lacks the device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(
            f"--device {name}: not on this machine; expected auto, cpu"
            + (" or cuda" if torch.cuda.is_available() else "")
        ) from None
    return device
