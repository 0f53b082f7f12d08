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
from unipelt.inject.fixed_gates import replace_mixture, with_prefix_tables
from unipelt.inject.hooks import BoundChange
from unipelt.inject.merge import merge
from unipelt.inject.record import gate_location, read_tokens, record_gates
from unipelt.inject.state import MixtureState, mixture_state, route
from unipelt.train.forward import evaluating

MAX_DEVIATION, DROP_BELOW = 0.05, 0.02  # at most 0.5 points lost on validation examples: experiments/LOG.md

ModelInputs = Mapping[str, Tensor]
Score = Callable[[Tensor, Tensor], float]
Forward = Callable[[ModelInputs], Tensor]


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
    """largest change of a logit, or of an output of `forward`"""

    def fraction(self, *decisions: str) -> float:
        """The fraction of the gates with one of these decisions."""
        return sum(gate.decision in decisions for gate in self.gates) / len(self.gates)

    def __str__(self) -> str:
        decisions = ("kept", "fixed", "merged", "dropped")
        fractions = ", ".join(f"{self.fraction(decision):.0%} {decision}" for decision in decisions)
        cost = f"; {self.metric} {self.before:.4f} → {self.after:.4f}" if self.metric else ""
        return f"{len(self.gates)} gates over {self.examples} examples: {fractions}; outputs change by at most {self.max_logit_change:.2g}{cost}"


def simplify_gates(
    model: PreTrainedModel,
    data: Iterable[ModelInputs],
    *,
    max_deviation: float = MAX_DEVIATION,
    drop_below: float = DROP_BELOW,
    run: int | None = None,
    score: tuple[str, Score] | None = None,
    forward: Forward | None = None,
) -> GateReport:
    """Replace gates that hardly vary over `data` by their mean, remove changes whose gate is near 0, and merge what is then linear.

    data: batches of model inputs. With `labels`, a metric is measured before and after.
    max_deviation: a gate whose standard deviation is below this becomes a constant; 0 changes nothing.
    drop_below: a change is removed if its gate is constant and has a mean below this.
    run: which run stays, if there are several.
    score: (name, function of all logits and labels) of the metric (default: accuracy for classes, else the model's loss).
    forward: function of a batch that returns what `score` reads in place of the logits of `model(**batch)`; needs `score` where
        there are labels.

    There is one decision per change and layer, over all stacks and sites; gates of one group become constant together. The
    model stays attached: `save` writes an ordinary checkpoint, `detach` restores the base bit for bit. After `load` of that
    checkpoint, `merge(model, unmergeable="keep")` merges again.

    Raises SpecError if there are no gates, or for a threshold out of range, and DataError if there are no examples.
    """
    attached = mixture_state(model)
    _, run_index = attached.locate_run(run)
    for name, value in (("max_deviation", max_deviation), ("drop_below", drop_below)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise SpecError(f"{name}={value!r}: expected a number from 0 to 1, as gates are")
    if not any(isinstance(change.weight, spec.Gate) for change in attached.mixture.changes):
        raise SpecError(
            f"{attached.mixture.name!r} has no gates, so there is nothing to simplify; unipelt.merge(model, unmergeable='keep') merges what is linear"
        )
    if score is not None and not (isinstance(score, tuple) and len(score) == 2 and callable(score[1])):
        raise SpecError(f"score={score!r}: expected a metric's name and its function of logits and labels, as a pair")
    batches: list[Any] = list(data) if isinstance(data, Iterable) else [data]
    for batch in batches or [None]:
        if not isinstance(batch, Mapping) or not batch or not len(next(iter(batch.values()))):
            got = "an empty batch" if isinstance(batch, Mapping) else f"a {type(batch).__name__}" if batches else "none"
            raise DataError(f"data: expected at least one batch of model inputs; got {got}")

    before = _measure(model, batches, run_index, score, forward)
    gates = _gate_statistics(attached, before.gates)
    decisions = _decisions(gates, max_deviation, drop_below)
    former_name = _replace_mixture(model, gates, decisions, run_index)
    merge(model, unmergeable="keep")
    after = _measure(model, batches, 0, score, forward)

    merged = {
        bound.location._replace(change=former_name[bound.name])
        for bound in mixture_state(model).changes
        if bound.merged
    }
    report: dict[str, MeasuredGate] = {}
    for gate in gates:
        decision = "merged" if gate.bound.location in merged else decisions[gate.bound.name, gate.layer]
        path = gate.location
        if path in report and report[path].decision != decision:  # merged at some sites only
            decision = "fixed"
        report[path] = MeasuredGate(path=path, mean=gate.mean, deviation=gate.deviation, decision=decision)
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
    model: PreTrainedModel, batches: Sequence[ModelInputs], run_index: int, score: tuple[str, Score] | None,
    forward: Forward | None,
) -> Measurement:  # fmt: skip
    attached, gate_values = mixture_state(model), defaultdict(list)
    logits, examples = [], 0
    losses: list[tuple[float, int]] = []
    for batch in batches:
        size = len(next(iter(batch.values())))
        with_route: Any = route(model, [run_index] * size) if attached.runs > 1 else nullcontext()
        with evaluating(model), with_route, record_gates(model) as recorded:
            output: Any = model(**batch) if forward is None else forward(batch)
        logits.append((output.logits.flatten(0, -2) if forward is None else output).cpu())
        examples += size
        if forward is None and "labels" in batch:
            losses.append((output.loss.item(), _labels_in_loss(model, batch["labels"])))
        for path, values in recorded.items():
            for value in values:
                value = value if isinstance(attached.get_submodule(path), GroupGate) else value[..., None]
                if value.dim() == 3:
                    value = value[read_tokens(attached, path, value, batch)]
                gate_values[path].append(value.double().cpu())
    measurement = Measurement(
        {path: torch.cat(values) for path, values in gate_values.items()}, torch.cat(logits), examples
    )
    if all("labels" in batch for batch in batches):
        labels = torch.cat([batch["labels"].flatten().cpu() for batch in batches])
        if score is None and len(labels) == examples == len(measurement.logits) and not labels.is_floating_point():
            score = "accuracy", lambda logits, labels: (logits.argmax(dim=-1) == labels).double().mean().item()
        measurement.metric = score[0] if score else "loss"
        measurement.value = score[1](measurement.logits, labels) if score else fmean(*zip(*losses))
    return measurement


