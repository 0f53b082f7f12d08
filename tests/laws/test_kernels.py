"""Law 17: eager and SDPA attention agree, also when switched after attach; compiled whole, a model agrees with itself."""

import pytest
import tiny
import torch
from torch import nn

import unipelt
from laws.lawbook import WITH_SDPA, attached, cases, equal, gradients, on_each, result, scalar
from unipelt import Mixture, UserError

INDUCTED = ("bert", "llama", "t5")


def outcome(model: nn.Module, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The output, and every gradient."""
    model.zero_grad()
    output = result(model(**given))
    scalar(output).backward()
    return {"output": output.detach()} | {name: gradient.clone() for name, gradient in gradients(model).items()}


def agree(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], arch: str, attn: str) -> None:
    assert actual.keys() == expected.keys()
    for name in expected:
        equal(actual[name], expected[name], arch, attn, what=name)


@pytest.mark.parametrize(("arch", "mixture"), cases(WITH_SDPA))
def test_eager_and_sdpa_agree_and_may_be_switched(arch: str, mixture: Mixture):
    model = attached(arch, mixture, attn="sdpa")
    given = tiny.inputs(arch, model)
    sdpa = outcome(model, given)
    model.set_attn_implementation("eager")
    agree(outcome(model, given), sdpa, arch, "eager")
    model.set_attn_implementation("sdpa")
    agree(outcome(model, given), sdpa, arch, "sdpa")
    agree(outcome(attached(arch, mixture, attn="eager", dtype=torch.float64), given), sdpa, arch, "eager")


@pytest.mark.parametrize("arch", on_each("prefix", WITH_SDPA))
def test_detach_leaves_the_kernel_that_was_set_last(arch: str):
    model = attached(arch, "prefix", attn="sdpa")
    model.set_attn_implementation("eager")
    model(**tiny.inputs(arch, model))
    assert unipelt.detach(model).config._attn_implementation == "eager"


@pytest.mark.parametrize("arch", ["bert", "llama"])
def test_a_kernel_that_prefixes_do_not_know_is_refused(arch: str):
    model = attached(arch, "prefix")
    model.config._attn_implementation_internal = "flex_attention"
    with pytest.raises(UserError, match="'flex_attention' with a prefix: expected one of eager, sdpa"):
        model(**tiny.inputs(arch, model))


@pytest.mark.parametrize("arch", on_each("prefix", ("bert", "gpt2", "llama", "bart", "t5", "vit", "modernbert")))
def test_attention_weights_are_given_under_eager(arch: str):
    """One column for each prefix position stands in front; a row sums to 1."""
    model = attached(arch, "prefix", attn="eager")
    plain = unipelt.detach(attached(arch, "prefix", attn="eager"))
    given = tiny.inputs(arch, model)
    with torch.no_grad():
        weights, without = (model_(**given, output_attentions=True) for model_ in (model, plain))
    name = "encoder_attentions" if "encoder_attentions" in weights else "attentions"
    for mine, its in zip(weights[name], without[name]):
        assert mine.shape == (*its.shape[:-1], its.shape[-1] + 3)
        equal(mine.sum(dim=-1), torch.ones_like(mine[..., 0]), arch, "eager")


def compiled(arch: str, preset: str, backend: str, **options) -> None:
    model = attached(arch, preset, **options)
    given = tiny.inputs(arch, model, batch=4)
    expected = outcome(model, given)
    torch._dynamo.reset()
    whole = torch.compile(model, fullgraph=True, backend=backend)
    model.zero_grad()
    output = result(whole(**given))
    scalar(output).backward()
    actual = {"output": output.detach()} | {name: gradient.clone() for name, gradient in gradients(model).items()}
    agree(actual, expected, arch, None)
    torch._dynamo.reset()


@pytest.mark.parametrize("arch", tiny.ARCHITECTURES)
def test_compiled_whole_it_agrees_with_itself(arch: str):
    """No graph break: fullgraph refuses one."""
    compiled(arch, "unipelt-apl" if arch in on_each("unipelt-apl") else "adapter", "aot_eager")


@pytest.mark.parametrize("arch", ["bert", "llama", "bart"])
def test_a_fleet_compiled_whole_agrees_with_itself(arch: str):
    compiled(arch, "unipelt-apl", "aot_eager", runs=2)


@pytest.mark.inductor
@pytest.mark.parametrize("arch", INDUCTED)
def test_compiled_by_inductor_it_agrees_with_itself(arch: str):
    compiled(arch, "unipelt-apl", "inductor")
