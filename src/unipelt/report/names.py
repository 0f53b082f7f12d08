"""Names and order of tasks, methods and sizes in a report."""

from collections.abc import Iterable

from unipelt.errors import SpecError
from unipelt.spec import PRESETS, Location, settings
from unipelt.train.records import BASELINES, FULL

TASKS = {
    "sst2": "SST-2", "mrpc": "MRPC", "cola": "CoLA", "rte": "RTE", "qnli": "QNLI", "stsb": "STS-B", "mnli": "MNLI", "qqp": "QQP",
}  # fmt: skip
"""in the order of the paper's tables"""
METHODS = (FULL, "head", "bitfit", "prompt", "adapter", "prefix", "lora")
ALL = "all"  # the size of a whole training set
FOLD_WORDS = (
    ("On the test examples", "Out of fold"), ("on the test examples", "out of fold"), ("validation ", "out-of-fold "),
    ("test examples and training seeds", "examples and folds"),
    ("test examples", "examples"), ("seed", "fold"),
)  # fmt: skip
PARTS = {"unipelt-ap": ("adapter", "prefix"), "unipelt-apl": ("adapter", "prefix", "lora")}
"""submodules of a mixture: the best of them for each task is its upper bound in the paper's table 2"""
PAPER_METHOD = "unipelt-apl"
"""the method that the paper makes its claims for"""


def task_label(task: str) -> str:
    return TASKS.get(task, task)


def size_label(k: int | str) -> str:
    return f"K = {k}"


def listed(words: Iterable[object]) -> str:
    """`a, b and c`."""
    *most, last = map(str, words)
    return f"{', '.join(most)} and {last}" if most else last


def seeds_text(*numbers: int) -> str:
    """`1 seed`, `3 seeds`, `1 to 3 seeds`."""
    least, most = min(numbers), max(numbers)
    if least < most:
        return f"{least} to {most} seeds"
    return "1 seed" if most == 1 else f"{most} seeds"


def in_folds(text: str) -> str:
    """A sentence about seeds and validation examples, in the words of a cross-validation; it must name no option, such as `--seeds`."""
    for word, fold_word in FOLD_WORDS:
        text = text.replace(word, fold_word)
    return text


def preset_of(method: str) -> str:
    return method.partition("(")[0].strip()


def occurrences(preset: str, methods: Iterable[str]) -> list[str]:
    """The methods of a preset: the preset itself, else one method for each set of options that occurs."""
    variants = {method for method in methods if preset_of(method) == preset}
    return [preset] if preset in variants else sorted(variants, key=method_order)


def task_order(task: str) -> tuple:
    return (list(TASKS).index(task), "") if task in TASKS else (len(TASKS), task)


def size_order(k: int | str) -> tuple:
    return (0, k, "") if isinstance(k, int) else (1, 0, k)


def method_order(method: str) -> tuple:
    """Order of methods: the paper's baselines, the other presets, the mixtures; a preset is followed by its variants, by options."""
    name, values = preset_of(method), options_of(method).values()
    others = (preset for preset in PRESETS if preset not in METHODS and preset not in PARTS)
    presets = [*BASELINES, *METHODS, *others, *PARTS]
    order = presets.index(name) if name in presets else len(presets)
    options = [(0, value, "") if isinstance(value, int | float) else (1, 0, repr(value)) for value in values]
    return order, name, "(" in method, options, method


def options_of(method: str) -> dict[str, object]:
    """Every option of a preset's text, defaults included; nothing for what is not a preset, such as full."""
    try:
        return settings(method)
    except SpecError:
        return {}


def gate_labels(path: str) -> tuple[str, str]:
    """Layer and change of a gate's location."""
    location = Location.parse(path)
    return f"{location.stack} {location.layer}", location.change + (" (cross)" if location.is_cross else "")


def counts_text(trained: int | None, stored: int | None) -> str:
    """`2,874,688 (380,088 stored)`, or only the first number if both are equal or one is not known."""
    if not trained:
        return ""
    return f"{trained:,}" if stored in (None, trained) else f"{trained:,} ({stored:,} stored)"