def _labels_in_loss(model: PreTrainedModel, labels: Tensor) -> int:
    """The number of labels in the mean of a batch's loss: examples, or tokens with a label."""
    if labels.dim() != 2 or labels.is_floating_point():
        return len(labels)
    causal = model.can_generate() and not model.config.is_encoder_decoder  # each token is predicted from the one before
    return int((labels[:, 1:] if causal else labels).ne(-100).sum())


@dataclass
class GateStatistics:
    """Mean and standard deviation of the gate of one change at one module."""

    bound: BoundChange
    location: str
    layer: int
    mean: float
    deviation: float


def _gate_statistics(attached: MixtureState, gate_values: dict[str, Tensor]) -> list[GateStatistics]:
    paths, statistics = {module: path for path, module in attached.named_modules()}, []
    for bound in attached.changes:
        if not isinstance(bound.change.weight, spec.Gate):
            continue
        path, column = paths[bound.weight], bound.member  # type: ignore[index]
        values = gate_values[path][:, column]
        location = str(gate_location(attached, path, column))
        layer = bound.location.layer or 0
        statistics.append(GateStatistics(bound, location, layer, values.mean().item(), values.std(correction=0).item()))
    return statistics


def _decisions(gates: list[GateStatistics], max_deviation: float, drop_below: float) -> dict[tuple[str, int], str]:
    """The decision for each change and layer. Gates of one group share a softmax, so all of them become constant or none."""
    groups: dict[tuple[str, str, int], list[GateStatistics]] = defaultdict(list)
    for gate in gates:
        group = gate.bound.change.weight.group  # type: ignore[union-attr]
        groups[group, "" if group else gate.bound.name, gate.layer].append(gate)
    decisions: dict[tuple[str, int], str] = {}
    for members in groups.values():
        constant_gates = all(gate.deviation < max_deviation for gate in members)
        for gate in members:
            name, form = gate.bound.name, gate.bound.change.form
            needed = isinstance(form, spec.Prefix) and form.function == "softmax"
            negligible = all(other.mean < drop_below for other in members if other.bound.name == name) and not needed
            decisions[name, gate.layer] = "kept" if not constant_gates else "dropped" if negligible else "fixed"
    return decisions


def _replace_mixture(
    model: PreTrainedModel, gates: list[GateStatistics], decisions: dict[tuple[str, int], str], run: int
) -> dict[str, str]:
    """Replace the gated mixture by the simpler one. Return the former name of each change by its new name.

    A change that keeps its gate in some layers only is split into two changes.
    """
    mixture, old_parameters = with_prefix_tables(mixture_state(model))
    new_changes: list[tuple[str, spec.Change]] = []
    for name, change in mixture.named():
        decision_of = {layer: decision for (owner, layer), decision in decisions.items() if owner == name}
        if not decision_of:
            new_changes.append((name, change))
        for outcome, weight in (("kept", change.weight), ("fixed", 1.0)):
            layers = tuple(sorted(layer for layer, decision in decision_of.items() if decision == outcome))
            if layers:
                new_layers = change.layers if len(layers) == len(decision_of) else layers
                new_changes.append((name, replace(change, weight=weight, layers=new_layers)))
    new = spec.Mixture(tuple(change for _, change in new_changes), mixture.name)
    changes = dict(new.named())
    former_name = {name: former for name, (former, _) in zip(changes, new_changes)}
    gate_at = {gate.bound.location: gate for gate in gates}

    def constant(location: spec.Location) -> float:
        gate = gate_at[location]
        return gate.mean if decisions[gate.bound.name, gate.layer] == "fixed" else 1.0

    def parameter(path: str) -> Tensor:
        """A parameter of the new mixture: the one of its former change, times its constant gate."""
        location = spec.Location.parse(path)
        if location.change not in former_name:
            return old_parameters[path][run : run + 1]
        change, former = changes[location.change], former_name[location.change]
        source = location._replace(change=former)
        value = old_parameters[str(source)][run : run + 1]
        if not any(owner == former for owner, _ in decisions):
            return value
        scale: Any = next((constant(gated) for gated in gate_at if str(source).startswith(f"{gated}.")), 1.0)
        if location.layer is None:  # prefixes are stored per stack: [run, layer, …]
            part = "cross_heads" if location.is_cross else "heads"
            layers = sorted({layer for _, layer in decisions if change.layers is None or layer in change.layers})
            locations = [source._replace(layer=layer, part=part) for layer in layers]
            locations = [gated for gated in locations if gated in gate_at]
            value = value[:, [gate_at[gated].bound.layer for gated in locations]]  # type: ignore[attr-defined]
            scale = value.new_tensor([constant(gated) for gated in locations])[:, None, None]
        return value * scale if takes_weight(change.form, path) else value

    replace_mixture(model, new, parameter, runs=1)
    return former_name
