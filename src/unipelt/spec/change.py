"""A change, and a mixture of changes: the algebra of He et al. 2022, arXiv:2110.04366, with the gates of Mao et al. 2022."""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args, get_type_hints

from unipelt.errors import SpecError, did_you_mean
from unipelt.spec.compatibility import LINEARS, equation
from unipelt.spec.forms import FORMS, Form, Prompt, check_settings
from unipelt.spec.location import HEAD

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Gate:
    """g = mean of σ(x·v + c) over real tokens, in (0, 1), x being what the change reads          Mao et al. 2022, arXiv:2110.07577"""

    pool: Literal["auto", "token", "prompt", "reference"] = "auto"
    """auto: in an encoder one gate for each example, the mean over its real tokens; in a causal decoder as token; token: one gate
    for each token; prompt: in a causal decoder, the mean over the prompt's real tokens, which later tokens keep; reference: the
    mean over all positions, padding included, as in UniPELT's own code"""
    group: str = ""
    """name of a group of gates that one softmax over their changes replaces: UniPELT's central gate"""


@dataclass(frozen=True, kw_only=True)
class Learned:
    """A learned scalar s, one per layer, as He et al.'s scaled parallel adapter may have."""

    start: float = 1.0
    """value at step 0"""


Weight = float | Learned | Gate


@dataclass(frozen=True, kw_only=True)
class Change:
    """One modification of one representation: h ← h + weight · Δ(reads), along He et al.'s dimensions.

    Raises SpecError for a combination that the table of `unipelt.spec.compatibility` refuses, with its reason.
    """

    form: Form
    """functional form Δ with its own settings, such as Bottleneck(size=48)"""
    site: str | tuple[str, ...]
    """modified representation h: query, key, value, heads, attention, ffn, layer, embeddings, biases, norms, or linears by name
    (`linear:` and an exact name, a dotted suffix, a regular expression or all-linear); several sites share one gate"""
    reads: Literal["input", "output", "normed sum", "residual", "queries", "nothing"]
    """what Δ reads. input: the sub-layer's input (parallel); output: its output (sequential); normed sum: LayerNorm of output
    plus residual (Pfeiffer); residual: the input of the layer's residual connection; queries: the query vectors (prefix); nothing:
    Δ is a constant (bias, prompt)"""
    weight: Weight = 1.0
    """1, a scale s, Learned() or Gate()"""
    layers: tuple[int, ...] | None = None
    """layers that are changed, counted from 0 in each stack; a range such as '6-11' becomes its numbers; None: all"""

    def __post_init__(self):
        object.__setattr__(self, "site", tuple(self.site) if isinstance(self.site, list) else self.site)
        if type(self.form) not in FORMS.values():
            raise SpecError(f"form={self.form!r}: expected one of {', '.join(FORMS)}")
        number = self.weight.start if isinstance(self.weight, Learned) else self.weight
        if not isinstance(number, Gate) and not _finite(number):
            raise SpecError(f"weight={self.weight!r}: expected a finite number, Learned() or Gate()")
        if self.layers is not None:
            ends = re.fullmatch(r"(\d{1,3})-(\d{1,3})", self.layers) if isinstance(self.layers, str) else None
            layer_numbers = range(int(ends[1]), int(ends[2]) + 1) if ends else self.layers
            layers = tuple(layer_numbers) if isinstance(layer_numbers, Iterable) else ()
            if not layers or any(type(layer) is not int or layer < 0 for layer in layers):
                raise SpecError(
                    f"layers={self.layers!r}: expected whole numbers from 0, one at least, or a range such as 6-11"
                )
            object.__setattr__(self, "layers", layers)
        pools = get_args(get_type_hints(Gate)["pool"])
        if isinstance(self.weight, Gate) and self.weight.pool not in pools:
            raise SpecError(f"Gate(pool={self.weight.pool!r}): {did_you_mean(self.weight.pool, pools)}")
        if isinstance(self.weight, Gate) and not isinstance(self.weight.group, str):
            raise SpecError(f"Gate(group={self.weight.group!r}): expected a name")
        if not isinstance(self.sites, tuple) or not self.sites or not all(isinstance(site, str) for site in self.sites):
            raise SpecError(f"site={self.site!r}: expected a site, or a tuple of at least one")
        check_settings(self.form)
        if isinstance(self.form, Prompt) and self.layers is not None:
            raise SpecError(
                f"layers={self.layers}: a prompt has no layers, because it passes through all of them; leave it out, or use a prefix"
            )
        for site in self.sites:
            equation(self.form, site, self.reads, self.weight)

    @property
    def sites(self) -> tuple[str, ...]:
        return (self.site,) if isinstance(self.site, str) else self.site

    @property
    def label(self) -> str:
        """A short name for parameter keys, such as `low_rank_query`."""
        return self.form.name + "_" + "_".join(LINEARS.rstrip(":") if s.startswith(LINEARS) else s for s in self.sites)


