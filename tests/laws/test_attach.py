"""Rule 16: attach and detach leave no trace; copies are independent; a model that has been compiled is refused or obeyed."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from threading import Barrier

import pytest
import tiny
import torch
from torch import Tensor, nn

import unipelt
from laws.lawbook import (
    attached,
    cases,
    equal,
    kernel,
    on_each,
    precision,
    randomise,
    result,
    rows,
    small,
    stacks,
)
from unipelt import Mixture, UserError
from unipelt.inject.state import mixture_state

SOME = ("bert", "deberta-v2", "gpt2", "llama", "mixtral", "bart", "t5", "vit")


def plain(arch: str) -> nn.Module:
    model = tiny.build(arch, dtype=precision(arch), attn=kernel(arch))
    next(model.parameters()).requires_grad_(False)  # one that was frozen before
    return model


def traces(model: nn.Module) -> dict:
    """Whatever attach could leave behind, apart from numbers."""
    return {
        "modules": [name for name, _ in model.named_modules()],
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "hooks": {
            name: [list(getattr(module, kind).values()) for kind in vars(module) if kind.endswith("_hooks")]
            for name, module in model.named_modules()
        },
        "keywords": {
            name: [dict(getattr(module, kind)) for kind in vars(module) if kind.endswith("_hooks_with_kwargs")]
            for name, module in model.named_modules()
        },
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "kernels": {name: m.config._attn_implementation for name, m in model.named_modules() if hasattr(m, "config")},
        "config": model.config.to_dict(),
        "forward": {name: module.forward.__func__ for name, module in model.named_modules()},
        "classes": {name: type(module) for name, module in model.named_modules()},
        "training": {name: module.training for name, module in model.named_modules()},
        "ignored": model._keys_to_ignore_on_save,
    }


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(before: tuple, model: nn.Module, given: dict) -> None:
    what, weights, output = before
    after = traces(model)
    for kind in what:
        assert after[kind] == what[kind], kind
    assert list(model.state_dict()) == list(weights)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    torch.testing.assert_close(result(model(**given)), output, rtol=0, atol=0)


def snapshot(model: nn.Module, given: dict) -> tuple:
    return traces(model), state(model), result(model(**given)).detach()


@pytest.mark.parametrize(("arch", "mixture"), cases(varied=("bart",)))
def test_detach_gives_the_base_back(arch: str, mixture: Mixture):
    model = plain(arch)
    given = tiny.inputs(arch, model)
    before = snapshot(model, given)
    randomise(unipelt.attach(model, mixture, runs=1))
    result(model(**given)).sum().backward()
    unipelt.detach(model)
    assert all(p.grad is None for p in model.parameters())
    assert_same(before, model, given)


def test_a_module_that_came_after_attach_stays_as_it_is():
    model = unipelt.attach(tiny.build("bert"), "lora")
    model.value_head = torch.nn.Linear(3, 1)
    model.value_head.bias.requires_grad_(False)
    unipelt.detach(model)
    assert model.value_head.weight.requires_grad and not model.value_head.bias.requires_grad
    assert "save_pretrained" not in vars(model)


@pytest.mark.parametrize("arch", tiny.ARCHITECTURES)
@torch.no_grad()  # SDPA takes another kernel for weights that require gradients, and rounds otherwise
def test_inside_disabled_it_is_the_base(arch: str):
    model = plain(arch)
    given = tiny.inputs(arch, model)
    before = result(model(**given))
    unipelt.attach(model, "unipelt-apl" if arch in on_each("unipelt-apl") else "adapter")
    changed = result(randomise(model)(**given))
    with unipelt.disabled(model):
        torch.testing.assert_close(result(model(**given)), before, rtol=0, atol=0)
    torch.testing.assert_close(result(model(**given)), changed, rtol=0, atol=0)


INSIDE = {
    "disabled": unipelt.disabled,
    "dropped": lambda model: unipelt.dropped(model, 1),
    "everything dropped": lambda model: unipelt.dropped(model, 2),
    "merged": lambda model: nullcontext(unipelt.merge(model, unmergeable="keep")),
}


@pytest.mark.parametrize("inner", INSIDE)
@torch.no_grad()
def test_what_registers_other_hooks_inside_disabled_leaves_it_the_base(inner: str):
    model = plain("bert")
    given = tiny.inputs("bert", model)
    base = result(model(**given))
    changed = result(randomise(unipelt.attach(model, "lora", head="frozen"))(**given))
    with unipelt.disabled(model):
        with INSIDE[inner](model):
            assert torch.equal(result(model(**given)), base)
        assert torch.equal(result(model(**given)), base)
    equal(result(model(**given)), changed, "bert")


TAKEN = {"detached": unipelt.detach, "merged": unipelt.merge, "gates fixed": lambda m: unipelt.fix_gates(m, {"bottleneck_ffn": 0.5}),
         "merged in part": lambda model: unipelt.merge(model, unmergeable="keep")}  # fmt: skip


@pytest.mark.parametrize(
    "block", [unipelt.disabled, lambda model: unipelt.dropped(model, 1)], ids=["disabled", "dropped"]
)
@pytest.mark.parametrize("what", TAKEN)
@torch.no_grad()
def test_what_takes_a_mixture_away_inside_a_block_does_so_for_good(what: str, block):
    """No hook of what was attached before the block comes back with its end, and none is lost."""
    mixture = small("lora" if what == "merged" else "unipelt-apl-nogate" if what == "merged in part" else "unipelt-apl")
    given = tiny.inputs("bert", plain("bert"))
    model, other = (randomise(unipelt.attach(plain("bert"), mixture, head="frozen")) for _ in range(2))
    with block(model):
        TAKEN[what](model)
    TAKEN[what](other)
    equal(result(model(**given)), result(other(**given)), "bert")
    assert model.config._attn_implementation == other.config._attn_implementation


@pytest.mark.parametrize("arch", SOME)
def test_the_base_is_not_renamed_and_keeps_its_class(arch: str):
    model = plain(arch)
    kind, names = type(model), list(model.state_dict())
    unipelt.attach(model, "lora")
    assert type(model) is kind
    assert [name for name in model.state_dict() if not name.startswith("unipelt.")] == names


@pytest.mark.parametrize("arch", SOME)
def test_attaching_twice_is_refused(arch: str):
    model = attached(arch, "adapter")
    given = tiny.inputs(arch, model)
    before = snapshot(model, given)
    with pytest.raises(UserError, match=r"has 'adapter' attached already; call unipelt.detach\(model\) first"):
        unipelt.attach(model, "lora")
    assert_same(before, model, given)


FAILING = {
    "an unknown target": {"mixture": small("lora", target_modules=("nowhere",))},
    "a good target and an unknown one": {"mixture": small("lora", target_modules=("value", "nowhere"))},
    "an unknown preset": {"mixture": "lorra"},
    "a pooling it has not": {"mixture": "adapter", "pooling": "mean"},
    "an unknown head module": {"mixture": "adapter", "head_modules": ["heart"]},
    "a layer it has not": {"mixture": "adapter(layers=[7])"},
    "seeds for other runs": {"mixture": "adapter", "runs": 2, "seeds": [1]},
}


@pytest.mark.parametrize("failure", FAILING)
@pytest.mark.parametrize("arch", ["llama", "bart", "t5", "gpt2"])
def test_a_failing_attach_leaves_the_base_as_it_was(arch: str, failure: str):
    model = plain(arch)
    given = tiny.inputs(arch, model)
    before = snapshot(model, given)
    with pytest.raises(UserError):
        unipelt.attach(model, **FAILING[failure])
    assert_same(before, model, given)


@pytest.mark.parametrize("preset", ["prefix", "unipelt-apl"])
@pytest.mark.parametrize("arch", ["deberta-v2"])
def test_a_refused_prefix_leaves_the_base_as_it_was(arch: str, preset: str):
    model = plain(arch)
    given = tiny.inputs(arch, model)
    before = snapshot(model, given)
    with pytest.raises(UserError, match="calls none of transformers' attention functions"):
        unipelt.attach(model, preset)
    assert_same(before, model, given)


def test_a_kernel_that_is_refused_leaves_the_base_as_it_was():
    model = plain("llama")
    model.config._attn_implementation_internal = "flash_attention_2"
    before = traces(model)
    with pytest.raises(UserError, match="flash_attention_2"):
        unipelt.attach(model, "prefix")
    assert traces(model) == before


@pytest.mark.parametrize(("arch", "mixture"), cases(varied=()))
def test_a_copy_is_equal_and_independent(arch: str, mixture: Mixture):
    model = attached(arch, mixture)
    given = tiny.inputs(arch, model)
    with torch.no_grad():
        before = result(model(**given))
        base = result(unipelt.detach(copy.deepcopy(model))(**given))
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            torch.testing.assert_close(result(twin(**given)), before, rtol=0, atol=0)
            randomise(twin, seed=7)
            assert (result(twin(**given)) - before).abs().max() > 1e-6
            torch.testing.assert_close(result(model(**given)), before, rtol=0, atol=0)
            torch.testing.assert_close(result(unipelt.detach(twin)(**given)), base, rtol=0, atol=0)
        torch.testing.assert_close(result(unipelt.detach(model)(**given)), base, rtol=0, atol=0)


@pytest.mark.parametrize("arch", ["bert", "llama"])
def test_a_compiled_model_is_refused(arch: str):
    model = torch.compile(plain(arch), backend="eager")
    with pytest.raises(UserError, match="attach to the plain model, then compile it"):
        unipelt.attach(model, "adapter")


@pytest.mark.parametrize("part", ["", "bert.encoder.layer.0"])
def test_a_model_compiled_in_place_is_refused(part: str):
    model = plain("bert")
    model.get_submodule(part).compile(backend="eager")
    with pytest.raises(UserError, match="compiled in place, and compiled code ignores new hooks"):
        unipelt.attach(model, "adapter")
    model = attached("bert", "adapter")
    model.get_submodule(part).compile(backend="eager")
    with pytest.raises(UserError, match="compiled in place"):
        unipelt.detach(model)


def test_attach_and_detach_take_effect_after_another_model_was_compiled():
    """Compiled code of the same classes is not reused for a model that has hooks."""
    other, model = plain("bert"), plain("bert")
    given = tiny.inputs("bert", model)
    whole, same = torch.compile(other, backend="eager"), torch.compile(model, backend="eager")
    before = result(whole(**given))
    equal(result(same(**given)), before, "bert")
    randomise(unipelt.attach(model, "adapter"))
    expected = result(model(**given))
    assert (expected - before).abs().max() > 1e-3
    equal(result(same(**given)), expected, "bert")  # what was compiled before attach looks again
    equal(result(torch.compile(model, backend="eager")(**given)), expected, "bert")
    equal(result(whole(**given)), before, "bert")
    unipelt.detach(model)
    equal(result(same(**given)), before, "bert")
    torch._dynamo.reset()


@pytest.mark.parametrize("arch", ["bert", "llama", "bart"])
@torch.no_grad()
def test_forwards_in_several_threads_know_nothing_of_each_other(arch: str):
    """As in a server: two are inside the first layer at once, with batches of other sizes and paddings."""
    model = attached(arch, Mixture(small("unipelt-apl").changes + small("parallel-adapter").changes))
    batches = [tiny.inputs(arch, model, batch=3), tiny.inputs(arch, model, batch=5, length=12, pads=(0, 7, 2, 1, 9))]
    expected = [result(model(**given)) for given in batches]
    together = Barrier(2, timeout=60)
    attention = model.get_submodule(f"{stacks(model)[0].layers[0].path}.{rows(arch)[0].attention.out}")

    def wait(module: nn.Module, args: tuple) -> None:
        together.wait()

    attention.register_forward_pre_hook(wait)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda given: result(model(**given)), batches))
    for mine, alone in zip(found, expected):
        equal(mine, alone, arch)


def test_the_tuned_part_follows_the_model():
    model = attached("bert", "unipelt-apl")
    assert {p.dtype for p in mixture_state(model).parameters()} == {torch.float64}
    assert {p.dtype for p in mixture_state(model.float()).parameters()} == {torch.float32}
    assert all(module.training for module in model.train().modules())
    assert not any(module.training for module in model.eval().modules())


def test_what_is_attached_for_inference_can_be_trained(tmp_path):
    unipelt.save(attached("bert", "unipelt-apl"), tmp_path)
    model = tiny.build("bert")
    with torch.inference_mode():
        unipelt.load(model, tmp_path)
        result(model(**tiny.inputs("bert", model)))
    result(model(**tiny.inputs("bert", model))).sum().backward()
    assert all(p.grad is not None for p in mixture_state(model).parameters())


@pytest.mark.parametrize("mixture", ["bitfit", "prefix", "unipelt-apl"])
def test_parts_of_an_attached_model_are_refused_to_another(mixture: str):
    """Their hooks would join twice, and detaching in the wrong order would not give the base back."""
    whole, other = tiny.build("bert"), tiny.build("bert")
    other.bert = whole.bert
    for first, second in ((whole, whole.bert), (whole.bert, whole), (whole, other)):
        before = traces(second)
        unipelt.attach(first, small(mixture))
        with pytest.raises(UserError, match="is shared with another model that has a mixture attached: detach"):
            unipelt.attach(second, small(mixture))
        unipelt.detach(first)
        assert traces(second) == before
        unipelt.detach(unipelt.attach(second, small(mixture)))
