"""How a mixture is trained, which is not part of the mixture. Defaults by preset, size of the base and number of examples.

Imports nothing heavy: the command line reads its help from here.
"""

from dataclasses import dataclass, replace
from typing import Any

from unipelt import spec
from unipelt.errors import UserError

KINDS = {
    "prefix": "prefix", "prompt": "prompt", "bottleneck": "adapter", "kronecker": "adapter", "low_rank": "lora", "dora": "lora", "scaling": "ia3",
    "bias": "bias", "norm": "norm",
}  # fmt: skip
"""by form: what its learning rate is called, as in --lr-lora"""
LORA, LORA_B, UP = "lora", "lora_b", ".up.weight"  # B of LoRA; Hayou et al. 2024, arXiv:2402.12354
SETFIT = "setfit"  # fitted only where it is named: it takes minutes, and needs another package
BASELINES = ("constant", "tfidf", "probe", SETFIT, "zero-shot", "nearest")
"""methods that attach nothing: train/baselines.py"""
GATE, HEAD = "gate", "head"  # further kinds of parameters with a learning rate of their own
EQUAL, BALANCED = "none", "balanced"  # class weights
RANDOM, PROBE = "random", "probe"  # how a head starts
CHOICES = {"class_weights": (BALANCED, EQUAL), "head_start": (PROBE, RANDOM), "precision": ("auto", "fp32", "bf16")}
"""the values of fields with few, by field"""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one run is trained."""

    lr: float = 5e-4
    """peak learning rate; reached after warm-up, then linear decay to 0"""
    epochs: int = 50
    """maximum number of passes over the training examples"""
    batch_size: int = 16
    """training examples per forward, and so per step unless gradients are accumulated"""
    batch_tokens: int = 0
    """maximum number of tokens per forward, padding included, instead of --batch-size; a longer example is a batch of its own;
    0: no such limit"""
    gradient_accumulation: int = 1
    """forwards per step; the loss is the mean over all their examples, or answer tokens"""
    label_smoothing: float = 0.0
    """label smoothing of the training loss of generation: the part of the probability that is spread over the vocabulary"""
    gradient_checkpointing: bool = False
    """compute activations again for the gradients instead of keeping them: less memory, about a third more time"""
    class_weights: str = "none"
    """balanced: every class has the same total weight in the training loss; none: every example has the same weight"""
    head_start: str = "random"
    """probe: the head starts as logistic or ridge regression of what it reads, fitted to the training examples (Kumar et al.
    2022); random: as transformers initialises it"""
    evaluate_every: int = 1
    """epochs between evaluations on the validation examples; the last epoch is always evaluated"""
    patience: int = 10
    """evaluations without a better validation metric before training stops; 0: never stops early"""
    warmup: float = 0.06
    """fraction of the steps in which the learning rate rises from 0"""
    weight_decay: float = 0.0
    """decoupled weight decay, as AdamW's"""
    clip: float = 1.0
    """largest gradient norm of a run; 0: no clipping"""
    precision: str = "auto"
    """fp32, or bf16 for the base's matrix products; auto: bf16 where the GPU or the CPU has it"""
    max_length: int = 128
    """maximum number of tokens per example; longer texts are truncated (generation: 512 by default, see --excess-length)"""
    lr_prefix: float | None = None
    """peak learning rate of prefixes (default: --lr)"""
    lr_prompt: float | None = None
    """peak learning rate of soft prompts (default: --lr)"""
    lr_adapter: float | None = None
    """peak learning rate of adapters (default: --lr)"""
    lr_lora: float | None = None
    """peak learning rate of LoRA and DoRA (default: --lr)"""
    lr_lora_b: float | None = None
    """peak learning rate of B, the second matrix of LoRA and DoRA; LoRA+ takes 16 times --lr-lora (default: --lr-lora)"""
    lr_ia3: float | None = None
    """peak learning rate of (IA)³'s scaling vectors (default: --lr)"""
    lr_bias: float | None = None
    """peak learning rate of biases (default: --lr)"""
    lr_norm: float | None = None
    """peak learning rate of LayerNorms (default: --lr)"""
    lr_gate: float | None = None
    """peak learning rate of gates (default: --lr)"""
    lr_head: float | None = None
    """peak learning rate of the head (default: --lr)"""

    def __post_init__(self):
        for name, least, most in (
            ("epochs", 1, 100_000), ("batch_size", 1, 65_536), ("batch_tokens", 0, 10**9),
            ("gradient_accumulation", 1, 65_536), ("label_smoothing", 0.0, 0.99), ("evaluate_every", 1, 100_000), ("patience", 0, 100_000),
            ("warmup", 0.0, 1.0), ("weight_decay", 0.0, 10.0), ("clip", 0.0, float("inf")), ("max_length", 2, 1_000_000),
        ):  # fmt: skip
            if not least <= getattr(self, name) <= most:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected {least} to {most}")
        for name, rate in {"lr": self.lr, **{f"lr_{kind}": rate for kind, rate in self.rates.items()}}.items():
            if not 0 < rate <= 10:
                raise UserError(f"--{name.replace('_', '-')} {rate}: expected a number above 0, at most 10")
        for name, known in CHOICES.items():
            if (value := getattr(self, name)) not in known:
                raise UserError(f"--{name.replace('_', '-')} {value}: expected {', '.join(known[:-1])} or {known[-1]}")

    @property
    def rates(self) -> dict[str, float]:
        """The learning rates that are not `lr`, by kind of parameter."""
        kinds = dict.fromkeys((*KINDS.values(), LORA_B, GATE, HEAD))
        rates = {kind: getattr(self, f"lr_{kind}") for kind in kinds}
        rates[LORA_B] = rates[LORA] if rates[LORA_B] is None else rates[LORA_B]
        return {kind: rate for kind, rate in rates.items() if rate is not None}


