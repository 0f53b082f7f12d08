"""Hooks that apply changes to modules of a base: at most one pre-hook and one hook per module, which apply its changes in tuple order."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unipelt import spec
from unipelt.forms.dora import Dora
from unipelt.forms.gate import ScoredGate, mean_of_prompt, mean_of_real, mean_weights
from unipelt.forms.low_rank import LowRank
from unipelt.inject.context import Context, ForwardState, argument, parameters_of
from unipelt.inject.hook_points import HookPoint

GateValue = Float[Tensor, "rows _ 1"]
Inputs = Float[Tensor, "rows ... inputs"]
Outputs = Float[Tensor, "rows ... outputs"]
"""what a change reads, and what it adds to, for the rows of one mixture"""


class BoundChange:
    """One change at one module: w · Δ(reads). weight: a number, or a module called with (h, token weights, route)."""

    merged = False
    """whether it is written into its module's weight: see `merge`"""

    def __init__(
        self, change: spec.Change, point: HookPoint, form: nn.Module, weight: float | nn.Module,
        *, member: int = 0, mixture: int = 0,
    ):  # fmt: skip
        """member: column of this change in the gate of its group; mixture: number of its mixture, of several side by side."""
        self.change, self.point, self.form, self.weight = change, point, form, weight
        self.member, self.mixture = member, mixture
        self.location, self.path, self.name = point.location, point.path, point.location.change

    def takes_part(self, context: Context) -> bool:
        layer = self.location.layer
        return self.mixture == context.mixture and (layer is None or layer >= context.dropped)

    def delta(self, x: Inputs, context: Context, plain: Outputs | None = None) -> Float[Tensor, "#rows ... outputs"]:
        """w Δ(x); a bias is the same for all rows and positions. plain: the module's output for x before all changes, if it is
        known."""
        form: Any = module_of(self.form, context)
        delta = form(x, context.route, plain) if isinstance(form, Dora) else form(x, context.route)
        if not isinstance(self.weight, nn.Module):
            return delta if self.weight == 1 else delta * self.weight
        return delta * self.weight_value(x, context).to(delta.dtype)

    def add_to(self, h: Outputs, x: Inputs, context: Context, plain: Outputs | None = None) -> Outputs:
        """h + w Δ(x), in one pass over h if w is a gate; a number or a learned scalar is rounded as α/r is in peft.

        The result has the dtype of h: T5 in half precision keeps some weights, and so some inputs of Δ, in float32.
        """
        if not isinstance(self.weight, ScoredGate):
            return h + self.delta(x, context, plain).to(h.dtype)
        form: Any = module_of(self.form, context)
        if isinstance(form, LowRank):
            return form.onto(h, x, self.weight_value(x, context), context.route)
        delta = form(x, context.route).to(h.dtype)
        return torch.addcmul(h, delta, self.weight_value(x, context).to(h.dtype))

    def weight_value(self, x: Inputs, context: Context) -> GateValue:
        """The value of a gate or of a learned scalar, per row or per token."""
        assert isinstance(self.weight, nn.Module)
        gate: Any = module_of(self.weight, context)
        if getattr(gate, "pool", None) is mean_of_prompt:
            value = self._prompt_gate(gate, x, context)
        else:
            value = gate(x, context.encoder_weights if self.point.source else context.token_weights, context.route)
        return value[..., self.member : self.member + 1]

    def _prompt_gate(self, gate: nn.Module, x: Tensor, context: Context) -> Tensor:
        """The gate's value for the prompt; with a cache, the one of the forward that filled it."""
        if context.prompt_gates is None:
            return gate(x, context.prompt_weights, context.route)
        values, key = context.prompt_gates.values, (self.mixture, *self.location)
        if key not in values:
            values[key] = gate(x, context.prompt_weights, context.route)
        return values[key]


def module_of(module: nn.Module, context: Context) -> nn.Module:
    """The module itself, or DataParallel's copy of it on the device of this thread."""
    return module if context.replica is None else context.replica.get_submodule(str(module.path))


