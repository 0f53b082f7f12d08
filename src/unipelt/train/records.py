"""A run: what is asked of it, and its record from plan to result. Imports neither torch nor transformers."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from unipelt import spec
from unipelt.errors import UserError, did_you_mean
from unipelt.train.recipes import BASELINES as BASELINES
from unipelt.train.recipes import SETFIT as SETFIT
from unipelt.train.recipes import check_rates

FORMAT = 4  # of a record's file
FULL = "full"
RUNS_AT_ONCE = {"cpu": 4, "cuda": 64}
"""at most, by kind of device: on a CPU 64 examples a step; more are no faster there, and the longest of more batches is longer"""
PLANNED, RUNNING, FINISHED, STOPPED, FAILED = "planned", "running", "finished", "stopped early", "failed: "
DONE = (FINISHED, STOPPED)  # statuses of a run that has a result
CHOICES: dict[str, tuple[str, ...]] = {
    "pooling": ("auto", "model", "cls", "mean"),
    "head": ("train", "frozen", "paper"),
    "excess_length": ("trim-prompt", "drop", "error"),
}
"""the values of fields with few, by field"""
FLAGS = {  # of fields whose option has another name
    "task": "--data", "tasks": "--data", "k": "--train-rows",
    "rates": "--num-rates",
}  # fmt: skip
PATHS = ("model", "task", "data_dir", "validation", "test")  # fields that may name a file or folder
FILES = (  # fields that say how files are read
    "text_column", "text_pair_column", "label_column", "group_column", "kind", "label_separator", "validation", "test",
    "encoding", "skip_empty",
)  # fmt: skip
GENERATION = ("max_target_length", "excess_length", "max_new_tokens", "num_beams", "no_repeat_ngram_size")
"""fields of generated text"""
SPLIT_FIELDS = ("validation_rows", "stratify", "test_rows")
"""fields that say how examples are drawn, beside k and the seed"""
SEEDS = 2**32  # one more than the largest; an epoch's seed is a million times as large, and must fit into 64 bits


def option_of(field: str) -> str:
    """The command line's option of a field."""
    return FLAGS.get(field, "--" + field.replace("_", "-"))


