"""Rule 17: eager and SDPA attention agree, also when switched after attach; compiled whole, a model agrees with itself."""

import pytest
import tiny
import torch
from torch import nn

import unipelt
from laws.lawbook import WITH_SDPA, attached, cases, equal, gradients, on_each, result, scalar
from unipelt import Mixture, UserError
from unipelt.inject.state import mixture_state

INDUCTED = ("bert", "llama")
WHOLE = ("gpt_neox", "bart", "vit", "mixtral")
"""ways to hook attention and FFN that test_compiled.py does not compile: interleaved projections, two stacks, images, experts"""
LOOPLESS = {"mixtral": {"experts_implementation": "batched_mm"}}
"""the loop over the experts that were hit depends on the data, and compiles for no base"""


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


@pytest.mark.parametrize(("arch", "mixture"), cases(WITH_SDPA, ("bart",)))
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


def test_a_refused_attach_marks_no_config():
    model = tiny.build("t5", "generator", attn="sdpa")
    configs = list(
        {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}.values()
    )
    configs[-1]._attn_implementation_internal = "flex_attention"
    before = [config._attn_implementation for config in configs]
    with pytest.raises(UserError, match="'flex_attention' with a prefix"):
        unipelt.attach(model, "prefix(mlp=0)")
    assert [config._attn_implementation for config in configs] == before


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


def compiled(arch: str, preset: str, backend: str, learns: bool = True, **options) -> None:
    model = attached(arch, preset, build=LOOPLESS.get(arch, {}) | one_layer(arch), **options)
    given = tiny.inputs(arch, model, batch=4)
    torch._dynamo.reset()
    whole = torch.compile(model, fullgraph=True, backend=backend)
    try:
        with torch.set_grad_enabled(learns):
            expected, actual = result(model(**given)), result(whole(**given))
    finally:
        torch._dynamo.reset()
    equal(actual, expected, arch)
    if not learns:
        return
    of = dict(mixture_state(model).named_parameters())
    pairs = (torch.autograd.grad(scalar(output), of.values(), allow_unused=True) for output in (expected, actual))
    for name, without, mine in zip(of, *pairs):
        equal(mine, without, arch, what=name)


def one_layer(arch: str) -> dict[str, int]:
    """Compiling takes as long as there are layers."""
    fields = vars(tiny.build(arch, "base").config)
    names = ("num_hidden_layers", "num_layers", "num_decoder_layers", "n_layer", "n_layers", "encoder_layers")
    return {n: 1 for n in (*names, "decoder_layers") if n in fields and not fields.get("layer_types")}


@pytest.mark.parametrize("arch", on_each("unipelt-apl", WHOLE))
def test_compiled_whole_it_agrees_with_itself(arch: str):
    """No graph break: fullgraph refuses one."""
    compiled(arch, "unipelt-apl", "aot_eager", learns=False)


@pytest.mark.parametrize("preset", ["lora", "adapter"])
@pytest.mark.parametrize("arch", ["deberta-v2"])
def test_compiled_whole_it_agrees_with_itself_without_a_prefix(arch: str, preset: str):
    compiled(arch, preset, "aot_eager", learns=False)


@pytest.mark.parametrize(("arch", "runs"), [("bert", 2), ("t5", 1)])
def test_compiled_whole_it_learns_the_same(arch: str, runs: int):
    compiled(arch, "unipelt-apl", "aot_eager", runs=runs)


@pytest.mark.inductor
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)  # torch hides it itself
@pytest.mark.parametrize("arch", INDUCTED)
def test_compiled_by_inductor_it_agrees_with_itself(arch: str):
    compiled(arch, "unipelt-apl", "inductor", learns=arch == "bert", top="base")
