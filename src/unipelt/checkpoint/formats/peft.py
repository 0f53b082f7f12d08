"""peft's folders, in the layout of peft 0.21: LoRA (rsLoRA, DoRA), IA³, prefix tuning and prompt tuning, read into a mixture.

In float32 a LoRA's outputs are peft's bit for bit; those of the other methods are equal up to rounding.
"""

import os
import re
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from unipelt import spec
from unipelt.checkpoint.disk import read_json, resolve
from unipelt.checkpoint.fill import fill
from unipelt.checkpoint.formats import peft_linears, peft_tokens
from unipelt.checkpoint.formats.peft_linears import CONFIG
from unipelt.checkpoint.safe import read_tensors
from unipelt.errors import CheckpointError, SpecError
from unipelt.inject.architectures import Stack
from unipelt.inject.attach import attach
from unipelt.inject.discover import entries_of
from unipelt.inject.resolve import find_stacks
from unipelt.inject.state import NAME, mixture_state

TENSORS, PICKLED = "adapter_model.safetensors", "adapter_model.bin"
READ = peft_linears.READ | peft_tokens.READ
COMMON = {  # settings of every method: read here, or without effect on the outputs
    *("peft_type", "task_type", "modules_to_save"),
    *("auto_mapping", "base_model_name_or_path", "revision", "peft_version", "inference_mode", "fan_in_fan_out"),
    *("megatron_core", "qalora_group_size", "ensure_weight_tying", "runtime_config", "eva_config"),
}


def load_peft(
    model: PreTrainedModel, folder: str | os.PathLike, *, stacks: tuple[Stack, ...] | None = None, discover: bool = True
) -> PreTrainedModel:
    """Attach what a peft folder, or a hub repository, holds to its base; modules_to_save become the tuned head.

    stacks, discover: where the base keeps its parts, as `attach` takes them.

    Raises CheckpointError for a method or a variant that cannot be read, for another base, and for a damaged file; the base is
    then as it was. Nothing in the folder is run.
    """
    folder = resolve(folder, (CONFIG, TENSORS, PICKLED))
    config = read_json(folder / CONFIG, "a folder that peft's save_pretrained wrote")
    kind = config.get("peft_type")
    if kind not in READ:
        raise CheckpointError(
            f"{folder / CONFIG}: peft_type={kind!r} cannot be read; expected {', '.join(sorted(READ))}"
        )
    for name, value in config.items():
        if value and name not in READ[kind] | COMMON:
            raise CheckpointError(f"{folder / CONFIG}: {name}={value!r} is a variant of {kind} that cannot be read")
    tensors = {
        re.sub(r"^base_model\.(model\.(?=.*(lora_|ia3_))|model\.)?", "", key): value
        for key, value in read_tensors(folder, TENSORS, PICKLED).items()
    }
    read = peft_linears.read if kind in peft_linears.READ else peft_tokens.read
    rows = entries_of(model, stacks, discover)
    try:
        changes, values_of, heads = read(find_stacks(model, rows), model, config, tensors, folder)
        _check_heads(model, config, heads, folder)
        mixture = spec.Mixture(changes, f"peft-{kind.lower().replace('_', '-')}")
    except SpecError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from None
    except (re.error, TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"{folder / CONFIG}: not as expected ({error})") from None
    paths = sorted({path.rsplit(".", 1)[0] for path in heads})
    attach(model, mixture, head="train" if paths else "frozen", head_modules=paths, stacks=rows)
    tuned = mixture_state(model)
    values = values_of(tuned)
    for path in paths:
        for name, _ in tuned.get_submodule(f"head.{path}").named_parameters():
            values[f"head.{path}.{name}"] = heads[f"{path}.{name.rsplit('.', 1)[-1]}"]
    return fill(model, values, str(folder / TENSORS))


def _check_heads(model: PreTrainedModel, config: dict[str, Any], heads: dict[str, Tensor], folder: Path) -> None:
    modules = dict(model.named_modules())
    saved = wrapped_modules(model, config.get("modules_to_save") or [])
    wanted = {f"{path}.{name}": p for path in saved for name, p in modules[path].named_parameters()}
    if unknown := sorted(heads.keys() - wanted.keys()):
        raise CheckpointError(
            f"{folder}: holds {unknown[0]!r}, which is neither a part of its method nor in modules_to_save"
        )
    if missing := sorted(wanted.keys() - heads.keys()):
        raise CheckpointError(f"{folder}: has no {missing[0]!r}, which modules_to_save names")
    for name, value in heads.items():
        module = modules[name.rpartition(".")[0]]
        if not isinstance(module, nn.Linear | nn.LayerNorm):
            what = f"{name!r} of a {type(module).__name__}"
            raise CheckpointError(f"{folder}: modules_to_save holds {what}; expected linears and LayerNorms")
        if value.shape != wanted[name].shape:
            got, expected = tuple(value.shape), tuple(wanted[name].shape)
            raise CheckpointError(f"{folder}: {name!r} is {got}, expected {expected}; load a base with its labels")


def wrapped_modules(model: PreTrainedModel, names: list[str]) -> list[str]:
    """The modules that peft keeps a copy of for these modules_to_save, the outermost of each."""
    found = [p for p, _ in model.named_modules() if p.split(".")[0] != NAME and any(p.endswith(n) for n in names)]
    return [path for path in found if not any(path.startswith(outer + ".") for outer in found)]