@dataclass(frozen=True, kw_only=True)
class RunKey:
    """Identifies a run within one study."""

    task: str
    """a GLUE task, docstrings, a file, or a data set of the hub"""
    k: int | str
    """training examples, or all"""
    method: str
    """a method with its options, or full"""
    seed: int
    lr: float | None
    """peak learning rate; None: the method's default"""

    @property
    def full(self) -> bool:
        """Whether the base itself is tuned, so that a run's folder is a plain transformers model."""
        return self.method.strip() == FULL

    @property
    def baseline(self) -> bool:
        """Whether the method is one of BASELINES."""
        return self.method in BASELINES

    @property
    def id(self) -> str:
        """`task/k/method/seed/lr`, the primary key of a study's store."""
        rate = f"{self.lr:g}" if self.lr is not None else "default"
        short = self.lr is None or float(rate) == self.lr
        return f"{self.task}/{self.k}/{self.method}/{self.seed}/{rate if short else self.lr}"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All options of one run: enough to repeat it."""

    model: str = "minilm"
    """base model: minilm, smollm2, a folder, or a name on the Hub"""
    task: str
    """GLUE task (cola, sst2, …), built-in task (docstrings, docstring-summaries), data set on the Hub (owner/name or
    owner/name/subset; its test split, else its validation split, is the test set), or file: CSV, TSV, JSON, JSONL, Parquet, Excel, CoNLL"""
    k: int | str = "all"
    """number of training examples, drawn by the seed; all: every example that is not held out"""
    method: str = spec.DEFAULT
    """method with its options, such as lora(r=16); full: full fine-tuning"""
    seed: int = 0
    """random seed of the choice of examples, their order, the initial values and dropout"""
    pooling: str = "auto"
    """state that the head reads: model (as the model itself does), cls (first token) or mean; auto: the pooling that a
    sentence-transformers base declares (mean or cls), else model"""
    head: str = "train"
    """whether the head trains: train (always), frozen (never), or paper (as in UniPELT's code: the head trains with
    adapters, and with the method head; with bitfit only its bias)"""
    data_dir: str | None = None
    """folder with GLUE as Parquet files (default: downloaded from the Hub)"""
    text_column: str | None = None
    """column of the text, of the first text of a pair, or of the words (default: detected from the columns)"""
    text_pair_column: str | None = None
    """column of the second text of a pair (default: detected from the columns)"""
    label_column: str | None = None
    """column of the label, or of the words' tags (default: detected from the columns)"""
    group_column: str | None = None
    """column that groups examples, such as author: all examples of a group stay in one split; an example with an empty cell is
    a group of its own"""
    kind: str | None = None
    """classification, multi-label, regression, token-classification or generation (default: detected from the columns)"""
    label_separator: str | None = None
    """what separates several labels in one cell, such as '|' (default: a cell is one label)"""
    metric: str | None = None
    """metric that selects the checkpoint and is reported first, such as macro_f1 (default: accuracy, spearman,
    span_f1, tag_accuracy or loss, by the kind of task; a GLUE task's own)"""
    encoding: str | None = None
    """encoding of text files, such as cp1252 (default: utf-8, or what the file's byte order mark says)"""
    skip_empty: bool = False
    """leave out examples with an empty text or label (without it, such a file is an error)"""
    validation: str | None = None
    """file with the validation examples, which select the checkpoint (default: with --train-rows, examples that neither train nor
    test; without it, a tenth of those that do not test)"""
    test: str | None = None
    """file with the test examples (default: the data set's own test set, GLUE's validation set, or 20 % of the examples, at
    most 1,000; `compare` cross-validates small data instead)"""
    validation_rows: int = 1000
    """maximum number of validation examples, 10 or more; a --validation file is used whole"""
    test_rows: int | None = None
    """maximum number of test examples, the same for every seed (default: all); fewer cost less time where texts are generated"""
    stratify: bool = False
    """give each class its share of every split; groups are balanced where possible (the papers do not stratify)"""
    folds: int = 0
    """folds of a cross-validation: fold seed % folds is the test set; 0: a held-out test set; 1: no test set, for the model that
    `compare` saves at the end"""
    max_target_length: int | None = None
    """maximum number of tokens of an answer; for longer ones see --excess-length (default: no limit)"""
    excess_length: str | None = None
    """what to do with an example that is too long: trim-prompt, drop or error (default: trim-prompt)"""
    max_new_tokens: int | None = None
    """maximum number of generated tokens (default: --max-target-length, else 128)"""
    num_beams: int | None = None
    """number of beams in beam search; 1: greedy decoding (default: 1)"""
    no_repeat_ngram_size: int | None = None
    """n-grams of this size do not occur twice in a generated text (default: no limit)"""
    recipe: dict[str, Any] = field(default_factory=dict)
    """fields of the recipe that are given; the method's defaults fill the rest"""

    def __post_init__(self):
        for name, known in CHOICES.items():
            if (value := getattr(self, name)) is not None and value not in known:
                raise UserError(f"{option_of(name)} {value}: {did_you_mean(str(value), known)}")
        if not 0 <= self.seed < SEEDS:
            raise UserError(f"--seed {self.seed}: expected 0 to {SEEDS - 1}")
        if any(name.startswith("lr_") for name in self.recipe):
            check_rates([self.method], self.recipe)

    @property
    def key(self) -> RunKey:
        return RunKey(task=self.task, k=self.k, method=self.method, seed=self.seed, lr=self.recipe.get("lr"))


