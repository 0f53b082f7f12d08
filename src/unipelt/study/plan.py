"""The grid of runs of a study, and how runs are grouped into fleets. Imports no torch."""

import hashlib
import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from unipelt import spec
from unipelt.checkpoint.json_types import fits, in_words
from unipelt.data import GLUE
from unipelt.data.load import BUILT_IN, SUMMARIES
from unipelt.errors import UserError, did_you_mean
from unipelt.train.recipes import Recipe, accepted_fields, check_rates, default_recipe
from unipelt.train.records import (
    BASELINES,
    FILES,
    FLAGS,
    FULL,
    GENERATION,
    RUNS_AT_ONCE,
    SPLIT_FIELDS,
    RunConfig,
    RunKey,
    option_of,
)

METHODS = (
    FULL, "bitfit", "head", "adapter", "prefix", "prefix(length=50)", "lora",
    "unipelt-ap", "unipelt-apl", "unipelt-ap-nogate", "unipelt-apl-nogate", "mam",
)  # fmt: skip
SIZES: tuple[int | str, ...] = (100, 500, 1000, "all")
TYPICAL_TOKENS = {"cola": 11, "sst2": 13, "stsb": 30, "qqp": 30, "mnli": 39, "qnli": 50, "mrpc": 53, "rte": 70}
"""per example, about"""
COLUMNS = (*FILES, *SPLIT_FIELDS, "metric", *GENERATION)
"""fields of a RunConfig: how files are read and split, and how texts are generated"""
NAMED = (*GLUE, BUILT_IN, SUMMARIES)  # tasks that know their own columns
MOST_SEEDS = 10_000
MOST_RATES = 5
MOST_FOLDS = 20
RATE_FACTOR = 3.0  # ratio of consecutive learning rates of a method
FLEET_FACTOR = 4  # a fleet has 4 times as many runs as train at once: queued runs replace those that end early


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Every combination of these is a run. The defaults are UniPELT's protocol (Mao et al. 2022, §4.1)."""

    tasks: Sequence[str] = tuple(GLUE)
    """GLUE tasks, built-in tasks (docstrings, docstring-summaries), files, or data sets on the Hub (owner/name)"""
    k: Sequence[int | str] = SIZES
    """numbers of training examples; all: every example that is not held out for validation or test"""
    methods: Sequence[str] = METHODS
    """methods with their options, such as lora(r=16); full: full fine-tuning; setfit: SetFit on the same base"""
    seeds: int = 5
    """number of seeds: 0, 1, …; each draws its own training examples"""
    lr: Sequence[float] = ()
    """learning rates, the same for every method (default: each method has its own)"""
    rates: int = 1
    """number of learning rates to try per method where --lr is not given: its default, a third of it, a ninth of it, …"""

    def __post_init__(self):
        for name in ("tasks", "k", "methods"):
            if not getattr(self, name):
                raise UserError(f"{option_of(name)}: nothing given; expected at least one value")
        if not 1 <= self.seeds <= MOST_SEEDS:
            raise UserError(f"--seeds {self.seeds}: expected 1 to {MOST_SEEDS}")
        if not 1 <= self.rates <= MOST_RATES:
            raise UserError(f"--num-rates {self.rates}: expected 1 to {MOST_RATES}")
        if self.lr and self.rates > 1:
            raise UserError(f"--num-rates {self.rates}: cannot be combined with --lr; give one of them")
        for method in map(canonical_method, self.methods):
            if method not in (FULL, *BASELINES):
                spec.mixture(method)
        for task in self.tasks:
            if task not in NAMED and not Path(task).exists() and "/" not in task:
                raise UserError(f"{task!r} is not a task or a file; {did_you_mean(task, NAMED)}")
        for k in self.k:
            if k != "all" and (isinstance(k, str) or k < 1):
                raise UserError(f"{FLAGS['k']} {k}: expected a whole number from 1, or all")
        for rate in self.lr:
            Recipe(lr=rate)

    def keys(self, hidden: int) -> list[RunKey]:
        """The runs, task by task within a size, so that first results come early. hidden: hidden size of the base."""
        tasks, methods = [*map(normalise_path, self.tasks)], [*map(canonical_method, self.methods)]
        keys = (
            RunKey(task=task, k=k, method=method, seed=seed, lr=rate)
            for k in self.k
            for method in methods
            for task in tasks
            for seed in range(self.seeds)
            for rate in learning_rates(method, hidden, self.lr, self.rates)
        )
        return list(dict.fromkeys(keys))


