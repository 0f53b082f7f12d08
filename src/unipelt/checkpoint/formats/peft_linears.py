"""peft's folders of LoRA, with its variants rsLoRA and DoRA, and of IA³, read into changes of linears by name."""

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from transformers import PreTrainedModel

from unipelt import spec
from unipelt.errors import CheckpointError, did_you_mean
from unipelt.inject.heads import find_head
from unipelt.inject.resolve import ResolvedStack, features, is_linear, match_linears
from unipelt.inject.state import MixtureState
from unipelt.spec.compatibility import LINEARS

CONFIG = "adapter_config.json"
READ = {
    "LORA": {
        *("r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "bias"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights"),
    },
    "IA3": {"target_modules", "exclude_modules", "feedforward_modules", "init_ia3_weights"},
}
"""options that are read"""
INITS = (True, False, None, "gaussian", "eva", "orthogonal")  # those that leave the base's own weights alone
PARTS = {"lora_A.weight": "down", "lora_B.weight": "up", "lora_magnitude_vector": "magnitude", "ia3_l": "vector"}


class Lora(NamedTuple):
    """One LoRA of a peft folder, or one DoRA."""

    down: Tensor
    up: Tensor
    alpha: float
    dropout: float = 0.0
    magnitude: Tensor | None = None

    def change(self) -> dict[str, Any]:
        r = len(self.down)
        if self.magnitude is not None:
            return {"form": spec.Dora(r=r, alpha=float(self.alpha)), "reads": "input", "weight": 1.0}
        form = spec.LowRank(r=r, alpha=abs(float(self.alpha)), dropout=self.dropout)
        weight = -1.0 if self.alpha < 0 else 1.0  # what a learned scalar below 0 becomes in a peft folder
        return {"form": form, "reads": "input", "weight": weight}

    def values(self) -> dict[str, Tensor]:
        values = {"down.weight": self.down, "up.weight": self.up}
        return values if self.magnitude is None else values | {"magnitude": self.magnitude}


class Ia3(NamedTuple):
    """One vector l of IA³; [1, inputs] where it scales what the linear reads, [outputs, 1] where it scales what it gives."""

    vector: Tensor

    def change(self) -> dict[str, Any]:
        return {"form": spec.Scaling(), "reads": "input" if len(self.vector) == 1 else "output", "weight": 1.0}

    def values(self) -> dict[str, Tensor]:
        return {"offset": self.vector.flatten() - 1}


Linears = dict[str, Lora | Ia3]
"""what changes each linear, by path"""


Contents = tuple[tuple[spec.Change, ...], Callable[[MixtureState], dict[str, Tensor]], dict[str, Tensor]]
"""changes, a function that gives their parameters once they are attached, and the tensors that are left for the head"""


def read(
    stacks: list[ResolvedStack],
    model: PreTrainedModel,
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    folder: Path,
) -> Contents:
    """What a folder holds. Raises CheckpointError."""
    _check_config(config, folder / CONFIG)
    linears, rest = _split_keys(model, config, tensors, folder)

    def values(tuned: MixtureState) -> dict[str, Tensor]:
        return {
            f"{attached.location}.{name}": value
            for attached in tuned.changes
            for name, value in linears[attached.path].values().items()
        }

    return tuple(_changes(stacks, model, linears, folder)), values, rest


def _check_config(config: dict[str, Any], path: Path) -> None:
    """Raise CheckpointError for a variant of LoRA or IA³ that cannot be read."""
    if config["peft_type"] == "IA3":
        return
    if config.get("bias", "none") != "none":
        raise CheckpointError(f"{path}: bias={config['bias']!r}, expected 'none'; trained biases cannot be read")
    if config.get("init_lora_weights", True) not in INITS:
        raise CheckpointError(
            f"{path}: init_lora_weights={config['init_lora_weights']!r} has changed the base's own weights; let peft "
            "merge it, or save it with path_initial_model_for_weight_conversion"
        )
    for name, expected in (("r", int), ("lora_alpha", int | float), ("rank_pattern", dict), ("alpha_pattern", dict)):
        value = config.get(name, {"r": 8, "lora_alpha": 8}.get(name, {}))
        if not isinstance(value, expected) and not (value is None and expected is dict):
            raise CheckpointError(f"{path}: {name}={value!r} is not as expected")


