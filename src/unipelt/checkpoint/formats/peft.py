"""peft's folders, in the layout of peft 0.21, read into a mixture: LoRA (rsLoRA, DoRA) and IA³; prefixes and prompts: peft_tokens.py.

In float32 a LoRA's outputs are peft's bit for bit; those of the other methods are equal up to rounding.
"""

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from transformers import PreTrainedModel

from unipelt import spec
from unipelt.checkpoint.disk import ADAPTER_CONFIG as CONFIG
from unipelt.checkpoint.disk import read_json, resolve
from unipelt.checkpoint.formats import peft_tokens
from unipelt.checkpoint.loading import attach_read
from unipelt.checkpoint.safe import read_tensors
from unipelt.errors import CheckpointError, SpecError, did_you_mean
from unipelt.inject.architectures import Stack
from unipelt.inject.discover import entries_of
from unipelt.inject.heads import find_head
from unipelt.inject.hooks import BoundChange
from unipelt.inject.resolve import ResolvedStack, find_stacks, is_linear, match_linears
from unipelt.inject.state import NAME
from unipelt.spec.compatibility import LINEARS

TENSORS, PICKLED = "adapter_model.safetensors", "adapter_model.bin"
READ = peft_tokens.READ | {
    "LORA": {
        *("r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "bias"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights"),
    },
    "IA3": {"target_modules", "exclude_modules", "feedforward_modules", "init_ia3_weights"},
}
"""options that are read, by method"""
COMMON = {  # settings of every method: read here, or without effect on the outputs
    *("peft_type", "task_type", "modules_to_save"),
    *("auto_mapping", "base_model_name_or_path", "revision", "peft_version", "inference_mode", "fan_in_fan_out"),
    *("megatron_core", "qalora_group_size", "ensure_weight_tying", "runtime_config", "eva_config"),
}
INITS = (True, False, None, "gaussian", "eva", "orthogonal")  # those that leave the base's own weights alone
PARTS = {"lora_A": "down", "lora_B": "up", "lora_magnitude_vector": "magnitude", "ia3_l": "vector"}


