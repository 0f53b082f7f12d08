"""AdapterHub's folders, as `adapters` 1.x saves them, read into a mixture: bottlenecks, LoRA, prefixes, unions of them, and heads."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from unipelt import spec
from unipelt.checkpoint.disk import ADAPTER_CONFIG as CONFIG
from unipelt.checkpoint.disk import read_json, resolve
from unipelt.checkpoint.formats.adapterhub_keys import BERTS, Names, plain_keys
from unipelt.checkpoint.loading import attach_read
from unipelt.checkpoint.safe import read_tensors
from unipelt.errors import CheckpointError, SpecError, did_you_mean
from unipelt.inject.architectures import Stack
from unipelt.inject.discover import entries_of
from unipelt.inject.heads import find_head
from unipelt.inject.hooks import BoundChange
from unipelt.inject.resolve import ResolvedStack, find_stacks
from unipelt.spec.compatibility import LINEARS

TENSORS, PICKLED = "adapter.safetensors", "pytorch_adapter.bin"
HEAD_TENSORS, HEAD_PICKLED = "model_head.safetensors", "pytorch_model_head.bin"

FFN_LINEARS = {  # what intermediate_lora and output_lora change, in this order: for Llama that is how `adapters` has it
    **dict.fromkeys(BERTS, ("intermediate.dense", "output.dense")),
    **dict.fromkeys(("bart", "mbart"), ("fc1", "fc2")),
    **dict.fromkeys(("llama", "mistral"), ("mlp.down_proj", "mlp.up_proj")),
    "albert": ("ffn", "ffn_output"),
    "distilbert": ("ffn.lin1", "ffn.lin2"),
    "t5": (r"layer.\d.DenseReluDense.wi(_1)?", r"layer.\d.DenseReluDense.wo"),
}
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "swish": "swish", "silu": "swish", "tanh": "tanh", "linear": "identity"}
HARMLESS = re.compile(
    r"phm_.*|.*_phm.*|.*_phm|init_.*|hypercomplex_.*|stochastic_depth|dtype|adapter_residual_before_ln"
)
EXPECTED: dict[str, dict[str, tuple]] = {  # of each architecture: what an option must be for us to read it
    "bottleneck": {
        "phm_layer": (False,),
        "inv_adapter": (None,),
        "inv_adapter_reduction_factor": (None,),
        "ln_before": (False,),
        "ln_after": (False,),
        "original_ln_after": (True,),
        "non_linearity": tuple(ACTIVATIONS),
    },
    "lora": {
        "composition_mode": ("add",),
        "use_dora": (False,),
        "vera_d": (None,),
        "vera_b": (None,),
    },
    "prefix_tuning": {"shared_gating": (True,), "non_linearity": ("tanh",)},
}
READ = {
    "bottleneck": "mh_adapter output_adapter cross_adapter reduction_factor original_ln_before residual_before_ln is_parallel "
    "scaling use_gating leave_out dropout architecture",
    "lora": "architecture selfattn_lora intermediate_lora output_lora leave_out r alpha dropout attn_matrices use_gating",
    "prefix_tuning": "architecture encoder_prefix cross_prefix leave_out flat prefix_length bottleneck_size dropout use_gating",
}


def load_adapterhub(
    model: PreTrainedModel, folder: str | os.PathLike, *, stacks: tuple[Stack, ...] | None = None, discover: bool = True
) -> PreTrainedModel:
    """Attach what a folder of `adapters` 1.x, or of the hub, holds to its base; the head file beside it becomes the tuned head.

    stacks, discover: where the base keeps its parts, as `attach` takes them. Gates average over all positions, padding
    included, as `adapters` does: they are read as Gate(pool="reference"). Raises CheckpointError for an option that has no
    counterpart here, for another base, and for a damaged file; the base is then as it was.
    """
    folder = resolve(folder, (CONFIG, TENSORS, PICKLED, HEAD_TENSORS, HEAD_PICKLED))
    config = read_json(folder / CONFIG, "a folder that save_adapter of `adapters` wrote")
    path = folder / CONFIG
    _check_base(model, config, path)
    resolved = find_stacks(model, entries_of(model, stacks, discover))
    entries = tuple(stack.entry for stack in resolved)
    parts = config["config"]
    parts = parts.get("configs") if parts.get("architecture") == "union" else [parts]
    kind = config["model_type"]
    try:
        changes = [change for part in parts for change in _changes(part, resolved, kind, config, path)]
        mixture = spec.Mixture(tuple(changes), "adapterhub")
    except SpecError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except (TypeError, KeyError, AttributeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"{path}: {type(error).__name__} {error}: its config is not as expected") from None
    tensors = plain_keys(model, read_tensors(folder, TENSORS, PICKLED), folder)
    names = Names(kind, config["name"], dict(mixture.named()), resolved)

    def values_of(shapes: dict[str, Tensor], _: list[BoundChange]) -> dict[str, Tensor]:
        keys = {name: names.key(name) for name in shapes if not name.startswith("head.")}
        problems = [f"has no {key!r}" for key in keys.values() if key not in tensors]
        problems += [
            f"holds {key!r}, which its config does not have" for key in sorted(tensors.keys() - {*keys.values()})
        ]
        if problems:
            raise CheckpointError(f"{folder}: {problems[0]}; another base, or a damaged folder")
        return {name: names.value(name, tensors[key]) for name, key in keys.items()}

    return attach_read(model, mixture, _head(model, folder), values_of, entries, folder)


def _check_base(model: PreTrainedModel, config: dict[str, Any], path: Path) -> None:
    base: Any = model.base_model.config  # type: ignore[union-attr]
    for name, kind in (("name", str), ("model_type", str), ("config", dict)):
        if not isinstance(config.get(name), kind):
            raise CheckpointError(f"{path}: {name}={config.get(name)!r} is not as expected")
    if config["model_type"] != base.model_type or config.get("hidden_size", base.hidden_size) != base.hidden_size:
        raise CheckpointError(
            f"{path}: made for a {config['model_type']!r} of hidden size {config.get('hidden_size')}; got a "
            f"{base.model_type!r} of {base.hidden_size}; load that base instead"
        )
    if base.model_type not in FFN_LINEARS:
        raise CheckpointError(
            f"{path}: adapters of {base.model_type!r} cannot be read: {did_you_mean(base.model_type, FFN_LINEARS)}"
        )


def _changes(
    part: dict[str, Any], stacks: list[ResolvedStack], kind: str, config: dict[str, Any], path: Path
) -> Iterator[spec.Change]:
    """The changes that one config of `adapters` describes."""
    architecture = part.get("architecture") or "bottleneck"
    if architecture not in EXPECTED:
        raise CheckpointError(f"{path}: architecture={architecture!r}: {did_you_mean(architecture, EXPECTED)}")
    for option, value in part.items():
        expected = EXPECTED[architecture].get(option)
        if (
            expected is not None
            and value not in expected
            and not (architecture == "prefix_tuning" and part.get("flat"))
        ):
            known = ", ".join(repr(choice) for choice in expected)
            raise CheckpointError(f"{path}: {architecture}: {option}={value!r} cannot be read; expected {known}")
        if expected is None and value and option not in READ[architecture].split() and not HARMLESS.fullmatch(option):
            raise CheckpointError(f"{path}: {architecture}: the option {option}={value!r} is not known")
    yield from {"bottleneck": _bottleneck, "lora": _lora, "prefix_tuning": _prefix}[architecture](
        part, stacks, kind, config, path
    )


def _bottleneck(
    part: dict[str, Any], stacks: list[ResolvedStack], kind: str, config: dict[str, Any], path: Path
) -> Iterator[spec.Change]:
    after, parallel = part.get("original_ln_before", False), part.get("is_parallel", False)
    gated, scale = part.get("use_gating", False), part.get("scaling", 1.0)
    before_norm = stacks[0].entry.ffn_residual is not None
    if not parallel and after and part.get("residual_before_ln", True) is not True:
        raise CheckpointError(
            f"{path}: residual_before_ln={part['residual_before_ln']!r} cannot be read; expected True"
        )
    if scale == "channel" or (gated and scale != 1.0):
        raise CheckpointError(f"{path}: scaling={scale!r} cannot be read" + (" beside use_gating" if gated else ""))
    if part.get("mh_adapter") and parallel and before_norm:
        raise CheckpointError(f"{path}: a parallel adapter on attention of {kind!r} reads its residual: cannot be read")
    if any(stack.entry.cross for stack in stacks) and bool(part.get("cross_adapter")) != bool(part.get("mh_adapter")):
        raise CheckpointError(
            f"{path}: cross_adapter={part.get('cross_adapter')} beside mh_adapter={part.get('mh_adapter')} cannot be read; "
            "expected both or neither"
        )
    weight = spec.Gate(pool="reference") if gated else spec.Learned() if scale == "learned" else float(scale)
    sites = [site for site, option in (("attention", "mh_adapter"), ("ffn", "output_adapter")) if part.get(option)]
    factor = part["reduction_factor"]
    sizes: dict[int, set[int]] = {}
    for number in _changed_layers(part, stacks):
        reduction = factor.get(str(number), factor.get("default")) if isinstance(factor, dict) else factor
        sizes.setdefault(max(int(config["hidden_size"] // reduction), 1), set()).add(number)
    for site in sites:
        reads = ("residual" if before_norm else "input") if parallel else ("normed sum" if after else "output")
        if kind == "albert" and site == "attention":  # there `adapters` takes the block's input for its output
            reads = {"input": "output", "output": "input"}.get(reads, reads)
        for size, numbers in sizes.items():
            form = spec.Bottleneck(
                size=size,
                activation=ACTIVATIONS[part["non_linearity"]],  # type: ignore[arg-type]
                init="lora" if part.get("init_weights") == "mam_adapter" else "bert",
                dropout=float(part.get("dropout") or 0),
            )
            layers = _layers(numbers, stacks, path)
            yield spec.Change(form=form, site=site, reads=reads, weight=weight, layers=layers)  # type: ignore[arg-type]


def _lora(
    part: dict[str, Any], stacks: list[ResolvedStack], kind: str, config: dict[str, Any], path: Path
) -> Iterator[spec.Change]:
    gated, r = part.get("use_gating", False), part["r"]
    faulty = re.match(r"adapters\.(0|1\.0)\.", config.get("version", "")) and part is config["config"]
    alpha = r if gated or faulty else part["alpha"]  # a gate takes α/r's place; `adapters` before 1.1 forgot it
    form = spec.LowRank(r=r, alpha=float(alpha), dropout=float(part.get("dropout") or 0))
    sites = []
    if part.get("selfattn_lora", True):
        words = {"q": "query", "k": "key", "v": "value"}
        sites += [words[letter] for letter in part.get("attn_matrices", ("q", "v"))]
    for option, linear in zip(("intermediate_lora", "output_lora"), FFN_LINEARS[kind]):
        if part.get(option):
            sites.append(LINEARS + rf"(.*\.)?\d+\.{linear if kind == 't5' else re.escape(linear)}")
    layers = _layers(set(_changed_layers(part, stacks)), stacks, path)
    for site in sites:
        weight = spec.Gate(pool="reference") if gated else 1.0
        yield spec.Change(form=form, site=site, reads="input", weight=weight, layers=layers)


def _prefix(
    part: dict[str, Any], stacks: list[ResolvedStack], kind: str, config: dict[str, Any], path: Path
) -> Iterator[spec.Change]:
    if kind == "t5":
        raise CheckpointError(f"{path}: `adapters` counts T5's relative positions from its prefix: cannot be read")
    for option in ("encoder_prefix", "cross_prefix"):
        if len(stacks) > 1 and not part.get(option, True):
            raise CheckpointError(f"{path}: {option}=False cannot be read; expected prefixes in every attention")
    mlp = 0 if part.get("flat") else part["bottleneck_size"]
    weight = spec.Gate(pool="reference") if part.get("use_gating") else 1.0
    layers = _layers(set(_changed_layers(part, stacks)), stacks, path)
    form = spec.Prefix(length=part["prefix_length"], mlp=mlp, init="torch")
    yield spec.Change(form=form, site="heads", reads="queries", weight=weight, layers=layers)


def _changed_layers(part: dict[str, Any], stacks: list[ResolvedStack]) -> list[int]:
    """The layers that leave_out does not name, by their number over all stacks."""
    return [n for n in range(sum(len(stack.layers) for stack in stacks)) if n not in (part.get("leave_out") or ())]


def _layers(numbers: set[int], stacks: list[ResolvedStack], path: Path) -> tuple[int, ...] | None:
    """Layers counted in each stack, from their numbers over all stacks."""
    start, layer_sets = 0, set()
    for stack in stacks:
        layer_sets.add(tuple(layer.index for layer in stack.layers if start + layer.index in numbers))
        start += len(stack.layers)
    if len(layer_sets) > 1:
        raise CheckpointError(
            f"{path}: leave_out or reduction_factor differs between encoder and decoder: cannot be read"
        )
    layers = layer_sets.pop()
    return None if len(numbers) == start else layers


def _head(model: PreTrainedModel, folder: Path) -> dict[str, Tensor]:
    """The head file's tensors by the names of this model, without what the model has already."""
    if not any((folder / name).is_file() for name in (HEAD_TENSORS, HEAD_PICKLED)):
        return {}
    modules, existing, new = dict(model.named_modules()), model.state_dict(), find_head(model)
    head = {}
    for key, value in sorted(read_tensors(folder, HEAD_TENSORS, HEAD_PICKLED).items()):
        path = key.rpartition(".")[0]
        if ".prefix_tunings." in key:  # T5's head file has them once more
            continue
        if key.startswith("heads.") or key not in existing:
            raise CheckpointError(f"{folder}: a head with {key!r}, which this {type(model).__name__} does not have")
        if path in new or existing[key].shape != value.shape or not torch.equal(existing[key].to(value), value):
            head[key] = value
    return {f"{path}.{name}": head.get(f"{path}.{name}", existing[f"{path}.{name}"])
            for path in {key.rpartition(".")[0] for key in head} for name, _ in modules[path].named_parameters()}  # fmt: skip
