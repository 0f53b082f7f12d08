"""Simplify a trained gated mixture for inference: gates that hardly vary become constants.

A gate that hardly varies over validation examples is replaced by its mean, which is multiplied into the parameters of its
change. A change whose gate stays near zero is removed. What is linear then is merged into the base's weights. A softmax prefix
is never removed, because it takes attention even at weight 0 (docs/papers.md).
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
from unipelt.inject.fixed_gates import swap, with_prefix_tables
from unipelt.inject.hooks import BoundChange
from unipelt.inject.merge import merge
from unipelt.inject.record import gate_location, record_gates
from unipelt.inject.state import MixtureState, mixture_state, route

MAX_DEVIATION, DROP_BELOW = 0.05, 0.02  # at most 0.5 points lost on validation examples: experiments/LOG.md

ModelInputs = Mapping[str, Tensor]
Score = Callable[[Tensor, Tensor], float]


@dataclass(frozen=True, kw_only=True)
class MeasuredGate:
    """A gate as it was measured, and the decision about its change."""

    path: str
    """stack, layer, change and site, as in `predict --gates`"""
    mean: float
    deviation: float
    """standard deviation over examples, or over real tokens for gates per token"""
    decision: str
    """kept, fixed, merged (fixed, and in the base's weights) or dropped"""


@dataclass(frozen=True, kw_only=True)
class GateReport:
    """The measurements and decisions of `simplify_gates`."""

    gates: tuple[MeasuredGate, ...]
    examples: int
    metric: str = ""
    """name of the metric of `before` and `after`; empty: no labels were given"""
    before: float | None = None
    after: float | None = None
    max_logit_change: float = 0.0
    """largest change of a logit"""

    def fraction(self, *decisions: str) -> float:
        """The fraction of the gates with one of these decisions."""
        return sum(gate.decision in decisions for gate in self.gates) / len(self.gates)

    def __str__(self) -> str:
        fractions = ", ".join(f"{self.fraction(one):.0%} {one}" for one in ("kept", "fixed", "merged", "dropped"))
        cost = f"; {self.metric} {self.before:.4f} → {self.after:.4f}" if self.metric else ""
        return f"{len(self.gates)} gates over {self.examples} examples: {fractions}; logits change by at most {self.max_logit_change:.2g}{cost}"


def simplify_gates(
    model: PreTrainedModel,
    data: Iterable[ModelInputs],
    *,
    max_deviation: float = MAX_DEVIATION,
    drop_below: float = DROP_BELOW,
    run: int | None = None,
    score: tuple[str, Score] | None = None,
) -> GateReport:
    """Replace gates that hardly vary over `data` by their mean, remove changes whose gate is near 0, and merge what is then linear.

    data: batches of model inputs. With `labels`, a metric is measured before and after.
    max_deviation: a gate whose standard deviation is below this becomes a constant; 0 changes nothing.
    drop_below: a change is removed if its gate is constant and has a mean below this.
    run: which run stays, if there are several.
    score: (name, function of all logits and labels) of the metric (default: accuracy for classes, else the model's loss).

    There is one decision per change and layer, over all stacks and sites; gates of one group become constant together. The
    model stays attached: `save` writes an ordinary checkpoint, `detach` restores the base bit for bit. After `load` of that
    checkpoint, `merge(model, unmergeable="keep")` merges again.

    Raises SpecError if there are no gates, or for a threshold out of range, and DataError if there are no examples.
    """
    tuned = mixture_state(model)
    _, number = tuned.locate_run(run)
    for name, value in (("max_deviation", max_deviation), ("drop_below", drop_below)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise SpecError(f"{name}={value!r}: expected a number from 0 to 1, as gates are")
    if not any(isinstance(change.weight, spec.Gate) for change in tuned.mixture.changes):
        raise SpecError(
            f"{tuned.mixture.name!r} has no gates, so there is nothing to simplify; unipelt.merge(model, unmergeable='keep') merges what is linear"
        )
    if score is not None and not (isinstance(score, tuple) and len(score) == 2 and callable(score[1])):
        raise SpecError(f"score={score!r}: expected a metric's name and its function of logits and labels, as a pair")
    batches: list[Any] = list(data) if isinstance(data, Iterable) else [data]
    for batch in batches or [None]:
        if not isinstance(batch, Mapping) or not batch or not len(next(iter(batch.values()))):
            got = "an empty batch" if isinstance(batch, Mapping) else f"a {type(batch).__name__}" if batches else "none"
            raise DataError(f"data: expected at least one batch of model inputs; got {got}")

    before = _measure(model, batches, number, score)
    gates = _gate_statistics(tuned, before.gates)
    decisions = _decisions(gates, max_deviation, drop_below)
    origin = _replace_mixture(model, gates, decisions, number)
    merge(model, unmergeable="keep")
    after = _measure(model, batches, 0, score)

    merged = {
        attached.location._replace(change=origin[attached.name])
        for attached in mixture_state(model).changes
        if attached.merged
    }
    report: dict[str, MeasuredGate] = {}
    for gate in gates:
        decision = "merged" if gate.attached.location in merged else decisions[gate.attached.name, gate.layer]
        if gate.path in report and report[gate.path].decision != decision:  # merged at some sites only
            decision = "fixed"
        report[gate.path] = MeasuredGate(path=gate.path, mean=gate.mean, deviation=gate.deviation, decision=decision)
    return GateReport(
        gates=tuple(report.values()), examples=before.examples, metric=before.metric, before=before.value, after=after.value,
        max_logit_change=(after.logits - before.logits).abs().max().item(),
    )  # fmt: skip


@dataclass
class Measurement:
    """Gate values, logits and metric of a model over all examples."""

    gates: dict[str, Tensor]
    """by path: values of examples or real tokens, `[n, gates]`"""
    logits: Tensor
    examples: int
    metric: str = ""
    value: float | None = None


@torch.no_grad()
def _measure(
    model: PreTrainedModel, batches: Sequence[ModelInputs], run: int, score: tuple[str, Score] | None
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
    """The number of labels in the mean of a batch's loss: rows, or tokens with a label."""
    if labels.dim() != 2 or labels.is_floating_point():
        return len(labels)
    causal = model.can_generate() and not model.config.is_encoder_decoder  # each token is predicted from the one before
    return int((labels[:, 1:] if causal else labels).ne(-100).sum())


def _real(path: str, value: Tensor, batch: ModelInputs) -> Tensor:
    """The gate values of rows, or of real tokens, `[n, gates]`."""
    if value.dim() == 2:
        return value
    names = ["attention_mask"]
    if spec.Location.parse(path).stack == "decoder":
        names.insert(0, "decoder_attention_mask")
    mask = next((batch[name] for name in names if name in batch and batch[name].shape == value.shape[:2]), None)
    return value.flatten(0, 1) if mask is None else value[mask.bool()]


@dataclass
class GateStatistics:
    """Mean and standard deviation of the gate of one change at one module."""

    attached: BoundChange
    path: str
    layer: int
    mean: float
    deviation: float


def _gate_statistics(tuned: MixtureState, seen: dict[str, Tensor]) -> list[GateStatistics]:
    paths, found = {module: path for path, module in tuned.named_modules()}, []
    for attached in tuned.changes:
        if not isinstance(attached.change.weight, spec.Gate):
            continue
        path, member = paths[attached.weight], attached.member  # type: ignore[index]
        values = seen[path][:, member]
        displayed = str(gate_location(tuned, path, member))
        layer = attached.location.layer or 0
        found.append(GateStatistics(attached, displayed, layer, values.mean().item(), values.std(correction=0).item()))
    return found


def _decisions(gates: list[GateStatistics], max_deviation: float, drop_below: float) -> dict[tuple[str, int], str]:
    """The decision for each change and layer. Gates of one group share a softmax, so all of them become constant or none."""
    groups: dict[tuple[str, str, int], list[GateStatistics]] = defaultdict(list)
    for gate in gates:
        group = gate.attached.change.weight.group  # type: ignore[union-attr]
        groups[group, "" if group else gate.attached.name, gate.layer].append(gate)
    decisions: dict[tuple[str, int], str] = {}
    for members in groups.values():
        constant_gates = all(gate.deviation < max_deviation for gate in members)
        for gate in members:
            name, form = gate.attached.name, gate.attached.change.form
            needed = isinstance(form, spec.Prefix) and form.function == "softmax"
            negligible = all(other.mean < drop_below for other in members if other.attached.name == name) and not needed
            decisions[name, gate.layer] = "kept" if not constant_gates else "dropped" if negligible else "fixed"
    return decisions


def _replace_mixture(
    model: PreTrainedModel, gates: list[GateStatistics], decisions: dict[tuple[str, int], str], run: int
) -> dict[str, str]:
    """Replace the gated mixture by the simpler one. Return the former name of each change by its new name.

    A change that keeps its gate in some layers only is split into two changes.
    """
    mixture, old = with_prefix_tables(mixture_state(model))
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
    gate_at = {gate.attached.location: gate for gate in gates}

    def constant(location: spec.Location) -> float:
        gate = gate_at[location]
        return gate.mean if decisions[gate.attached.name, gate.layer] == "fixed" else 1.0

    def state(path: str) -> Tensor:
        """A parameter of the new mixture: the one of its former change, times its constant gate."""
        at = spec.Location.parse(path)
        if at.change not in origin:
            return old[path][run : run + 1]
        change, before = changes[at.change], origin[at.change]
        source = at._replace(change=before)
        value = old[str(source)][run : run + 1]
        if not any(owner == before for owner, _ in decisions):
            return value
        scale: Any = next((constant(location) for location in gate_at if str(source).startswith(f"{location}.")), 1.0)
        if at.layer is None:  # prefixes are stored per stack: [run, layer, …]
            part = "cross_heads" if at.is_cross else "heads"
            layers = sorted({layer for _, layer in decisions if change.layers is None or layer in change.layers})
            found = [source._replace(layer=layer, part=part) for layer in layers]
            chosen = [location for location in found if location in gate_at]
            value = value[:, [gate_at[location].attached.layer for location in chosen]]  # type: ignore[attr-defined]
            scale = value.new_tensor([constant(location) for location in chosen])[:, None, None]
        return value * scale if takes_weight(change.form, path) else value

    swap(model, new, state, runs=1)
    return origin
