"""The exporter of a merged base, as a plain Hugging Face checkpoint."""

import os
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unipelt.checkpoint.bases import quiet
from unipelt.errors import CheckpointError
from unipelt.inject.merge import merge


def export_merged(
    model: PreTrainedModel,
    folder: str | os.PathLike,
    *,
    run: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Path:
    """Write what `merge` gives as a plain Hugging Face checkpoint; the model itself stays attached.

    It works on a copy of the model. Where memory is short, merge the model itself and call its save_pretrained. Raises what
    `merge` raises, and CheckpointError where there is no space: what was in the folder before is then as it was.
    """
    folder = Path(folder)
    plain: Any = merge(deepcopy(model), run=run)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as new, quiet():
            for part in (plain, tokenizer):
                if part is not None:
                    part.save_pretrained(new)
            for path in sorted(Path(new).iterdir()):
                os.replace(path, folder / path.name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot write ({getattr(error, 'strerror', None) or error})") from None
    return folder