@dataclass(kw_only=True)
class RunRecord:
    """One run from its plan to its result: the content of run.json, an entry of a training's state, and one row of a study's store."""

    config: RunConfig | None = None
    """None for what a study's store holds, in whose options and columns it is"""
    description: dict[str, Any] = field(default_factory=dict)
    """the task: kind, name, metric, labels, columns"""
    status: str = RUNNING
    """planned (in a study's store only), running, also where it waits for others, finished, stopped early, or `failed: ` and the reason"""
    metric: str = ""
    """name of the task's metric, of which `validation` and `test` are values"""
    validation: float | None = None
    """best validation metric so far; it alone selects the epoch and the learning rate"""
    test: float | None = None
    """test metric of the parameters with the best validation metric"""
    validation_metrics: dict[str, float] | None = None
    """epoch and metrics of the best evaluation so far"""
    test_metrics: dict[str, float] | None = None
    majority: float | None = None
    """test accuracy of always predicting the most frequent class of the training examples; None for a task without accuracy"""
    members: list[str] | None = None
    """of an ensemble: the folders of the runs whose probabilities are averaged"""
    curve: list[dict[str, float]] = field(default_factory=list)
    """one entry per evaluation: epoch, step, loss, metrics"""
    losses: float = 0.0
    """sum of the training losses of the steps since the last evaluation"""
    gates: dict[str, dict[str, float]] | None = None
    """by location `stack.layer.change.site`: mean and standard deviation of the gate over the test examples"""
    parameters: dict[str, int] | None = None
    """trainable parameters by change; `head` for the head"""
    stored: int | None = None
    """number of parameters in the checkpoint: the trained ones, but a prefix without its MLP"""
    examples: dict[str, Any] | None = None
    """number and fingerprint of the examples of train, validation and test"""
    truncated: dict[str, int] | None = None
    """examples of train, validation and test that lost tokens to the recipe's max_length"""
    labels: list[str] | None = None
    """class names; empty for a task without classes"""
    predictions: list[Any] | None = None
    """what was predicted for each test example, in order: a class index, a number, a list"""
    logits: list[list[float]] | None = None
    """of each test example, in order, to four digits: a number per class; None for tasks without classes, and for many examples"""
    temperature: float | None = None
    """what the best parameters' logits are divided by for probabilities, fitted on the validation examples; None for tasks without"""
    texts: list[str] | None = None
    """what was written for each test example, in order, where the task is generation"""
    targets: list[Any] | None = None
    """what is right for each test example, in order"""
    recipe: dict[str, Any] | None = None
    complete: bool = True
    """False where the training set is a subset of the published one, so that k = all is not the paper's"""
    steps: int = 0
    """steps taken so far"""
    seconds: float = 0.0
    """this run's share of its fleet's time, evaluation included"""
    predicting: float | None = None
    """seconds that the prediction of the test examples took, this run's share"""
    runs_at_once: int | None = None
    """number of runs that were trained at once"""
    device: str | None = None
    versions: dict[str, str] | None = None
    identity: dict[str, str] | None = None
    """fingerprints of the base's weights and of its tokenizer"""
    format: int = FORMAT

    @property
    def key(self) -> RunKey:
        assert self.config is not None
        return self.config.key

    @property
    def ended(self) -> bool:
        return self.status != RUNNING

    @property
    def done(self) -> bool:
        """Whether there is a result."""
        return self.status in DONE

    @property
    def results(self) -> dict[str, float]:
        """The metric on validation and test examples, where there are any."""
        each = {f"validation {self.metric}": self.validation, f"test {self.metric}": self.test}
        return {name: value for name, value in each.items() if value is not None}

    @property
    def failed(self) -> str:
        """Why the run failed; empty where it did not."""
        return next(failures([self.status]), "")


def failures(statuses: Iterable[str]) -> Iterator[str]:
    """Why runs failed, by their statuses; those that did not fail are left out."""
    return (status.removeprefix(FAILED) for status in statuses if status.startswith(FAILED))
