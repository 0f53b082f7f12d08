"""Written as peft's folder in the layout of peft 0.21: LoRA, DoRA, IA³, a prefix or a prompt.

peft computes from a LoRA's folder what the model computes, in float32 bit for bit; only where a weight is not 1 and α/r is not a
power of two, peft rounds once what we round twice. The other methods are equal up to rounding.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from unipelt import spec
from unipelt.checkpoint.bases import hub_name, vocabulary_size
from unipelt.checkpoint.disk import write_whole
from unipelt.checkpoint.formats.peft import CONFIG, TENSORS, targeted, wrapped_modules
from unipelt.checkpoint.formats.peft_tokens import KEY, PrefixLayout, prompt_first
from unipelt.errors import SpecError
from unipelt.inject.added_tokens import added_rows
from unipelt.inject.fixed_gates import with_prefix_tables
from unipelt.inject.hooks import BoundChange
from unipelt.inject.merge import refuse, weight_of
from unipelt.inject.resolve import find_stacks
from unipelt.inject.state import NAME, MixtureState, mixture_state

CLASSIFIERS = ("classifier", "score")  # heads that peft saves unasked under task_type SEQ_CLS
TASKS = {"ForSequenceClassification": "SEQ_CLS", "ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM"} | {
    "ForConditionalGeneration": "SEQ_2_SEQ_LM"
}
METHODS = {"low_rank": "LoRA", "dora": "DoRA", "scaling": "IA³", "prefix": "prefix tuning", "prompt": "prompt tuning"}
"""by form: what peft calls it"""
Method = tuple[dict[str, Any], dict[str, Tensor]]
"""fields of the config, and tensors by the names of the base's modules"""


class ExportedRun(NamedTuple):
    """One run that is written."""

    model: PreTrainedModel
    state: MixtureState
    changes: list[BoundChange]
    run: int
    wrapped: list[str]
    """modules that peft keeps copies of"""

    def weight(self, attached: BoundChange) -> Any:
        """The weight of a change."""
        return weight_of(attached, self.run)


def export_peft(model: PreTrainedModel, folder: str | os.PathLike, *, run: int | None = None) -> Path:
    """Write one run as a folder that peft's PeftModel.from_pretrained reads, the head among its modules_to_save.

    Raises SpecError that names each change that a peft folder cannot hold, and why.
    """
    state = mixture_state(model)
    _, run = state.locate_run(run)
    changes = state.changes
    refuse("export to peft", state, changes, _reasons(state, changes))
    if added_rows(model, vocabulary_size(getattr(model.config, "_name_or_path", "")) or 0):
        raise SpecError(
            "export to peft: tokens were added to the base, and peft's folder is written without embeddings; use "
            "unipelt.save, or unipelt.export_merged"
        )
    if not changes:
        raise SpecError(f"export to peft: {state.mixture.name!r} changes nothing in the base; use unipelt.save")
    task = next((task for end, task in TASKS.items() if type(model).__name__.endswith(end)), None)
    saved = sorted({_saved_name(model, path) for path in state.head_modules})
    wrapped = saved + [name for name in CLASSIFIERS if task == "SEQ_CLS" and name not in saved]
    name = changes[0].change.form.name
    write: Callable[[ExportedRun], Method] = {"scaling": _ia3, "prefix": _prefix, "prompt": _prompt}.get(name, _lora)
    method, tensors = write(ExportedRun(model, state, changes, run, wrapped))
    for path in wrapped_modules(model, wrapped):
        tensors |= {f"{path}.{name}": value for name, value in model.get_submodule(path).state_dict().items()}
    for path, head in state.head_modules.items():
        tensors |= {f"{path}.{name.rsplit('.', 1)[-1]}": p[run] for name, p in head.named_parameters()}
    inside = "base_model." if KEY in tensors else "base_model.model."  # where peft has the base
    tensors = {name if name == KEY else inside + name: value for name, value in tensors.items()}
    config = {
        "task_type": task,
        "base_model_name_or_path": hub_name(getattr(model.config, "_name_or_path", "")) or None,
        "inference_mode": True,
        "modules_to_save": saved or None,
    } | method
    data = save_tensors({n: v.detach().contiguous().cpu() for n, v in tensors.items()}, metadata={"format": "pt"})
    write_whole(Path(folder), {TENSORS: data, CONFIG: json.dumps(config, indent=2).encode()})
    return Path(folder)


def _reasons(state: MixtureState, changes: list[BoundChange]) -> Callable[[BoundChange], str | None]:
    """Return a function: why peft's folder cannot hold an attached change; None where it can."""
    forms = {change.form.name for change in state.mixture.changes} & METHODS.keys()
    counts = Counter(
        attached.path for attached in changes if attached.change.form.name in ("low_rank", "dora", "scaling")
    )

    def reason(attached: BoundChange) -> str | None:
        form, weight = attached.change.form, attached.change.weight
        if form.name not in METHODS:
            return f"peft has no {form.name}"
        if len(forms) > 1:
            others = ", ".join(sorted(METHODS[name] for name in forms - {form.name}))
            return f"a peft folder holds one method, and beside {METHODS[form.name]} there is {others}"
        if attached.path in counts and attached.point.columns is not None:
            name = attached.path.rsplit(".", 1)[-1]
            return f"it changes a part of the fused {name!r}, peft's LoRA whole linears: use site='linear:{name}', or merge"
        if counts[attached.path] > 1:
            return f"{attached.path!r} has {counts[attached.path]} changes, a peft folder one a linear"
        if form.name == "dora" and weight != 1:
            return f"its weight is {weight}, and peft's DoRA has none; expected 1"
        if isinstance(form, spec.Prefix) and form.function != "softmax":
            return f"peft has no prefix with function={form.function!r}"
        if isinstance(form, spec.Prefix) and (attached.change.layers is not None or len(state.mixture.changes) > 1):
            return "peft has one prefix, in every layer"
        return None

    return reason