def canonical_method(method: str) -> str:
    """The canonical text of a method, so that equal runs have equal keys."""
    return method.strip() if method.strip() in (FULL, *BASELINES) else spec.canonical(method)


def normalise_path(task: str) -> str:
    """The canonical name of a task; a file: its path relative to the working directory if it is inside it, else absolute."""
    path, here = Path(task), Path.cwd()
    if task in NAMED or not path.exists():
        return task
    path = path.parent.resolve() / path.name
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def learning_rates(method: str, hidden: int, given_rates: Sequence[float], rates: int) -> Sequence[float | None]:
    """The learning rates of a method: `given_rates`, else its own and `rates` − 1 lower ones; a baseline has none. hidden: the
    base's hidden size."""
    if method in BASELINES:
        return [None]
    default = default_recipe(method, hidden, 1).lr
    return given_rates or [float(f"{default / RATE_FACTOR**step:.2g}") for step in range(rates)]


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What all runs of a study share."""

    # as in a RunConfig
    model: str = "minilm"
    pooling: str = "auto"
    head: str = "train"
    data_dir: str | None = None
    runs_at_once: int = 0
    """number of runs that train at once; 0: 4 on a CPU, on a GPU as many as fit into its memory, up to 64"""
    folds: int = 0
    """folds of a cross-validation, in which every example is tested once; 0: a held-out test set"""
    recipe: dict[str, Any] = field(default_factory=dict)
    """fields of the recipe that are given; each method's defaults fill the rest"""
    columns: dict[str, Any] = field(default_factory=dict)
    """fields of COLUMNS that are given, for every file"""

    def __post_init__(self):
        if self.runs_at_once < 0:
            raise UserError(f"--runs-at-once {self.runs_at_once}: expected at least 0")
        if self.folds != 0 and not 2 <= self.folds <= MOST_FOLDS:
            raise UserError(f"--folds {self.folds}: expected 2 to {MOST_FOLDS}, or 0 for a held-out test set")
        Recipe(**self.recipe)
        RunConfig(model=self.model, task=BUILT_IN, pooling=self.pooling, head=self.head, **self.columns)

    @property
    def options(self) -> dict[str, Any]:
        """The options that all runs of a study share, on which its results depend."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "data_dir"}

    def most_at_once(self, device: str) -> int:
        """As given, else by the kind of device; a GPU's fleet has fewer where no more fit."""
        return self.runs_at_once or RUNS_AT_ONCE.get(device, RUNS_AT_ONCE["cuda"])

    def config(self, key: RunKey) -> RunConfig:
        """The configuration of one run; options of files and of GLUE go to the tasks that take them."""
        options = {"data_dir": self.data_dir, **self.columns}
        accepted = {name: value for name, value in options.items() if _takes(key.task, name)}
        return RunConfig(
            model=self.model, task=key.task, k=key.k, method=key.method, seed=key.seed, pooling=self.pooling, head=self.head,
            folds=self.folds,
            recipe=accepted_fields(key.method, {**self.recipe, "lr": key.lr}), **accepted,
        )  # fmt: skip


def _takes(task: str, option: str) -> bool:
    """Whether a task takes an option: GLUE has a folder, files have columns, every task has splits."""
    if option in GENERATION:
        return task not in (*GLUE, BUILT_IN)
    return option in (*SPLIT_FIELDS, "metric") or (task in GLUE if option == "data_dir" else task not in NAMED)


