"""How a mixture is trained: never a part of the mixture. Defaults per preset, per size of the base and per number of samples.

Imports nothing heavy: the command line reads its help from here.
"""

from dataclasses import dataclass, replace
from typing import Any

from unipelt.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The recipe of one run."""

    lr: float = 5e-4
    """peak learning rate; reached after warm-up, then linear decay to 0"""
    epochs: int = 50
    """passes over the training rows, at most"""
    batch_size: int = 16
    """rows a step"""
    evaluate_every: int = 1
    """epochs between evaluations on the validation rows; the last epoch is always evaluated"""
    patience: int = 10
    """evaluations without a better validation metric before training stops; 0: never stops early"""
    warmup: float = 0.06
    """share of the steps in which the learning rate rises"""
    weight_decay: float = 0.0
    """decoupled weight decay, as AdamW's"""
    clip: float = 1.0
    """largest gradient norm of a run; 0: no clipping"""
    max_length: int = 128
    """tokens a text or pair is cut to"""

    def __post_init__(self):
        for name, least, most in (
            ("lr", 0.0, 10.0), ("epochs", 1, 100_000), ("batch_size", 1, 65_536), ("evaluate_every", 1, 100_000), ("patience", 0, 100_000),
            ("warmup", 0.0, 1.0), ("weight_decay", 0.0, 10.0), ("clip", 0.0, float("inf")), ("max_length", 2, 1_000_000),
        ):  # fmt: skip
            value = getattr(self, name)
            if not least <= value <= most or (name == "lr" and value == 0):
                bounds = f"above 0, to {most}" if name == "lr" else f"{least} to {most}"
                raise UserError(f"--{name.replace('_', '-')} {value}: expected {bounds}")


# Peak learning rates: for a base of 512 hidden units or more those of a third party's script that cites U (REFERENCE.md,
# section 2); for a smaller one what MiniLM's validation sets chose (experiments/LOG.md).
RATES: dict[str, tuple[float, float]] = {
    "full": (2e-5, 1e-4),
    "head": (1e-3, 1e-2),
    "bitfit": (1e-4, 3e-3),
    "adapter": (1e-4, 3e-3),
    "houlsby": (1e-4, 1e-3),
    "compacter": (1e-3, 3e-3),
    "parallel-adapter": (1e-4, 1e-3),
    "scaled-parallel-adapter": (1e-4, 1e-3),
    "multi-head-parallel-adapter": (2e-4, 3e-3),
    "prefix": (2e-4, 3e-3),
    "prompt": (2e-4, 1e-2),
    "lora": (5e-4, 3e-3),
    "mam": (1e-4, 1e-3),
    "unipelt": (5e-4, 1e-3),
}
SMALL = 512  # hidden units
# most samples, epochs, epochs between evaluations: U names none, these are ours; at K = 100 an evaluation on 1,000
# validation rows costs four epochs
EPOCHS = ((100, 50, 2), (500, 25, 1), (1000, 20, 1), (5000, 10, 1))
MANY = (3, 1)  # beyond


def default_recipe(method: str, hidden: int, samples: int, **given: Any) -> Recipe:
    """The recipe of a method on a base with `hidden` units and `samples` training rows; what is given takes precedence."""
    name = method.partition("(")[0].strip()
    name = "unipelt" if name.startswith("unipelt") else name
    large, small = RATES.get(name, RATES["unipelt"])
    epochs, every = next((plan for most, *plan in EPOCHS if samples <= most), MANY)
    recipe = Recipe(lr=small if hidden < SMALL else large, epochs=epochs, evaluate_every=every)
    return replace(recipe, **{key: value for key, value in given.items() if value is not None})