def _lora(exported: ExportedRun) -> Method:
    model, _, changes, run, wrapped = exported
    is_dora = isinstance(changes[0].change.form, spec.Dora)
    dropouts = {getattr(attached.change.form, "dropout", 0.0) for attached in changes}
    if len(dropouts) > 1:
        raise SpecError(f"export to peft: dropouts {sorted(dropouts)}, expected one: a peft folder has one for all")
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for attached in changes:
        path, form, settings = attached.path, attached.form, attached.change.form
        tensors |= {f"{path}.lora_A.weight": form.down.weight[run], f"{path}.lora_B.weight": form.up.weight[run]}  # type: ignore[union-attr, index, operator]
        if is_dora:
            tensors[f"{path}.lora_magnitude_vector"] = form.magnitude[run]  # type: ignore[index, operator]
        ranks[path], alphas[path] = settings.r, settings.alpha * exported.weight(attached)  # type: ignore[union-attr]
    usual_rank, usual_alpha = (Counter(each.values()).most_common(1)[0][0] for each in (ranks, alphas))
    config = {
        "peft_type": "LORA",
        "r": usual_rank,
        "lora_alpha": _plain(usual_alpha),
        "lora_dropout": dropouts.pop(),
        "rank_pattern": {_exactly(path): r for path, r in ranks.items() if r != usual_rank},
        "alpha_pattern": {_exactly(path): _plain(alpha) for path, alpha in alphas.items() if alpha != usual_alpha},
        "target_modules": _target_modules(model, set(ranks), wrapped),
        "bias": "none",
        "fan_in_fan_out": all(isinstance(model.get_submodule(path), Conv1D) for path in ranks),
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": is_dora,
    }
    return config, tensors


def _ia3(exported: ExportedRun) -> Method:
    model, _, changes, run, wrapped = exported
    vectors: dict[str, Tensor] = {}
    for attached in changes:
        form: Any = attached.form
        scale = 1 + exported.weight(attached) * form.offset[run]
        vectors[attached.path] = scale[None] if attached.point.side == "before" else scale[:, None]
    targets = _target_modules(model, set(vectors), wrapped)
    inner = [path for path, vector in vectors.items() if len(vector) == 1]
    names = {path.rsplit(".", 1)[-1] for path in inner}
    if names <= {*targets} and not names & {path.rsplit(".", 1)[-1] for path in vectors.keys() - {*inner}}:
        inner = [*names]
    else:  # peft wants these among the targets, name by name
        targets = sorted(vectors)
    config = {
        "peft_type": "IA3",
        "target_modules": targets,
        "feedforward_modules": sorted(inner),
        "fan_in_fan_out": all(isinstance(model.get_submodule(path), Conv1D) for path in vectors),
        "init_ia3_weights": True,
    }
    return config, {f"{path}.ia3_l": vector for path, vector in vectors.items()}


def _prompt(exported: ExportedRun) -> Method:
    model, state, changes, run, _ = exported
    stacks = find_stacks(model, state.options["stacks"])
    expected = prompt_first(model, stacks)
    if any(attached.change.form.first != expected for attached in changes):  # type: ignore[union-attr]
        raise SpecError(
            "export to peft: peft's classifier reads the prompt's first vector, this one the input's first token; train with "
            "Prompt(first='prompt'), or use unipelt.save"
        )
    vectors = torch.cat([exported.weight(attached) * attached.form.vectors[run] for attached in changes])  # type: ignore[index, operator]
    config = {"peft_type": "PROMPT_TUNING", "prompt_tuning_init": "RANDOM"}
    return config | _shape(model, len(vectors), vectors.shape[1]), {KEY: vectors}


def _prefix(exported: ExportedRun) -> Method:
    model, state, changes, run, _ = exported
    layout = PrefixLayout(model, find_stacks(model, state.options["stacks"]))
    _, tables = with_prefix_tables(state)
    key, value = (
        next(v for n, v in tables.items() if n.endswith(f".{end}") and not n.startswith("head."))[run]
        for end in ("key", "value")
    )
    weights = {attached.location.layer: exported.weight(attached) for attached in changes}
    scale = torch.tensor([weights[layer.index] for layer in layout.stack.layers]).to(key)[:, None, None]
    vectors = layout.to_peft(scale * key, scale * value)
    config = {"peft_type": "PREFIX_TUNING", "encoder_hidden_size": layout.width, "prefix_projection": False}
    shape = {"num_layers": layout.layers, "num_attention_heads": layout.shape.heads}
    return config | _shape(model, len(vectors), layout.width) | shape, {KEY: vectors}


def _shape(model: PreTrainedModel, length: int, width: int) -> dict[str, Any]:
    """What peft would else read off the base; an encoder-decoder has the prompt in front of its encoder alone."""
    config: Any = model.config
    return {
        "num_virtual_tokens": length,
        "token_dim": width,
        "num_transformer_submodules": 1,
        "num_attention_heads": getattr(config, "num_attention_heads", None) or 1,
        "num_layers": getattr(config, "num_hidden_layers", None) or 1,
    }


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
