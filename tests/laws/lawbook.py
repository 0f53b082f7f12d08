"""What every law runs over: each preset, each compatible change, each architecture, made small; and how close is equal.

Whoever registers a form, a preset or an architecture finds it here without another line.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

import unipelt
from unipelt.inject.architectures import ARCHITECTURES, Stack
from unipelt.inject.resolve import ResolvedStack, find_stacks
from unipelt.inject.state import attached_state
from unipelt.spec import (
    FORMS,
    PRESETS,
    RULES,
    Bottleneck,
    Change,
    Dora,
    Form,
    Gate,
    Kronecker,
    Learned,
    LowRank,
    Mixture,
    Prefix,
    Prompt,
)
from unipelt.spec.compatibility import LINEARS

SIZES = {"bottleneck": 6, "length": 3, "prefix": 3, "mlp": 5, "r": 2, "terms": 2}
FORM_SETTINGS: dict[str, tuple[Form, ...]] = {
    "bottleneck": (Bottleneck(size=6, norm=True),),
    "kronecker": (Kronecker(size=4, terms=2, rank=2),),
    "low_rank": (LowRank(r=2, alpha=3.0),),
    "dora": (Dora(r=2, alpha=3.0),),
    "prompt": (Prompt(length=3), Prompt(length=2, init="uniform")),
    "prefix": (Prefix(length=3, mlp=0), Prefix(length=3, mlp=5, init="torch"), Prefix(length=3, function="relu")),
}
THOROUGH = ("bart",)
SMALL_GENERATIONS = ("llama", "bart", "t5")
VARIED = (*THOROUGH, "bert", "gpt_neox", "opt", "llama", "t5")
"""every compatible change runs over the thorough one; each line of the table, with its first form, over the varied ones: fused
and interleaved, flattened FFN, grouped heads, shared position bias"""

ENCODERS, DECODERS, SEQ2SEQ = (
    tuple(name for name, t in tiny.ARCHITECTURES.items() if t.kind == kind)
    for kind in ("encoder", "decoder", "encoder-decoder")
)
GENERATORS = DECODERS + SEQ2SEQ
WITH_SDPA = tuple(name for name, t in tiny.ARCHITECTURES.items() if "sdpa" in t.attention)


def small(preset: str, **options: Any) -> Mixture:
    """A preset with sizes that suit a tiny model."""
    known = inspect.signature(PRESETS[preset]).parameters
    sizes = {name: size for name, size in SIZES.items() if name in known}
    return Mixture(PRESETS[preset](**(sizes | options)).changes, preset)


def rows(arch: str) -> tuple[Stack, ...]:
    return ARCHITECTURES[arch]


def is_pre_norm(arch: str) -> bool:
    return rows(arch)[0].ffn_norm is None


def has_biases(arch: str) -> bool:
    return any(p.endswith("bias") for p, _ in tiny.build(arch, "base").named_parameters())


BIASED = {arch: has_biases(arch) for arch in tiny.ARCHITECTURES}


def why_refused(arch: str, mixture: Mixture, runs: int = 1) -> str | None:
    """The words of the refusal of a mixture that an architecture has no place for."""
    for change in mixture.changes:
        of_positions = {"query", "key", "biases"} | {site for site in change.sites if site.startswith(LINEARS)}
        if rows(arch)[0].positions and of_positions & {*change.sites} and (runs > 1 or isinstance(change.weight, Gate)):
            return "have no batch axis"
        if change.form.name == "prompt" and tiny.ARCHITECTURES[arch].kind == "vision":
            return "takes no embedded tokens"
        if change.form.name == "prefix" and not rows(arch)[0].attention.prefix:
            return "calls none of transformers' attention functions"
        if "ffn_hidden" in change.sites and arch == "mixtral":
            return "expected one"
        if change.form.name == "bias" and not BIASED[arch]:
            return "no biases to tune"
        if (change.reads, change.site) == ("normed sum", "attention") and rows(arch)[0].attention.norm is None:
            return "no LayerNorm over attention output and residual"
    return None


def compatible_changes(arch: str) -> dict[str, Mixture]:
    """One mixture for each line of the table of compatible combinations; a group needs a second member."""
    query = rows(arch)[0].attention.query.rsplit(".", 1)[-1]
    mixtures = {}
    for law in RULES:
        forms, weights = law.forms, law.weights
        if arch not in THOROUGH:
            forms, weights = forms[:1], tuple(weight for weight in weights if weight != "learned")
        for name, site, reads, kind in product(forms, law.sites, law.reads, weights):
            for i, form in enumerate(FORM_SETTINGS.get(name, (FORMS[name](),))):
                weight = {"number": 0.7, "learned": Learned(start=0.7), "gate": Gate(), "group": Gate(group="g")}[kind]
                target = query if kind == "group" else "all-linear"
                change = Change(form=form, site=site + target if site == LINEARS else site, reads=reads, weight=weight)
                other = Change(form=LowRank(r=2), site="key", reads="input", weight=Gate(group="g"))
                label = f"{kind}*{name}{i or ''}({reads.replace(' ', '_')})@{site.rstrip(':')}"
                mixtures[label] = Mixture((change, other) if kind == "group" else (change,), label)
    return mixtures


def changes_together(arch: str, runs: int) -> dict[str, Mixture]:
    """The same changes, refusals apart, several in one mixture: a change that is wrong makes its mixture wrong.

    One mixture for each kind of weight, on the thorough one for each form and kind of weight.
    """
    together: dict[str, list[Change]] = {}
    for label, mixture in compatible_changes(arch).items():
        if why_refused(arch, mixture, runs) is None:
            together.setdefault(label.partition("(" if arch in THOROUGH else "*")[0], []).extend(mixture.changes)
    return {label: Mixture(tuple(dict.fromkeys(changes)), label) for label, changes in together.items()}


FULL = ("bert", "llama", "bart")
"""one architecture of each kind, on which every preset is tried"""
COVERING = ("unipelt-apl", "houlsby", "bitfit", "adapter", "lora")
"""presets that have every form but two between them, and every kind of site: together they are tried on every architecture"""


def presets_of(arch: str, runs: int = 1) -> list[str]:
    """Those that a law is tried with alone: all on three architectures; on each other two in turn, so that each preset is tried
    on several architectures of each kind."""
    taken = [preset for preset in PRESETS if why_refused(arch, small(preset), runs) is None]
    if arch in FULL:
        return taken
    turn = 2 * list(tiny.ARCHITECTURES).index(arch)
    return [taken[turn % len(taken)], taken[(turn + 1) % len(taken)]]


def covering(arch: str, runs: int) -> Mixture:
    """The presets of COVERING that an architecture takes, as one mixture: a change that is wrong makes the mixture wrong."""
    taken = [small(preset) for preset in COVERING if why_refused(arch, small(preset), runs) is None]
    return Mixture(tuple(dict.fromkeys(change for mixture in taken for change in mixture.changes)), "covering")


def cases(
    archs: tuple[str, ...] = tuple(tiny.ARCHITECTURES),
    varied: tuple[str, ...] = VARIED,
    runs: int = 1,
    head: bool = True,
) -> list:
    """Presets on each architecture, and every compatible change on the varied ones of them, refusals apart.

    head: whether the models have one; without, the preset `head` has nothing to train.
    """
    found = [(arch, small(preset)) for arch in archs for preset in presets_of(arch, runs) if head or preset != "head"]
    found += [(arch, covering(arch, runs)) for arch in archs if arch not in FULL]
    found += [(arch, mixture) for arch in varied if arch in archs for mixture in changes_together(arch, runs).values()]
    return [pytest.param(a, m, id=f"{a}-{m.name}") for a, m in found]


def on_each(preset: str, archs: tuple[str, ...] = tuple(tiny.ARCHITECTURES), runs: int = 1) -> list[str]:
    """The architectures that take a preset."""
    return [arch for arch in archs if why_refused(arch, small(preset), runs) is None]


def kernel(arch: str) -> str:
    """The attention implementation that leaves a float64 model alone, where there is one."""
    t = tiny.ARCHITECTURES[arch]
    return (t.float64 or t.attention)[-1]


def precision(arch: str, attn: str | None = None) -> torch.dtype:
    """float64, but where a float64 model turns to NaN under eager attention in a causal row that sees only padding."""
    attn = attn or kernel(arch)
    return torch.float32 if attn == "eager" and attn not in tiny.ARCHITECTURES[arch].float64 else torch.float64


def attached(
    arch: str,
    what: str | Mixture | list[Mixture],
    *,
    runs: int | list[int] = 1,
    top: Any = "classifier",
    attn: str | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    drawn: bool = True,
    build: dict[str, Any] | None = None,
    **options: Any,
) -> nn.Module:
    """A tiny base with a mixture, every tuned parameter randomised unless `drawn` is False."""
    model = tiny.build(arch, top, seed, dtype or precision(arch, attn), attn or kernel(arch), **(build or {}))
    unipelt.attach(model, small(what) if isinstance(what, str) and what in PRESETS else what, runs=runs, **options)
    if drawn:
        randomise(model, seed)
    return model


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """No tuned parameter is zero, and no two runs are alike."""
    generator = torch.Generator().manual_seed(seed + 1)
    for parameter in attached_state(model).parameters():
        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def without_dropout(model: nn.Module) -> nn.Module:
    """For laws in training mode: every probability of dropping is 0."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    return model


