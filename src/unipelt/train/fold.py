"""Folding a trained gated mixture for inference: what its gates do not decide from row to row is decided once.

A gate that hardly varies over validation rows becomes its mean, which is multiplied into the parameters of its change; a
change whose gate stays near zero goes; what is linear by then is merged into the base's weights. A prefix at weight 0 still takes
softmax mass (docs/papers.md), so it is fixed and never dropped, unless its function is relu.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from unipelt import spec
from unipelt.errors import DataError, SpecError
from unipelt.forms import takes_weight
from unipelt.forms.gate import GroupGate
from unipelt.inject.fixed_gates import folded, swap
from unipelt.inject.merge import AttachedChange, attached_changes, merge
from unipelt.inject.record import gate_location, record_gates
from unipelt.inject.state import MixtureState, mixture_state, route

DEVIATION, LEAST = 0.05, 0.02  # at most 0.5 points lost on validation rows: experiments/LOG.md

Batch = Mapping[str, Tensor]
Score = Callable[[Tensor, Tensor], float]


@dataclass(frozen=True, kw_only=True)
class FoldedGate:
    """One gate as it was measured, and what was done with its change there."""

    path: str
    """stack, layer, change and site, as in `predict --gates`"""
    mean: float
    deviation: float
    """standard deviation over rows, over real tokens where each has a gate of its own"""
    done: str
    """kept, fixed, merged (fixed, and in the base's weights) or dropped"""


@dataclass(frozen=True, kw_only=True)
class Folded:
    """What `fold` measured and did."""

    gates: tuple[FoldedGate, ...]
    rows: int
    metric: str = ""
    """what `before` and `after` are; none given: the rows had no labels"""
    before: float | None = None
    after: float | None = None
    moved: float = 0.0
    """largest change of a logit"""

    def share(self, *done: str) -> float:
        """The share of the gates to which one of these was done."""
        return sum(gate.done in done for gate in self.gates) / len(self.gates)

    def __str__(self) -> str:
        shares = ", ".join(f"{self.share(done):.0%} {done}" for done in ("kept", "fixed", "merged", "dropped"))
        cost = f"; {self.metric} {self.before:.4f} → {self.after:.4f}" if self.metric else ""
        return (
            f"{len(self.gates)} gates over {self.rows} rows: {shares}; logits moved by at most {self.moved:.2g}{cost}"
        )


def fold(
    model: PreTrainedModel,
    data: Iterable[Batch],
    *,
    deviation: float = DEVIATION,
    least: float = LEAST,
    run: int | None = None,
    score: tuple[str, Score] | None = None,
) -> Folded:
    """Fix the gates of a trained model that hardly vary over `data`, drop changes that they leave out, merge what is then linear.

    data: batches as the model takes them; with `labels`, what it costs is measured: accuracy of classes, else the model's own
    loss, or `score`, the name of a metric and its function of all logits and labels. A gate is fixed whose standard deviation
    is below `deviation`, and its change dropped where its mean is below `least` too. One decision is made for a change in a layer, over all
    stacks and sites; gates of one group are fixed together. 0 fixes nothing. Of several runs, `run` says which one stays.

    The model stays attached: `save` writes an ordinary checkpoint of what is left, `detach` gives the base back bit for bit;
    only the gates and what was dropped are gone. After `load` of such a checkpoint, `merge(model, unmergeable="keep")` merges again.

    Raises SpecError where there are no gates, or a threshold is out of its range, and DataError where there are no rows.
    """
    tuned = mixture_state(model)
    _, number = tuned.locate_run(run)
    for name, value in (("deviation", deviation), ("least", least)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise SpecError(f"{name}={value!r}: expected a number from 0 to 1, as gates are")
    if not any(isinstance(change.weight, spec.Gate) for change in tuned.mixture.changes):
        raise SpecError(
            f"{tuned.mixture.name!r} has no gates, so there is nothing to fold; unipelt.merge(model, unmergeable='keep') merges what is linear"
        )
    if score is not None and not (isinstance(score, tuple) and len(score) == 2 and callable(score[1])):
        raise SpecError(f"score={score!r}: expected a metric's name and its function of logits and labels, as a pair")
    batches: list[Any] = list(data) if isinstance(data, Iterable) else [data]
    for batch in batches or [None]:
        if not isinstance(batch, Mapping) or not batch or not len(next(iter(batch.values()))):
            got = "one of no rows" if isinstance(batch, Mapping) else f"a {type(batch).__name__}" if batches else "none"
            raise DataError(f"data: expected batches of rows as the model takes them, one at least; got {got}")

    before = _measure(model, batches, number, score)
    gates = _gate_statistics(tuned, before.gates)
    decisions = _decisions(gates, deviation, least)
    origin = _swap(model, gates, decisions, number)
    merge(model, unmergeable="keep")
    after = _measure(model, batches, 0, score)

    merged = {attached.bound.location._replace(change=origin[attached.name]) for attached in _in_weights(model)}
    done: dict[str, FoldedGate] = {}
    for gate in gates:
        decision = "merged" if gate.attached.bound.location in merged else decisions[gate.attached.name, gate.layer]
        if gate.path in done and done[gate.path].done != decision:  # of several sites some do not merge
            decision = "fixed"
        done[gate.path] = FoldedGate(path=gate.path, mean=gate.mean, deviation=gate.deviation, done=decision)
    return Folded(
        gates=tuple(done.values()), rows=before.rows, metric=before.metric, before=before.value, after=after.value,
        moved=(after.logits - before.logits).abs().max().item(),
    )  # fmt: skip


@dataclass
class Measurement:
    """What a model says of all rows."""

    gates: dict[str, Tensor]
    """values over rows or real tokens, `[n, members]`, by path"""
    logits: Tensor
    rows: int
    metric: str = ""
    value: float | None = None


@torch.no_grad()
def _measure(
    model: PreTrainedModel, batches: Sequence[Batch], run: int, score: tuple[str, Score] | None
) -> Measurement:
    tuned, seen, training = mixture_state(model), defaultdict(list), model.training
    logits, rows = [], 0
    losses: list[tuple[float, int]] = []
    for batch in batches:
        size = len(next(iter(batch.values())))
        routed: Any = route(model, [run] * size) if tuned.runs > 1 else nullcontext()
        try:
            with routed, record_gates(model) as recorded:
                output = model.eval()(**batch)
        finally:
            model.train(training)
        logits.append(output.logits.flatten(0, -2).cpu())
        rows += size
        if "labels" in batch:
            losses.append((output.loss.item(), _counted(model, batch["labels"])))
        for path, values in recorded.items():
            for value in values:
                value = value if isinstance(tuned.get_submodule(path), GroupGate) else value[..., None]
                seen[path].append(_real(path, value, batch).double().cpu())
    found = Measurement({path: torch.cat(values) for path, values in seen.items()}, torch.cat(logits), rows)
    if all("labels" in batch for batch in batches):
        labels = torch.cat([batch["labels"].flatten().cpu() for batch in batches])
        if score is None and len(labels) == rows == len(found.logits) and not labels.is_floating_point():
            score = "accuracy", lambda logits, labels: (logits.argmax(dim=-1) == labels).double().mean().item()
        found.metric = score[0] if score else "loss"
        found.value = score[1](found.logits, labels) if score else fmean(*zip(*losses))
    return found


def _counted(model: PreTrainedModel, labels: Tensor) -> int:
    """How many labels a batch's loss is the mean of: its rows, or the tokens that are asked for."""
    if labels.dim() != 2 or labels.is_floating_point():
        return len(labels)
    ahead = model.can_generate() and not model.config.is_encoder_decoder  # each token is asked for by the one before
    return int((labels[:, 1:] if ahead else labels).ne(-100).sum())


def _real(path: str, value: Tensor, batch: Batch) -> Tensor:
    """`[n, members]`: a row's value, or those of its real tokens, as the mask of their stream says."""
    if value.dim() == 2:
        return value
    names = (
        ("decoder_attention_mask", "attention_mask")
        if spec.Location.parse(path).stack == "decoder"
        else ("attention_mask",)
    )
    mask = next((batch[name] for name in names if name in batch and batch[name].shape == value.shape[:2]), None)
    return value.flatten(0, 1) if mask is None else value[mask.bool()]


@dataclass
class GateStatistics:
    """The gate of one change at one module, as it was measured."""

    attached: AttachedChange
    path: str
    layer: int
    mean: float
    deviation: float


def _gate_statistics(tuned: MixtureState, seen: dict[str, Tensor]) -> list[GateStatistics]:
    paths, found = {module: path for path, module in tuned.named_modules()}, []
    for attached in attached_changes(tuned):
        if not isinstance(attached.change.weight, spec.Gate):
            continue
        path, member = paths[attached.bound.weight], attached.bound.member  # type: ignore[index]
        values = seen[path][:, member]
        shown = str(gate_location(tuned, path, member))
        layer = attached.bound.location.layer or 0
        found.append(GateStatistics(attached, shown, layer, values.mean().item(), values.std(correction=0).item()))
    return found


def _decisions(gates: list[GateStatistics], deviation: float, least: float) -> dict[tuple[str, int], str]:
    """What becomes of each change in each layer. Gates of one group share a softmax, so they are fixed together or not at all."""
    units: dict[tuple[str, str, int], list[GateStatistics]] = defaultdict(list)
    for gate in gates:
        group = gate.attached.change.weight.group  # type: ignore[union-attr]
        units[group, "" if group else gate.attached.name, gate.layer].append(gate)
    decisions: dict[tuple[str, int], str] = {}
    for members in units.values():
        steady = all(gate.deviation < deviation for gate in members)
        for gate in members:
            form: Any = gate.attached.change.form
            mine = [other for other in members if other.attached.name == gate.attached.name]
            fades = all(other.mean < least for other in mine) and getattr(form, "function", "") != "softmax"
            decisions[gate.attached.name, gate.layer] = ("dropped" if fades else "fixed") if steady else "kept"
    return decisions


def _swap(
    model: PreTrainedModel, gates: list[GateStatistics], decisions: dict[tuple[str, int], str], run: int
) -> dict[str, str]:
    """Replace the gated mixture by the folded one; returns the name that each of its changes had before.

    A change that keeps its gate in some layers and not in others becomes two, one behind the other.
    """
    mixture, old = folded(mixture_state(model))
    parts: list[tuple[str, spec.Change]] = []
    for name, change in mixture.named():
        every = {layer: decision for (owner, layer), decision in decisions.items() if owner == name}
        if not every:
            parts.append((name, change))
        for kept, weight in (("kept", change.weight), ("fixed", 1.0)):
            layers = tuple(sorted(layer for layer, decision in every.items() if decision == kept))
            if layers:
                layers_ = change.layers if len(layers) == len(every) else layers
                parts.append((name, replace(change, weight=weight, layers=layers_)))
    new = spec.Mixture(tuple(change for _, change in parts), mixture.name)
    changes = dict(new.named())
    origin = {name: before for name, (before, _) in zip(changes, parts)}
    gate_at = {gate.attached.bound.location: gate for gate in gates}

    def constant(location: spec.Location) -> float:
        gate = gate_at[location]
        return gate.mean if decisions[gate.attached.name, gate.layer] == "fixed" else 1.0

    def state(path: str) -> Tensor:
        """What a parameter is: that of the change that it comes from, times what its gate has become."""
        at = spec.Location.parse(path)
        if at.change not in origin:
            return old[path][run : run + 1]
        change, before = changes[at.change], origin[at.change]
        source = at._replace(change=before)
        value = old[str(source)][run : run + 1]
        if not any(owner == before for owner, _ in decisions):
            return value
        scale: Any = next((constant(location) for location in gate_at if str(source).startswith(f"{location}.")), 1.0)
        if at.layer is None:  # the prefixes of a whole stack: run, layer, …
            heads = "cross_heads" if at.is_cross else "heads"
            found = {
                layer: source._replace(layer=layer, part=heads) for layer in sorted(layer for _, layer in decisions)
            }
            chosen = [
                location
                for layer, location in found.items()
                if location in gate_at and (change.layers is None or layer in change.layers)
            ]
            value = value[:, [gate_at[location].attached.bound.layer for location in chosen]]  # type: ignore[attr-defined]
            scale = value.new_tensor([constant(location) for location in chosen])[:, None, None]
        return value * scale if takes_weight(change.form, path) else value

    swap(model, new, state, runs=1)
    return origin


def _in_weights(model: PreTrainedModel) -> list[AttachedChange]:
    return [attached for attached in attached_changes(mixture_state(model)) if attached.hook == "weight"]