class Linear(NamedTuple):
    """What a folder has for one linear."""

    change: dict[str, Any]
    """fields of a change"""
    values: dict[str, Tensor]
    """its parameters by name"""


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
    read = peft_tokens.read if kind in peft_tokens.READ else _read_linears
    entries = entries_of(model, stacks, discover)
    try:
        changes, values_of, heads = read(find_stacks(model, entries), model, config, tensors, folder)
        _check_heads(model, config, heads, folder)
        mixture = spec.Mixture(changes, f"peft-{kind.lower().replace('_', '-')}")
    except SpecError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from None
    except (re.error, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{folder / CONFIG}: not as expected ({error})") from None
    return attach_read(model, mixture, heads, values_of, entries, folder)


def _check_heads(model: PreTrainedModel, config: dict[str, Any], heads: dict[str, Tensor], folder: Path) -> None:
    saved = wrapped_modules(model, config.get("modules_to_save") or [])
    expected = {f"{path}.{name}" for path in saved for name, _ in model.get_submodule(path).named_parameters()}
    if unknown := sorted(heads.keys() - expected):
        raise CheckpointError(
            f"{folder}: holds {unknown[0]!r}, which is neither a part of its method nor in modules_to_save"
        )
    if missing := sorted(expected - heads.keys()):
        raise CheckpointError(f"{folder}: has no {missing[0]!r}, which modules_to_save names")


def wrapped_modules(model: PreTrainedModel, names: list[str]) -> list[str]:
    """The modules that peft keeps a copy of for these modules_to_save, the outermost of each."""
    paths = [p for p, _ in model.named_modules() if p.split(".")[0] != NAME and any(p.endswith(n) for n in names)]
    return [path for path in paths if not any(path.startswith(outer + ".") for outer in paths)]


def _read_linears(
    stacks: list[ResolvedStack],
    model: PreTrainedModel,
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    folder: Path,
) -> peft_tokens.Contents:
    """What a folder of LoRA or IA³ holds. Raises CheckpointError."""
    path = folder / CONFIG
    if config.get("bias", "none") != "none":
        raise CheckpointError(f"{path}: bias={config['bias']!r}, expected 'none'; trained biases cannot be read")
    if config.get("init_lora_weights", True) not in INITS:
        raise CheckpointError(
            f"{path}: init_lora_weights={config['init_lora_weights']!r} has changed the base's own weights; let peft "
            "merge it, or save it with path_initial_model_for_weight_conversion"
        )
    linears, rest = _split_keys(model, config, tensors, folder)

    def values(shapes: dict[str, Tensor], changes: list[BoundChange]) -> dict[str, Tensor]:
        pairs = ((change, linears[change.path].values) for change in changes)
        return {f"{change.location}.{name}": value for change, by_name in pairs for name, value in by_name.items()}

    return tuple(_changes(stacks, model, linears, folder)), values, rest


def _split_keys(
    model: PreTrainedModel, config: dict[str, Any], tensors: dict[str, Tensor], folder: Path
) -> tuple[dict[str, Linear], dict[str, Tensor]]:
    """What changes each linear, all that the config names and nothing else, and the tensors that are left."""
    kind = "LoRA" if config["peft_type"] == "LORA" else "IA³"
    names = ["down", "up"] + (["magnitude"] if config.get("use_dora") else []) if kind == "LoRA" else ["vector"]
    parts: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for key, value in sorted(tensors.items()):
        path, _, last = key.removesuffix(".weight").rpartition(".")
        if PARTS.get(last) in names:
            parts.setdefault(path, {})[PARTS[last]] = value
        else:
            rest[key] = value
    modules = dict(model.named_modules())
    linears = {path for path, module in modules.items() if is_linear(module)}
    for path in parts:
        if path not in linears:
            reason = f"a {type(modules[path]).__name__}, not a linear" if path in modules else "not in this base"
            raise CheckpointError(
                f"{folder}: a {kind} on {path!r}, which is {reason}: {did_you_mean(path, linears, most=1)}"
            )
    targets = {path for path in linears if targeted(model, config, path)} if config.get("target_modules") else {*parts}
    for path in sorted(targets ^ parts.keys()) + [path for path, part in parts.items() if len(part) != len(names)]:
        lacks = (
            f"has no whole {kind} for" if path in targets else f"has a {kind}, which target_modules does not name, for"
        )
        raise CheckpointError(f"{folder}: {lacks} {path!r}; another base, or a damaged folder")
    parse = _lora if kind == "LoRA" else _ia3
    return {path: parse(config, path, part) for path, part in parts.items()}, rest


def _lora(config: dict[str, Any], path: str, parts: dict[str, Tensor]) -> Linear:
    """One linear's LoRA or DoRA, with the rank and the α that the config's patterns give it."""

    def pattern(name: str, default: Any) -> Any:
        matches = (value for key, value in (config.get(name) or {}).items() if re.match(rf"(.*\.)?({key})$", path))
        return next(matches, default)

    r, alpha = pattern("rank_pattern", config.get("r", 8)), pattern("alpha_pattern", config.get("lora_alpha", 8))
    alpha = float(_alpha_of_scale(alpha / math.sqrt(r), r) if config.get("use_rslora") else alpha)
    values = {"down.weight": parts["down"], "up.weight": parts["up"]}
    if "magnitude" in parts:
        form: spec.Form = spec.Dora(r=r, alpha=alpha)
        return Linear({"form": form, "reads": "input"}, values | {"magnitude": parts["magnitude"]})
    form = spec.LowRank(r=r, alpha=abs(alpha), dropout=config.get("lora_dropout", 0.0))
    weight = -1.0 if alpha < 0 else 1.0  # what a learned scalar below 0 becomes in a peft folder
    return Linear({"form": form, "reads": "input", "weight": weight}, values)


def _ia3(config: dict[str, Any], path: str, parts: dict[str, Tensor]) -> Linear:
    """One linear's vector l: [1, inputs] where it scales what the linear reads, [outputs, 1] where it scales what it gives."""
    vector = parts["vector"]
    reads = "input" if len(vector) == 1 else "output"
    return Linear({"form": spec.Scaling(), "reads": reads}, {"offset": vector.flatten() - 1})


def _changes(
    stacks: list[ResolvedStack], model: PreTrainedModel, linears: dict[str, Linear], folder: Path
) -> Iterator[spec.Change]:
    """The fewest changes whose sites are exactly these linears: by name, by name and layers, else path by path."""
    head = set(find_head(model))
    reached = set(match_linears(stacks, model, ".*", head))
    if beyond := sorted(linears.keys() - reached):
        kind = "IA³" if linears[beyond[0]].change["form"].name == "scaling" else "LoRA"
        raise CheckpointError(f"{folder}: a {kind} on {beyond[0]!r}, outside the layers of the base; peft can merge it")
    index = {path: next((s.layer_of(path).index for s in stacks if s.layer_of(path)), None) for path in reached}  # type: ignore[union-attr]
    groups: dict[tuple, list[str]] = {}
    for path, linear in linears.items():
        groups.setdefault((path.rsplit(".", 1)[-1], *linear.change.items()), []).append(path)
    for (name, *settings), paths in groups.items():
        matched = match_linears(stacks, model, name, head)
        layers = tuple(sorted({layer for path in paths if (layer := index[path]) is not None}))
        site, only = "|".join(re.escape(path) for path in paths), None
        if set(matched) == set(paths):
            site = name
        elif layers and {path for path in matched if index[path] in (None, *layers)} == set(paths):
            site, only = name, layers
        yield spec.Change(site=LINEARS + site, layers=only, **dict(settings))


def targeted(model: PreTrainedModel, config: dict[str, Any], path: str) -> bool:
    """Whether peft would change this linear."""

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


def _alpha_of_scale(scale: float, r: int) -> float:
    """An α for which α / r is exactly this scale."""
    alpha = scale * r
    for candidate in (alpha, math.nextafter(alpha, 0), math.nextafter(alpha, math.inf)):
        if candidate / r == scale:
            return candidate
    return alpha