def result(output: Any) -> Tensor:
    """Logits, or the last hidden states of a bare base."""
    return output.logits if hasattr(output, "logits") else output.last_hidden_state


def scalar(output: Tensor) -> Tensor:
    """A loss whose gradient differs at each number of a row of the output, and does not know the other rows."""
    weights = torch.linspace(0.5, 2.0, output[0].numel(), dtype=output.dtype).reshape(output.shape[1:])
    return (output * weights * output.cos()).sum()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in attached_state(model).named_parameters() if p.grad is not None}


def is_exact(arch: str, attn: str | None = None) -> bool:
    """Whether a float64 model of this architecture computes in float64 throughout."""
    return (attn or kernel(arch)) in tiny.ARCHITECTURES[arch].float64


def equal(actual: Tensor, expected: Tensor, arch: str, attn: str | None = None, what: str = "") -> None:
    """Equal up to float64's rounding, or float32's where the base passes through it; relative to the largest number."""
    error = 1e-10 if is_exact(arch, attn) else 3e-5
    scale = expected.detach().abs().max().clamp(min=1).item() if expected.numel() else 1.0
    alike = actual.shape == expected.shape and actual.dtype == expected.dtype
    if alike and ((actual - expected).detach().abs() <= error * scale).all():
        return  # assert_close, which tells how numbers differ, takes ten times as long
    torch.testing.assert_close(actual, expected, atol=error * scale, rtol=0, msg=lambda text: f"{what}: {text}")


def stacks(model: nn.Module) -> list[ResolvedStack]:
    return find_stacks(model, None)


@contextmanager
def listen(model: nn.Module, path: str) -> Iterator[list[tuple[Any, dict[str, Any], Any]]]:
    """(args, kwargs, output) of each call of one module, as what is around it sees them."""
    calls: list[tuple[Any, dict[str, Any], Any]] = []
    hook = model.get_submodule(path).register_forward_hook(
        lambda _, args, kwargs, output: calls.append((args, kwargs, output)), with_kwargs=True
    )
    try:
        yield calls
    finally:
        hook.remove()


def first(value: Any) -> Tensor:
    """The hidden states in a module's output or arguments."""
    return value[0] if isinstance(value, tuple) else value


def real_tokens(given: dict[str, Tensor], stack: Stack) -> Tensor | None:
    """True at the real tokens of a stack's stream; None where all are real."""
    if stack.name == "decoder" and "decoder_input_ids" in given:
        return None
    mask = given.get("attention_mask")
    return None if mask is None else mask.bool()