class ModuleHook:
    """The changes of one module: h ← h + w Δ for each, in tuple order; for `normed sum` changes LN(s) ← LN(s + w Δ(LN(s))).

    With several mixtures, each changes only its own rows.
    """

    def __init__(self, forwards: ForwardState):
        self.forwards = forwards
        self.changes: list[BoundChange] = []

    def before(self, module: nn.Module, args: tuple) -> tuple | None:
        """Pre-hook: changes the module's input, such as the concatenated heads before the output projection."""
        self.forwards.thread.intercept_products(False)
        changed_args = self._before(args)
        self.forwards.thread.intercept_products(True)
        return changed_args

    def _before(self, args: tuple) -> tuple | None:
        context = self.forwards.context_for(args[0])
        if context is None:
            return None

        def change_input(context: Context, h: Tensor) -> Tensor:
            for change in self._active(context):
                h = change.add_to(h, self._read(change, context, h), context)
            return h

        rows = context.apply(change_input, self._rows(args[0], context))
        return (rows.reshape(args[0].shape), *args[1:])

    def after(self, module: nn.Module, args: tuple, output: Any) -> Any:
        """Forward hook: changes the module's output."""
        self.forwards.thread.intercept_products(False)
        changed = self._after(module, args, output)
        self.forwards.thread.intercept_products(True)
        return changed

    def _after(self, module: nn.Module, args: tuple, output: Any) -> Any:
        y = output[0] if isinstance(output, tuple) else output
        context = self.forwards.context_for(args[0] if args else y)
        if context is None:
            return None
        x = self._rows(args[0], context) if args else None

        def change_output(context: Context, x: Any, y: Tensor) -> Tensor:
            return self._change_output(module, x, y, self._active(context), context)

        rows = self._rows(y, context)
        if x is not None and rows.dim() == 2 and x.dim() == 3 and len(rows) == x.shape[0] * x.shape[1]:
            rows = rows.unflatten(0, x.shape[:2])  # a sparse FFN that returns [batch·seq, d] for [batch, seq, d]
        changed = context.apply(change_output, x, rows)
        if changed.shape != y.shape:  # only if needed: FSDP warns about layers that return views
            changed = changed.reshape(y.shape)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    def _change_output(
        self, module: nn.Module, x: Any, y: Tensor, changes: list[BoundChange], context: Context
    ) -> Tensor:
        """The module's output for x after these changes. y: its output before any change.

        A `normed sum` change alters the input s of the norm, so the norm and the earlier changes are applied again to the new s.
        """
        if not changes:
            return y
        *earlier, change = changes
        y = self._change_output(module, x, y, earlier, context)
        if change.point.reads == "normed sum":
            s = change.add_to(x, y, context)
            return self._change_output(module, s, module.forward(s), earlier, context)
        read = self._read(change, context, x if change.point.reads == "input" else y)
        plain = None if earlier else y
        if (columns := change.point.columns) is not None:
            taken = columns.take(y)
            read = read if change.point.reads == "input" else taken
            return columns.add(y, change.delta(read, context, None if plain is None else taken).to(y.dtype))
        return change.add_to(y, read, context, plain)

    def _active(self, context: Context) -> list[BoundChange]:
        return [change for change in self.changes if change.takes_part(context)]

    def _read(self, change: BoundChange, context: Context, of_module: Tensor) -> Tensor:
        """The tensor that a change reads: the captured one, or the module's own input or output."""
        if change.point.captured is None:
            return of_module
        read = self._rows(self.forwards.thread.captured[change.point.captured], context)
        return read if context.rows is None else read[context.rows]

    def _rows(self, x: Tensor, context: Context) -> Tensor:
        """Unflatten [batch·seq, d] (the FFN of OPT) to [batch, seq, d], because runs and gates belong to rows."""
        batch = context.batch
        if x.dim() != 2 or x.shape[0] == batch or x.shape[0] % batch:
            return x
        return x.unflatten(0, (batch, -1))


class HeadHook:
    """Forward hook: replaces a head module's output by that of each row's run. modules: one for each mixture."""

    def __init__(self, modules: Sequence[nn.Module], forwards: ForwardState):
        self.modules, self.forwards = modules, forwards

    def after(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        context = self.forwards.context_for(args[0])
        return None if context is None else context.apply(self._output, args[0])

    def _output(self, context: Context, x: Tensor) -> Float[Tensor, "rows *seq widest"]:
        """Classes that another mixture's head has and this one lacks have the logit -inf."""
        y = module_of(self.modules[context.mixture], context)(x, context.route)
        widest = max(module.weight.shape[1] for module in self.modules)  # type: ignore[index]
        return y if y.shape[-1] == widest else F.pad(y, (0, widest - y.shape[-1]), value=-torch.inf)


class Pooling:
    """Forward hook: gives the head the mean over real tokens, or the first token, in place of the model's own pooling."""

    def __init__(self, mean: bool, base: nn.Module, forwards: ForwardState):
        self.mean, self.names, self.forwards = mean, parameters_of(base), forwards

    def after(self, base: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        if self.forwards.thread.disabled:
            return None
        states, mask = output.last_hidden_state, argument(self.names, args, kwargs, "attention_mask")
        longer = self.forwards.thread.prompted_input
        if self.mean:
            if mask is not None and longer is not None and mask.shape[1] == longer.full:
                mask = longer.of_tokens(mask[..., None])[..., 0]
            mask = None if mask is None else mask[:, -states.shape[1] :]
            weights = None if mask is None else mean_weights(mask, states.dtype)
            pooled = mean_of_real(states, weights)[:, 0].to(states.dtype)
        else:
            pooled = states[:, 0]
        if getattr(output, "pooler_output", None) is not None:
            return type(output)(**{**output, "pooler_output": pooled})
        return type(output)(**{**output, "last_hidden_state": torch.cat([pooled[:, None], states[:, 1:]], dim=1)})
