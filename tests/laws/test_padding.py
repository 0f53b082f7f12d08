"""Rule 12: extra padding on either side changes nothing, up to what the plain base itself does; nor does a row of padding alone."""

import inspect

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unipelt
from laws.lawbook import (
    DECODERS,
    ENCODERS,
    FULL,
    SEQ2SEQ,
    WITH_SDPA,
    attached,
    cases,
    equal,
    gradients,
    kernel,
    on_each,
    precision,
    result,
    scalar,
)
from unipelt import Change, Gate, LowRank, Mixture

PADDED = ENCODERS + DECODERS + SEQ2SEQ
COUNTS_REAL_TOKENS = ("roberta", "xlm-roberta", "camembert", "mpnet", "opt")
"""these number their positions by the padding mask themselves, and are given none"""
MOVES = {("bart", "left"), ("mbart", "left")}
"""absolute positions, and no way to give them: the plain base moves"""
EXTRA = {"right": (0, 4), "left": (4, 0)}


def padded(arch: str, model: nn.Module, given: dict[str, Tensor], side: str) -> dict[str, Tensor]:
    """The same real tokens at the same positions, with more padding."""
    real, extra = given["attention_mask"], EXTRA[side]
    more = given | {
        "input_ids": F.pad(given["input_ids"], extra, value=model.config.pad_token_id),
        "attention_mask": F.pad(real, extra),
    }
    if "position_ids" in inspect.signature(type(model).forward).parameters and arch not in COUNTS_REAL_TOKENS:
        more["position_ids"] = F.pad(torch.arange(real.shape[1]).expand_as(real), extra)
    return more


def real_states(model: nn.Module, given: dict[str, Tensor], mask: Tensor) -> Tensor:
    states = result(model(**given))
    return states if "decoder_input_ids" in given else states[mask.bool()]


@pytest.mark.parametrize("side", EXTRA)
@pytest.mark.parametrize("arch", PADDED)
def test_the_plain_base_does_not_move(arch: str, side: str):
    """What the law below stands on; a base that moves is listed."""
    model = tiny.build(arch, "base", dtype=precision(arch), attn=kernel(arch))
    given = tiny.inputs(arch, model)
    more = padded(arch, model, given, side)
    before, after = (real_states(model, g, g["attention_mask"]) for g in (given, more))
    if (arch, side) in MOVES:
        assert (before - after).abs().max() > 1e-3
    else:
        equal(after, before, arch)


@pytest.mark.parametrize(("arch", "mixture"), cases(PADDED, head=False))
def test_extra_padding_changes_nothing(arch: str, mixture: Mixture):
    model = attached(arch, mixture, top="base")
    given = tiny.inputs(arch, model)
    with torch.no_grad():
        before = real_states(model, given, given["attention_mask"])
        for side in EXTRA:
            if (arch, side) not in MOVES:
                more = padded(arch, model, given, side)
                equal(real_states(model, more, more["attention_mask"]), before, arch, what=f"{side} padding")


@pytest.mark.parametrize("arch", on_each("unipelt-apl", PADDED))
def test_the_reference_gate_depends_on_padding(arch: str):
    """U's code averages over all positions: kept as an explicit mode, which this law tells from the default."""
    model = attached(arch, "unipelt-apl(pool='reference')", top="base")
    given = tiny.inputs(arch, model)
    before = real_states(model, given, given["attention_mask"])
    more = padded(arch, model, given, "right")
    assert (real_states(model, more, more["attention_mask"]) - before).abs().max() > 1e-3


def finite_where_the_base_is(arch: str, mixture: str | Mixture, attn: str | None = None) -> None:
    model = attached(arch, mixture, top="base", attn=attn)
    given = tiny.inputs(arch, model)
    given["attention_mask"] = given["attention_mask"].clone()
    given["attention_mask"][1] = 0
    with torch.no_grad(), unipelt.disabled(model):
        if not result(model(**given)).isfinite().all():
            pytest.skip(f"the plain base gives no finite numbers under {attn}")
    states = result(model(**given))
    assert states.isfinite().all()
    scalar(states).backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())
    alone = result(model(**{name: value[::2] for name, value in given.items()}))
    real = given["attention_mask"][::2].bool() if arch not in SEQ2SEQ else ...
    equal(states[::2][real], alone[real], arch, attn, what="the rows beside it")


@pytest.mark.parametrize(("arch", "mixture"), cases(PADDED, head=False))
def test_a_row_of_padding_alone_is_finite(arch: str, mixture: Mixture):
    finite_where_the_base_is(arch, mixture)


@pytest.mark.parametrize(
    ("arch", "preset"),
    [(arch, "unipelt-apl") for arch in on_each("unipelt-apl", tuple(arch for arch in WITH_SDPA if arch in PADDED))]
    + [(arch, preset) for arch in FULL for preset in ("prefix", "unipelt-central", "multi-head-parallel-adapter")],
)
def test_a_row_of_padding_alone_is_finite_under_eager_attention(arch: str, preset: str):
    finite_where_the_base_is(arch, preset, "eager")


def test_a_gate_on_cross_attention_values_takes_the_encoders_mask():
    """The value reads the encoder's output: padding of the source must not move it, and it is no token-wise gate."""
    gate = Change(form=LowRank(r=2), site="value", reads="input", weight=Gate())
    model = attached("bart", Mixture((gate,)), top="base")
    given = tiny.inputs("bart", model)
    more = padded("bart", model, given, "right")
    with unipelt.record_gates(model) as before:
        model(**given)
    with unipelt.record_gates(model) as after:
        model(**more)
    cross = [path for path in before if "cross_value" in path]
    assert len(cross) == 2 and all(before[path][0].shape == (3,) for path in cross)
    for path in before:
        if before[path][0].dim() == 1:
            equal(after[path][0], before[path][0], "bart", what=path)