@dataclass(frozen=True)
class Mixture:
    """A named tuple of changes. Where two changes are at one module, the order of the tuple is the order of composition."""

    changes: tuple[Change, ...]
    name: str = "mixture"

    def __post_init__(self):
        if isinstance(self.changes, Change) or not isinstance(self.changes, Iterable):
            got = f"got {type(self.changes).__name__}"
            raise SpecError(f"changes: {got}; expected a tuple of changes, such as Mixture((change,))")
        if not isinstance(self.name, str):
            raise SpecError(f"name={self.name!r}: expected a string")
        object.__setattr__(self, "changes", tuple(self.changes))
        for change in self.changes:
            if not isinstance(change, Change):
                raise SpecError(f"a mixture holds changes; got {type(change).__name__}")
        layers: dict[str, set] = {}
        for change in self.changes:
            if isinstance(change.weight, Gate) and change.weight.group:
                layers.setdefault(change.weight.group, set()).add((change.layers, change.weight.pool))
        taken = {HEAD, *(name for name, _ in self.named())}
        for group, kinds in layers.items():
            if group in taken:
                raise SpecError(f"group {group!r}: a change or the head has this name; give the group another")
            if len(kinds) > 1:
                raise SpecError(
                    f"group {group!r}: its changes must name the same layers and the same pool; got {kinds}"
                )

    def named(self) -> list[tuple[str, Change]]:
        """Each change with a name of its own: its label, numbered from the second of its kind."""
        counts: Counter[str] = Counter()
        pairs = []
        for change in self.changes:
            counts[change.label] += 1
            number = counts[change.label]
            pairs.append((change.label if number == 1 else f"{change.label}_{number}", change))
        return pairs

    def members(self, group: str) -> list[str]:
        """The names of the changes whose gates are of one group, in order."""
        return [name for name, c in self.named() if isinstance(c.weight, Gate) and group and c.weight.group == group]

    def with_weights(self, weights: dict[str, Weight]) -> "Mixture":
        """The same mixture with other weights, by change name."""
        changes = [replace(change, weight=weights.get(name, change.weight)) for name, change in self.named()]
        return Mixture(tuple(changes), self.name)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1)

    def to_dict(self) -> dict[str, Any]:
        return {"format": FORMAT_VERSION, "name": self.name, "changes": [_change_to_dict(c) for c in self.changes]}

    @classmethod
    def from_json(cls, text: str) -> "Mixture":
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SpecError(f"the mixture is not JSON: {error}") from None
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Mixture":
        if not isinstance(data, dict) or data.get("format") != FORMAT_VERSION:
            got = data.get("format") if isinstance(data, dict) else type(data).__name__
            raise SpecError(f"the mixture has format {got!r}; this version reads format {FORMAT_VERSION}")
        _known_keys(data, ("format", "name", "changes"), "a mixture")
        if not isinstance(data.get("changes"), list):
            raise SpecError(f"a mixture needs 'changes', a list; got {data.get('changes')!r}")
        return cls(tuple(_change_from_dict(change) for change in data["changes"]), data.get("name", "mixture"))


def _change_to_dict(change: Change) -> dict[str, Any]:
    weight: Any = change.weight
    if isinstance(weight, Gate | Learned):
        weight = {type(weight).__name__.lower(): asdict(weight)}
    return {
        "form": {change.form.name: asdict(change.form)},
        "site": change.site if isinstance(change.site, str) else list(change.site),
        "reads": change.reads,
        "weight": weight,
        "layers": None if change.layers is None else list(change.layers),
    }


def _change_from_dict(data: Any) -> Change:
    if not isinstance(data, dict):
        raise SpecError(f"a change is an object; got {type(data).__name__}")
    _known_keys(data, ("form", "site", "reads", "weight", "layers"), "a change")
    for key in ("form", "site", "reads"):
        if key not in data:
            raise SpecError(f"a change needs {key!r}; got {sorted(data)}")
    weight = data.get("weight", 1.0)
    if isinstance(weight, dict):
        weight = _build_named({"gate": Gate, "learned": Learned}, weight, "weight")
    form = _build_named(FORMS, data["form"], "form")
    return Change(form=form, site=data["site"], reads=data["reads"], weight=weight, layers=data.get("layers"))


def _build_named(known: dict[str, type], data: Any, kind: str) -> Any:
    if not isinstance(data, dict) or len(data) != 1:
        raise SpecError(f"a {kind} is an object with one name; got {data!r}")
    ((name, settings),) = data.items()
    if name not in known:
        raise SpecError(f"{kind} {name!r}: {did_you_mean(name, known)}")
    if not isinstance(settings, dict):
        raise SpecError(f"{kind} {name}: its settings are an object; got {settings!r}")
    _known_keys(settings, [field.name for field in fields(known[name])], f"{kind} {name}")
    return known[name](**settings)


def _finite(number: Any) -> bool:
    known = isinstance(number, int | float) and not isinstance(number, bool)
    return known and abs(number) <= sys.float_info.max  # NaN is not


def _known_keys(data: dict[str, Any], known: Iterable[str], owner: str) -> None:
    for key in data:
        if key not in known:
            raise SpecError(f"{owner} has no {key!r}: {did_you_mean(key, known)}")
