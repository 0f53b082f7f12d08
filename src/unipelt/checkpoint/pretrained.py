"""What `save_pretrained`, a Trainer and `push_to_hub` write of an attached model: a folder that `unipelt.load` reads.

A Trainer resumes from it, but it does not hold the base: transformers must not read it as a whole model with random weights.
Its config names a sentence in place of a weights file, so `from_pretrained` refuses the folder and shows that sentence. With a
config given by the caller, `from_pretrained` raises KeyError, because the index has the sentence where `metadata` should be; a
Trainer does not read `metadata`.
"""

import json
import os
from pathlib import Path
from typing import Any

from safetensors.torch import save as save_tensors
from torch import Tensor
from transformers import PreTrainedModel

from unipelt.checkpoint.disk import TENSORS, write_whole
from unipelt.checkpoint.folder import checkpoint_files, describe_model, files_of, save
from unipelt.errors import CheckpointError
from unipelt.inject.added_tokens import added_rows
from unipelt.inject.state import NAME, attached_state

INDEX = "model.safetensors.index.json"
"""transformers' file that says which file has which parameter"""
MODEL_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""transformers' names for the weights of a whole model"""
REFUSED = (
    "none, this folder holds only what unipelt tuned: load the base model, then call unipelt.load(model, this folder)"
)
"""what transformers shows to whoever loads the folder as a whole model"""


def save_pretrained(
    model: PreTrainedModel,
    save_directory: str | os.PathLike,
    is_main_process: bool = True,
    state_dict: dict[str, Tensor] | None = None,
    push_to_hub: bool = False,
    **options: Any,
) -> None:
    """Write the tuned parameters, what describes them, the config of the base and a model card.

    The arguments are those of transformers' method; there is one file of weights, whatever `max_shard_size` and `variant`
    say. Of several runs each is written as a checkpoint of its own, in run-0, run-1, …
    """
    folder, original_save = Path(save_directory), type(model).save_pretrained
    if push_to_hub:
        options.setdefault("repo_id", folder.resolve().name)
        model.push_to_hub(**options)
    if options.get("distributed_checkpoint"):  # one file for each process, to resume from and for nothing else
        original_save(model, save_directory, is_main_process=is_main_process, state_dict=state_dict, **options)
        return
    if file := next((name for name in MODEL_WEIGHTS if (folder / name).exists()), None):
        raise CheckpointError(
            f"{folder}: holds a whole model ({file}), which would be lost to from_pretrained; expected another folder"
        )
    values = (model.state_dict() if state_dict is None else state_dict).items()
    stored = {name: _gather(value) for name, value in values if name.startswith(f"{NAME}.")}
    if not is_main_process:
        return
    model.config.architectures = [type(model).__name__]
    model.config.dtype = str(model.dtype).removeprefix("torch.")
    files = files_of(model.config, *([model.generation_config] if model.can_generate() else []))
    config = json.loads(files["config.json"]) | {"transformers_weights": REFUSED}
    files["config.json"] = json.dumps(config, indent=2).encode()
    index = {"unipelt": REFUSED, "weight_map": dict.fromkeys(stored, TENSORS)}
    files[INDEX] = json.dumps(index, indent=2).encode()
    state = attached_state(model)
    if state.runs > 1:
        write_whole(folder, {TENSORS: save_tensors(stored), **files})
        for run in range(state.runs):
            save(model, folder / f"run-{run}", run=run, resumable=True)
        return
    part, _ = state.locate_run(None)
    tensors = {name.removeprefix(f"{NAME}."): value[0] for name, value in stored.items()}
    description = describe_model(model, part, part.mixture)
    stored |= {f"{NAME}.{name}": rows[None] for name, rows in added_rows(model, description.base["tokens"]).items()}
    write_whole(folder, checkpoint_files(folder, model, description, tensors, stored) | files)


def _gather(value: Tensor) -> Tensor:
    """A tensor in the memory of the CPU, gathered where processes hold parts of it."""
    gathered = value.full_tensor() if hasattr(value, "full_tensor") else value
    return gathered.detach().cpu().contiguous()
