"""peft's LoRA folder, in the layout of peft 0.21, read into a mixture of LoRA changes. In float32 the outputs are peft's, bit for bit."""

import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedModel

from unipelt import spec
from unipelt.checkpoint.disk import read_json, resolve
from unipelt.checkpoint.fill import fill
from unipelt.checkpoint.safe import read_tensors
from unipelt.errors import CheckpointError, SpecError, did_you_mean
from unipelt.inject.architectures import Stack
from unipelt.inject.attach import attach
from unipelt.inject.discover import rows_of
from unipelt.inject.heads import find_head
from unipelt.inject.merge import joints
from unipelt.inject.resolve import ResolvedStack, features, find_stacks, is_linear, match_linears
from unipelt.inject.state import NAME, mixture_state
from unipelt.spec.compatibility import LINEARS

CONFIG, TENSORS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
READ = {
    *("peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "rank_pattern", "bias"),
    *("alpha_pattern", "use_rslora", "modules_to_save", "layers_to_transform", "layers_pattern", "task_type"),
}
HARMLESS = {  # what changes no output of a saved folder
    *("auto_mapping", "base_model_name_or_path", "revision", "peft_version", "inference_mode", "fan_in_fan_out"),
    *("megatron_core", "qalora_group_size", "ensure_weight_tying", "runtime_config", "eva_config"),
}
INITS = (True, False, None, "gaussian", "eva", "orthogonal")  # those that leave the base's own weights alone


class Lora(NamedTuple):
    """One LoRA of a peft folder."""

    down: Tensor
    up: Tensor
    alpha: float
    dropout: float = 0.0


def load_peft(
    model: PreTrainedModel, folder: str | os.PathLike, *, stacks: tuple[Stack, ...] | None = None, discover: bool = True
) -> PreTrainedModel:
    """Attach the LoRA of a peft folder, or of a hub repository, to its base; modules_to_save become the tuned head.

    stacks, discover: where the base keeps its parts, as `attach` takes them.

    Raises CheckpointError for another method or variant than plain LoRA, for another base, and for a damaged file; the base
    is then as it was.
    """
    folder = resolve(folder, (CONFIG, TENSORS, PICKLED))
    config = read_json(folder / CONFIG, "a folder that peft's save_pretrained wrote")
    _check_config(config, folder / CONFIG)
    tensors = read_tensors(folder, TENSORS, PICKLED)
    try:
        loras, heads = _sorted_keys(model, config, tensors, folder)
        rows = rows_of(model, stacks, discover)
        mixture = spec.Mixture(tuple(_changes(find_stacks(model, rows), model, loras, folder)), "peft-lora")
    except SpecError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from None
    except (re.error, TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"{folder / CONFIG}: not as expected ({error})") from None
    paths = sorted({path.rsplit(".", 1)[0] for path in heads})
    attach(model, mixture, head="train" if paths else "frozen", head_modules=paths, stacks=rows)
    tuned = mixture_state(model)
    values: dict[str, Tensor] = {}
    for joint in joints(tuned):
        lora = loras[joint.path]
        values |= {f"{joint.delta.location}.down.weight": lora.down, f"{joint.delta.location}.up.weight": lora.up}
    for path in paths:
        for name, _ in tuned.get_submodule(f"head.{path}").named_parameters():
            values[f"head.{path}.{name}"] = heads[f"{path}.{name.rsplit('.', 1)[-1]}"]
    return fill(model, values, str(folder / TENSORS))


def _check_config(config: dict[str, Any], path: Path) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{path}: peft_type={kind!r}, expected 'LORA'; other methods of peft cannot be read")
    if config.get("bias", "none") != "none":
        raise CheckpointError(f"{path}: bias={config['bias']!r}, expected 'none'; trained biases cannot be read")
    if config.get("init_lora_weights", True) not in INITS:
        raise CheckpointError(
            f"{path}: init_lora_weights={config['init_lora_weights']!r} has changed the base's own weights; let peft "
            "merge it, or save it with path_initial_model_for_weight_conversion"
        )
    for name, value in config.items():
        if value and name not in READ | HARMLESS | {"init_lora_weights"}:
            raise CheckpointError(f"{path}: {name}={value!r} is a variant of LoRA that cannot be read; expected none")
    for name, expected in (("r", int), ("lora_alpha", int | float), ("rank_pattern", dict), ("alpha_pattern", dict)):
        value = config.get(name, {"r": 8, "lora_alpha": 8}.get(name, {}))
        if not isinstance(value, expected) and not (value is None and expected is dict):
            raise CheckpointError(f"{path}: {name}={value!r} is not as expected")


def _sorted_keys(
    model: PreTrainedModel, config: dict[str, Any], tensors: dict[str, Tensor], folder: Path
) -> tuple[dict[str, Lora], dict[str, Tensor]]:
    """The LoRAs by path and the head's parameters by name; everything that the config names, and nothing else."""
    halves: dict[str, dict[str, Tensor]] = {}
    heads: dict[str, Tensor] = {}
    for key, value in sorted(tensors.items()):
        match = re.fullmatch(re.escape(PREFIX) + r"(.+)\.lora_([AB])\.weight", key)
        if match:
            halves.setdefault(match[1], {})[match[2]] = value
        else:
            heads[key.removeprefix(PREFIX)] = value
    modules = dict(model.named_modules())
    linears = {path for path, module in modules.items() if is_linear(module)}
    for path in halves:
        if path not in linears:
            kind = f"a {type(modules[path]).__name__}, no linear" if path in modules else "not in this base"
            raise CheckpointError(
                f"{folder}: a LoRA on {path!r}, which is {kind}: {did_you_mean(path, linears, most=1)}"
            )
    targets = {path for path in linears if targeted(model, config, path)} if config.get("target_modules") else {*halves}
    for path in sorted(targets ^ halves.keys()) + [path for path, half in halves.items() if len(half) != 2]:
        lacks = "has no whole LoRA for" if path in targets else "has a LoRA, which target_modules does not name, for"
        raise CheckpointError(f"{folder}: {lacks} {path!r}; another base, or a damaged folder")
    loras = {path: _lora(config, path, half, features(modules[path]), folder) for path, half in halves.items()}
    _check_heads(model, config, heads, folder)
    return loras, heads


def _check_heads(model: PreTrainedModel, config: dict[str, Any], heads: dict[str, Tensor], folder: Path) -> None:
    modules = dict(model.named_modules())
    saved = wrapped_modules(model, config.get("modules_to_save") or [])
    wanted = {f"{path}.{name}": p for path in saved for name, p in modules[path].named_parameters()}
    if unknown := sorted(heads.keys() - wanted.keys()):
        raise CheckpointError(
            f"{folder}: holds {unknown[0]!r}, which is neither a linear's LoRA nor in modules_to_save"
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


def _lora(config: dict[str, Any], path: str, half: dict[str, Tensor], size: tuple[int, int], folder: Path) -> Lora:
    """One linear's LoRA, with the rank and the α that the config's patterns give it."""

    def pattern(name: str, default: Any) -> Any:
        found = (value for key, value in (config.get(name) or {}).items() if re.match(rf"(.*\.)?({key})$", path))
        return next(found, default)

    r, alpha = pattern("rank_pattern", config.get("r", 8)), pattern("alpha_pattern", config.get("lora_alpha", 8))
    for letter, shape in (("A", (r, size[0])), ("B", (size[1], r))):
        if tuple(half[letter].shape) != shape:
            got = tuple(half[letter].shape)
            raise CheckpointError(f"{folder}: {path}.lora_{letter} is {got}, expected {shape}; load its own base")
    if config.get("use_rslora"):
        alpha = _times(alpha / math.sqrt(r), r)
    return Lora(half["A"], half["B"], alpha, config.get("lora_dropout", 0.0))


def _changes(stacks: list[ResolvedStack], model: PreTrainedModel, loras: dict[str, Lora], folder: Path):
    """The fewest changes whose sites are exactly these linears: by name, by name and layers, else path by path."""
    head = set(find_head(model))
    reached = set(match_linears(stacks, model, ".*", head))
    if beyond := sorted(loras.keys() - reached):
        raise CheckpointError(f"{folder}: a LoRA on {beyond[0]!r}, outside the layers of the base; peft can merge it")
    index = {path: next((s.layer_of(path).index for s in stacks if s.layer_of(path)), None) for path in reached}  # type: ignore[union-attr]
    groups: dict[tuple, list[str]] = {}
    for path, lora in loras.items():
        groups.setdefault((path.rsplit(".", 1)[-1], len(lora.down), lora.alpha, lora.dropout), []).append(path)
    for (name, r, alpha, dropout), paths in groups.items():
        matched = match_linears(stacks, model, name, head)
        layers = tuple(sorted({layer for path in paths if (layer := index[path]) is not None}))
        site, only = "|".join(re.escape(path) for path in paths), None
        if set(matched) == set(paths):
            site = name
        elif layers and {path for path in matched if index[path] in (None, *layers)} == set(paths):
            site, only = name, layers
        form = spec.LowRank(r=r, alpha=abs(float(alpha)), dropout=dropout)
        weight = -1.0 if alpha < 0 else 1.0  # what a learned scalar below 0 becomes in a peft folder
        yield spec.Change(form=form, site=LINEARS + site, reads="input", weight=weight, layers=only)


def targeted(model: PreTrainedModel, config: dict[str, Any], path: str) -> bool:
    """Whether peft would put a LoRA on this linear."""

    def named(names: str | list[str] | None) -> bool:
        if isinstance(names, str):
            return re.fullmatch(names, path) is not None
        return any(path == name or path.endswith("." + name) for name in names or ())

    saved = config.get("modules_to_save") or []
    if named(config.get("exclude_modules")) or any(re.match(rf"(^|.*\.){name}($|\..*)", path) for name in saved):
        return False
    targets = config["target_modules"]
    if targets == "all-linear":
        return model.get_submodule(path) is not model.get_output_embeddings()  # type: ignore[operator]
    layers = config.get("layers_to_transform")
    if isinstance(targets, str) or layers in (None, []):
        return named(targets)
    patterns = config.get("layers_pattern") or [r"[^.]*"]
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if match := re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", path):
            return named(targets) and int(match[1]) in ([layers] if isinstance(layers, int) else layers)
    return False


def wrapped_modules(model: PreTrainedModel, names: list[str]) -> list[str]:
    """The modules that peft keeps a copy of for these modules_to_save, the outermost of each."""
    found = [p for p, _ in model.named_modules() if p.split(".")[0] != NAME and any(p.endswith(n) for n in names)]
    return [path for path in found if not any(path.startswith(outer + ".") for outer in found)]


def _times(scale: float, r: int) -> float:
    """An α for which α / r is exactly this scale."""
    alpha = scale * r
    for candidate in (alpha, math.nextafter(alpha, 0), math.nextafter(alpha, math.inf)):
        if candidate / r == scale:
            return candidate
    return alpha