def kinds_of(method: str) -> list[str]:
    """The kinds of parameters that a method has, each with a learning rate of its own; full fine-tuning has one rate, a
    baseline none."""
    if method.strip() in ("full", *BASELINES):
        return []
    changes = spec.mixture(method).changes
    gated = any(isinstance(change.weight, spec.Gate) for change in changes)
    kinds = [*dict.fromkeys(KINDS[change.form.name] for change in changes)]
    return [*kinds, *([LORA_B] if LORA in kinds else []), *([GATE] if gated else []), HEAD]


def kind_of(mixture: spec.Mixture, location: spec.Location) -> str:
    """The kind of a parameter of an attached mixture."""
    change = dict(mixture.named()).get(location.change)
    if change is None:  # the head's, or of gates that a group shares
        return HEAD if location.change == HEAD else GATE
    gated = isinstance(change.weight, spec.Gate) and "gate" in location.part.split(".")
    kind = GATE if gated else KINDS[change.form.name]
    return LORA_B if kind == LORA and location.part.endswith(UP) else kind


def accepted_fields(method: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a recipe that a method accepts: without the learning rates of kinds that it lacks."""
    accepted = {f"lr_{kind}" for kind in kinds_of(method)}
    return {name: value for name, value in fields.items() if not name.startswith("lr_") or name in accepted}


def check_rates(methods: list[str], fields: dict[str, Any]) -> None:
    """Raises UserError for a learning rate of a kind of parameters that none of the methods has."""
    kinds = list(dict.fromkeys(kind for method in methods for kind in kinds_of(method)))
    for name in fields:
        if name.startswith("lr_") and fields[name] is not None and name.removeprefix("lr_") not in kinds:
            flags = ", ".join(f"--lr-{kind.replace('_', '-')}" for kind in kinds)
            has = f"takes {flags} or --lr" if flags else "has one rate, --lr"
            raise UserError(f"--{name.replace('_', '-')}: {', '.join(methods)[:200]} {has}")


# Peak learning rates: for a base of 512 hidden units or more those of a third party's script that cites UniPELT;
# for a smaller one what MiniLM's validation sets chose (experiments/LOG.md): mostly one seed of one task, so that a study
# whose differences matter should try a second rate.
RATES: dict[str, tuple[float, float]] = {
    "full": (2e-5, 1e-4),
    "head": (1e-3, 1e-2),
    "bitfit": (1e-4, 3e-3),
    "adapter": (1e-4, 1e-3),
    "houlsby": (1e-4, 1e-3),
    "compacter": (1e-3, 3e-3),
    "parallel-adapter": (1e-4, 1e-3),
    "scaled-parallel-adapter": (1e-4, 1e-3),
    "multi-head-parallel-adapter": (2e-4, 3e-3),
    "prefix": (2e-4, 3e-3),
    "prefix-first-layer": (2e-4, 1e-2),
    "prompt": (1e-2, 1e-2),  # not measured here; Lester et al. train prompts at far higher rates than weights
    "lora": (5e-4, 3e-3),
    "mam": (1e-4, 1e-3),
    "unipelt": (5e-4, 1e-3),
}
SMALL = 512  # hidden units
# most examples, epochs, epochs between evaluations, evaluations without a better metric before training stops: UniPELT names
# none, these are ours; at K = 100 an evaluation on 1,000 validation examples costs four epochs
EPOCHS = ((100, 50, 4, 5), (500, 25, 2, 5), (1000, 20, 2, 5), (5000, 10, 1, 10))
LARGE = (3, 1, 10)  # with more examples


def default_recipe(method: str, hidden_size: int, examples: int, **overrides: Any) -> Recipe:
    """The recipe of a method on a base with `hidden_size` units and `examples` training examples; overrides come first."""
    name = method.partition("(")[0].strip()
    name = "unipelt" if name.startswith("unipelt") else name
    large, small = RATES.get(name, RATES["unipelt"])
    epochs, every, patience = next((settings for limit, *settings in EPOCHS if examples <= limit), LARGE)
    recipe = Recipe(lr=small if hidden_size < SMALL else large, epochs=epochs, evaluate_every=every, patience=patience)
    return replace(recipe, **{key: value for key, value in overrides.items() if value is not None})
