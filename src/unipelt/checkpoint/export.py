"""Exporters: a merged base as a plain Hugging Face checkpoint, and LoRA as peft's folder in the layout of peft 0.21.

peft computes from the folder what the model computes, in float32 bit for bit; only where a weight is not 1 and α/r is not a power
of two, peft rounds once what we round twice.
"""

import json
import os
import re
import tempfile
from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save as save_tensors
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from unipelt import spec
from unipelt.checkpoint.bases import hub_name, quiet, vocabulary_size
from unipelt.checkpoint.disk import write_whole
from unipelt.checkpoint.formats.peft import CONFIG, PREFIX, TENSORS, Lora, targeted, wrapped_modules
from unipelt.errors import CheckpointError, SpecError
from unipelt.inject.added_tokens import added_rows
from unipelt.inject.merge import Joint, joints, merge, refuse, weight_of
from unipelt.inject.state import NAME, mixture_state

CLASSIFIERS = ("classifier", "score")  # heads that peft saves unasked under task_type SEQ_CLS
TASKS = {"ForSequenceClassification": "SEQ_CLS", "ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM"} | {
    "ForConditionalGeneration": "SEQ_2_SEQ_LM"
}


def export_merged(
    model: PreTrainedModel, folder: str | os.PathLike, *, run: int | None = None, tokenizer: Any = None
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


def export_peft(model: PreTrainedModel, folder: str | os.PathLike, *, run: int | None = None) -> Path:
    """Write one run as a LoRA folder that peft's PeftModel.from_pretrained reads, the head among its modules_to_save.

    Raises SpecError that names each change that is not a LoRA on a whole linear, or that is gated.
    """
    tuned = mixture_state(model)
    _, run = tuned.locate_run(run)
    found, seen = list(joints(tuned)), Counter(joint.path for joint in joints(tuned))

    def reason(joint: Joint) -> str | None:
        if not isinstance(joint.change.form, spec.LowRank):
            return f"peft's LoRA folder has no {joint.change.form.name}"
        if joint.delta.part is not None:
            name = joint.path.rsplit(".", 1)[-1]
            return f"it changes a part of the fused {name!r}, peft's LoRA whole linears: use site='linear:{name}', or merge"
        if seen[joint.path] > 1:
            return f"{joint.path!r} has {seen[joint.path]} changes, a peft folder one a linear"
        return None

    refuse("export to peft", tuned, found, reason)
    if added_rows(model, vocabulary_size(getattr(model.config, "_name_or_path", "")) or 0):
        raise SpecError(
            "export to peft: tokens were added to the base, and peft's LoRA folder is written without embeddings; use "
            "unipelt.save, or unipelt.export_merged"
        )
    if not found:
        raise SpecError(f"export to peft: {tuned.mixture.name!r} has no LoRA in it; use unipelt.save")
    dropouts = {joint.change.form.dropout for joint in found}  # type: ignore[union-attr]
    if len(dropouts) > 1:
        raise SpecError(f"export to peft: dropouts {sorted(dropouts)}, expected one: a peft folder has one for all")
    loras = {}
    for joint in found:
        form: Any = joint.delta.form
        alpha = joint.change.form.alpha * weight_of(joint.delta, run)  # type: ignore[union-attr]
        loras[joint.path] = Lora(form.down.weight[run], form.up.weight[run], alpha)
    heads = {path: tuned.get_submodule(f"head.{path}") for path in tuned.head_modules()}

    task = next((task for end, task in TASKS.items() if type(model).__name__.endswith(end)), None)
    saved = sorted({_saved_name(model, path) for path in heads})
    wrapped = saved + [name for name in CLASSIFIERS if task == "SEQ_CLS" and name not in saved]
    tensors: dict[str, Tensor] = {}
    for path, lora in loras.items():
        tensors |= {f"{path}.lora_A.weight": lora.down, f"{path}.lora_B.weight": lora.up}
    for path in wrapped_modules(model, wrapped):
        tensors |= {f"{path}.{name}": value for name, value in model.get_submodule(path).state_dict().items()}
    for path, head in heads.items():
        tensors |= {f"{path}.{name.rsplit('.', 1)[-1]}": p[run] for name, p in head.named_parameters()}
    tensors = {PREFIX + name: value.detach().contiguous().cpu() for name, value in tensors.items()}

    ranks = Counter(len(lora.down) for lora in loras.values()).most_common(1)[0][0]
    alphas = Counter(lora.alpha for lora in loras.values()).most_common(1)[0][0]
    config = {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": hub_name(getattr(model.config, "_name_or_path", "")) or None,
        "inference_mode": True,
        "r": ranks,
        "lora_alpha": _plain(alphas),
        "lora_dropout": dropouts.pop(),
        "rank_pattern": {_exactly(p): len(lora.down) for p, lora in loras.items() if len(lora.down) != ranks},
        "alpha_pattern": {_exactly(p): _plain(lora.alpha) for p, lora in loras.items() if lora.alpha != alphas},
        "target_modules": _target_modules(model, set(loras), wrapped),
        "modules_to_save": saved or None,
        "bias": "none",
        "fan_in_fan_out": all(isinstance(model.get_submodule(path), Conv1D) for path in loras),
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
    }
    data = save_tensors(tensors, metadata={"format": "pt"})
    write_whole(Path(folder), {TENSORS: data, CONFIG: json.dumps(config, indent=2).encode()})
    return Path(folder)


def _saved_name(model: PreTrainedModel, path: str) -> str:
    """The name of a head's module in modules_to_save: its outermost module, for peft nests no copies."""
    base = next((p for p, module in model.named_modules() if module is model.base_model), "")
    return path if not base or path.startswith(base + ".") else path.split(".")[0]


def _target_modules(model: PreTrainedModel, paths: set[str], wrapped: list[str]) -> list[str]:
    """The last names of the paths where these name nothing else, else the paths."""
    names = sorted({path.rsplit(".", 1)[-1] for path in paths})
    spared = {"target_modules": names, "modules_to_save": wrapped}
    reached = {p for p, _ in model.named_modules() if p and p.split(".")[0] != NAME and targeted(model, spared, p)}
    return names if reached == paths else sorted(paths)


def _exactly(path: str) -> str:
    return "^" + re.escape(path)


def _plain(number: float) -> int | float:
    return int(number) if float(number).is_integer() else number