def group_into_fleets(
    keys: Iterable[RunKey], runs_at_once: int, mixed: bool, kind: Callable[[RunKey], str] = lambda key: ""
) -> dict[str, list[RunKey]]:
    """Group runs into fleets of one method, size and kind of task; each run of full fine-tuning is a fleet of one.

    runs_at_once: runs that train at once. mixed: put tasks of similar length into one fleet; for GPUs only, because on a CPU the
    padding would cost more.
    """
    groups: dict[tuple, list[RunKey]] = {}
    keys = list(keys)
    for key in sorted(keys, key=lambda key: TYPICAL_TOKENS.get(key.task, 0)) if mixed else keys:
        separate: tuple = (key.task, key.seed, key.lr) if key.full else () if mixed else (key.task,)
        groups.setdefault((key.k, key.method, kind(key), *separate), []).append(key)
    fleets = {}
    for group in groups.values():
        for start in range(0, len(group), runs_at_once * FLEET_FACTOR):
            chosen = group[start : start + runs_at_once * FLEET_FACTOR]
            fleets[fleet_name(chosen)] = chosen
    return fleets


def fleet_name(keys: Sequence[RunKey]) -> str:
    """A folder name for the runs of a fleet, such as `lora-100-seed0-3f2a91`; it ends with a digest of all runs."""
    first, digest = keys[0], hashlib.sha256("\n".join(key.id for key in keys).encode()).hexdigest()[:8]
    seeds = {key.seed for key in keys}
    seed = f"seed{first.seed}" if len(seeds) == 1 else f"{len(seeds)}-seeds"
    return f"{file_name(first.method)}-{first.k}-{seed}-{digest}"


def file_name(text: str) -> str:
    """A text as part of a file name: `lora(r=2)` becomes `lora-r=2`."""
    return re.sub(r"[^\w.=]+", "-", text).strip("-.")[:80]


def parse_options(options: dict[str, Any]) -> tuple[Grid, StudyConfig]:
    """Split options by name into a Grid and a StudyConfig; unknown ones are ignored.

    Raises UserError for an option that no task takes.
    """
    names_of = (get_type_hints(Grid), get_type_hints(StudyConfig), get_type_hints(Recipe).keys() - {"lr"}, COLUMNS)
    grid, config, recipe, columns = ({name: options[name] for name in names if name in options} for names in names_of)
    plan = Grid(**grid)
    check_rates([*plan.methods], recipe)
    for name in (name for name in options if name in ("data_dir", *COLUMNS)):
        if not any(_takes(task, name) for task in plan.tasks):
            task_kind = "GLUE tasks" if name == "data_dir" else "files"
            raise UserError(
                f"{option_of(name)} is for {task_kind} only, and --data {' '.join(plan.tasks)} names none; remove it"
            )
    return plan, StudyConfig(**config, recipe=recipe, columns=columns)


def read_plan(path: str) -> dict[str, Any]:
    """Read the options of a TOML file; they have the names of the command line, with underscores for dashes."""
    try:
        options = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--plan {path}: {error.strerror}; expected a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"--plan {path}: not TOML ({error})") from None
    grids, settings, recipes = (get_type_hints(kind) for kind in (Grid, StudyConfig, Recipe))
    types = (
        {name: kind for name, kind in get_type_hints(RunConfig).items() if name in COLUMNS} | recipes | settings | grids
    )
    del types["recipe"], types["columns"]
    field_of_option = {option_of(name)[2:].replace("-", "_"): name for name in types}
    for name, value in options.items():
        if name not in field_of_option:
            raise UserError(f"--plan {path}: {name!r}: {did_you_mean(name, field_of_option)}")
        if not fits(value, types[field_of_option[name]]):
            raise UserError(
                f"--plan {path}: {name} = {repr(value)[:80]}: expected {in_words(types[field_of_option[name]])}"
            )
    return {field_of_option[name]: value for name, value in options.items()}


def sweep(preset: str, option: str, values: Sequence[str]) -> list[str]:
    """The methods that set one option of a preset to each value: `adapter(bottleneck=8)`, …"""
    methods = [f"{preset.rstrip(')')}{', ' if '(' in preset else '('}{option}={value})" for value in values]
    for method in methods:
        spec.mixture(method)
    return methods