def _split_keys(
    model: PreTrainedModel, config: dict[str, Any], tensors: dict[str, Tensor], folder: Path
) -> tuple[Linears, dict[str, Tensor]]:
    """What changes each linear, all that the config names and nothing else, and the tensors that are left."""
    kind = "LoRA" if config["peft_type"] == "LORA" else "IA³"
    wanted = ["down", "up"] + (["magnitude"] if config.get("use_dora") else []) if kind == "LoRA" else ["vector"]
    parts: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    pattern = re.compile(r"(.+)\.(" + "|".join(map(re.escape, PARTS)) + ")")
    for key, value in sorted(tensors.items()):
        match = pattern.fullmatch(key.removesuffix(".weight") if "magnitude" in key else key)
        if match and PARTS[match[2]] in wanted:
            parts.setdefault(match[1], {})[PARTS[match[2]]] = value
        else:
            rest[key] = value
    modules = dict(model.named_modules())
    linears = {path for path, module in modules.items() if is_linear(module)}
    for path in parts:
        if path not in linears:
            what = f"a {type(modules[path]).__name__}, not a linear" if path in modules else "not in this base"
            raise CheckpointError(
                f"{folder}: a {kind} on {path!r}, which is {what}: {did_you_mean(path, linears, most=1)}"
            )
    targets = {path for path in linears if targeted(model, config, path)} if config.get("target_modules") else {*parts}
    for path in sorted(targets ^ parts.keys()) + [path for path, part in parts.items() if len(part) != len(wanted)]:
        lacks = (
            f"has no whole {kind} for" if path in targets else f"has a {kind}, which target_modules does not name, for"
        )
        raise CheckpointError(f"{folder}: {lacks} {path!r}; another base, or a damaged folder")
    parse = _lora if kind == "LoRA" else _ia3
    return {path: parse(config, path, part, features(modules[path]), folder) for path, part in parts.items()}, rest


def _lora(config: dict[str, Any], path: str, parts: dict[str, Tensor], size: tuple[int, int], folder: Path) -> Lora:
    """One linear's LoRA or DoRA, with the rank and the α that the config's patterns give it."""

    def pattern(name: str, default: Any) -> Any:
        found = (value for key, value in (config.get(name) or {}).items() if re.match(rf"(.*\.)?({key})$", path))
        return next(found, default)

    r, alpha = pattern("rank_pattern", config.get("r", 8)), pattern("alpha_pattern", config.get("lora_alpha", 8))
    shapes = {
        "down": ("lora_A", (r, size[0])),
        "up": ("lora_B", (size[1], r)),
        "magnitude": ("lora_magnitude_vector", (size[1],)),
    }
    for part, value in parts.items():
        name, shape = shapes[part]
        if tuple(value.shape) != shape:
            raise CheckpointError(
                f"{folder}: {path}.{name} is {tuple(value.shape)}, expected {shape}; load its own base"
            )
    if config.get("use_rslora"):
        alpha = _times(alpha / math.sqrt(r), r)
    return Lora(parts["down"], parts["up"], alpha, config.get("lora_dropout", 0.0), parts.get("magnitude"))


def _ia3(config: dict[str, Any], path: str, parts: dict[str, Tensor], size: tuple[int, int], folder: Path) -> Ia3:
    if (got := tuple(parts["vector"].shape)) not in (shapes := ((1, size[0]), (size[1], 1))):
        expected = " or ".join(map(str, shapes))
        raise CheckpointError(f"{folder}: {path}.ia3_l is {got}, expected {expected}; load its own base")
    return Ia3(parts["vector"])


def _changes(
    stacks: list[ResolvedStack], model: PreTrainedModel, linears: Linears, folder: Path
) -> Iterator[spec.Change]:
    """The fewest changes whose sites are exactly these linears: by name, by name and layers, else path by path."""
    head = set(find_head(model))
    reached = set(match_linears(stacks, model, ".*", head))
    if beyond := sorted(linears.keys() - reached):
        kind = "LoRA" if isinstance(linears[beyond[0]], Lora) else "IA³"
        raise CheckpointError(f"{folder}: a {kind} on {beyond[0]!r}, outside the layers of the base; peft can merge it")
    index = {path: next((s.layer_of(path).index for s in stacks if s.layer_of(path)), None) for path in reached}  # type: ignore[union-attr]
    groups: dict[tuple, list[str]] = {}
    for path, one in linears.items():
        groups.setdefault((path.rsplit(".", 1)[-1], *one.change().items()), []).append(path)
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


def _times(scale: float, r: int) -> float:
    """An α for which α / r is exactly this scale."""
    alpha = scale * r
    for candidate in (alpha, math.nextafter(alpha, 0), math.nextafter(alpha, math.inf)):
        if candidate / r == scale:
            return candidate
    return alpha
