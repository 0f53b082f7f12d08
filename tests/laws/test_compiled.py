"""unipelt.compile: compiled is equal to eager at every length, and there are as many graphs as padded lengths."""

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import unipelt
from laws.lawbook import attached, equal, gradients, small, without_dropout
from laws.test_kernels import one_layer
from unipelt import UserError
from unipelt.inject.shapes import bucket

LENGTHS = (9, 16, 21)  # two of them are padded to 16
SOME = ("bert", "gpt2", "llama")


@pytest.fixture(autouse=True)
def reset() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def pair(arch: str, preset: Any = "unipelt-apl", **how: Any) -> tuple[nn.Module, nn.Module]:
    """The same model twice: the first is to be compiled."""
    model = without_dropout(attached(arch, preset, build=one_layer(arch), **how))
    return model, copy.deepcopy(model)


def count(backend: str = "eager") -> CompileCounterWithBackend:
    return CompileCounterWithBackend(backend)


def given(arch: str, model: nn.Module, length: int, batch: int = 4, **more: Tensor) -> dict[str, Tensor]:
    return tiny.inputs(arch, model, batch=batch, length=length, seed=length) | more


def same(one: nn.Module, other: nn.Module, arch: str, inputs: dict[str, Any], learns: bool = True) -> None:
    """The same outputs of the same shapes, and the same gradients."""
    outputs = []
    for model in (one, other):
        model.zero_grad()
        with torch.set_grad_enabled(learns):
            output = model(**inputs)
            if learns:
                loss = output.loss if "loss" in output else sum(v.cos().sum() for v in _tensors(output).values())
                loss.backward()
        outputs.append({name: v.detach() for name, v in _tensors(output).items()} | {
            f"gradient of {name}": gradient.clone() for name, gradient in gradients(model).items()
        })  # fmt: skip
    assert outputs[0].keys() == outputs[1].keys()
    for name, value in outputs[1].items():
        assert outputs[0][name].shape == value.shape, name
        equal(outputs[0][name], value, arch, what=name)


def _tensors(output: Any) -> dict[str, Tensor]:
    found = {}
    for name, value in output.items():
        if name != "past_key_values":  # made when it is asked for
            found |= {f"{name}.{i}": v for i, v in enumerate(value)} if isinstance(value, tuple) else {name: value}
    return found


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo's own, which it hides
@pytest.mark.parametrize("arch", SOME)
def test_a_compiled_classifier_agrees_with_itself(arch: str):
    model, plain = pair(arch)
    counter = count("aot_eager" if arch == "bert" else "eager")
    assert unipelt.compile(model, backend=counter) is model
    for length in LENGTHS:
        labels = torch.arange(4) % 3
        same(model, plain, arch, given(arch, model, length, labels=labels))
    assert counter.frame_count == len({bucket(length) for length in LENGTHS})


@pytest.mark.parametrize("arch", ["llama"])
def test_mixtures_side_by_side_agree_with_themselves(arch: str):
    model, plain = pair(arch, [small("unipelt-apl"), small("lora")], runs=[3, 1])
    unipelt.compile(model, backend=(counter := count()))
    for length in LENGTHS:
        same(model, plain, arch, given(arch, model, length))
    assert counter.frame_count == 2


@pytest.mark.parametrize("arch", ["bert"])
def test_every_token_of_a_base_comes_back(arch: str):
    """The last hidden states, cut to the batch's own length; without a mask too."""
    model, plain = pair(arch, top="base")
    unipelt.compile(model, backend=(counter := count()))
    for length in LENGTHS:
        inputs = given(arch, model, length)
        same(model, plain, arch, inputs)
        del inputs["attention_mask"]
        same(model, plain, arch, inputs)
    assert counter.frame_count == 2
    same(model, plain, arch, given(arch, model, 9) | {"output_hidden_states": True}, learns=False)


def test_labels_of_tokens_are_padded_with_what_no_loss_counts():
    """Those of an encoder-decoder have a length of their own."""
    model, plain = pair(arch := "t5", top="generator")
    unipelt.compile(model, backend=(counter := count()))
    for length in LENGTHS:
        inputs = given(arch, model, length)
        del inputs["decoder_input_ids"]
        labels = inputs["input_ids"][:, :7]
        labels = labels.masked_fill(labels == model.config.pad_token_id, -100)
        same(model, plain, arch, inputs | {"labels": labels})
    assert counter.frame_count == 2


def test_modes_rows_and_routes():
    """Evaluation and training, other numbers of rows, several runs by blocks and by rows."""
    model, plain = pair("bert", runs=2)
    unipelt.compile(model, backend=count())
    for training, learns, batch in ((True, True, 4), (False, True, 4), (False, False, 2)):
        model.train(training), plain.train(training)
        same(model, plain, "bert", given("bert", model, 9, batch), learns)
    for rows in ([1, 0, 0, 1], [0, 0, 1, 0]):
        with unipelt.route(model, rows), unipelt.route(plain, rows):
            same(model, plain, "bert", given("bert", model, 9))
    same(model, plain, "bert", given("bert", model, 9))
    with pytest.raises(UserError, match="a batch of 3 rows for 2 runs in equal blocks"):
        model(**given("bert", model, 9, 3))


@torch._dynamo.config.patch(recompile_limit=2)
def test_dynamos_own_limit_of_shapes_is_not_ours():
    model, plain = pair("bert", "lora")
    unipelt.compile(model, lengths=range(5, 24), backend=(counter := count()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for length in range(6, 10):
            same(model, plain, "bert", given("bert", model, length), learns=False)
    assert counter.frame_count == 4


PLAINLY: dict[str, Callable[[nn.Module, dict], dict]] = {
    "inputs_embeds": lambda model, g: {
        "inputs_embeds": model.get_input_embeddings()(g.pop("input_ids")).detach(), **g},
    "attention weights": lambda model, g: g | {"output_attentions": True},
    "a mask of four dimensions": lambda model, g: g | {"attention_mask": torch.ones(4, 1, 9, 9, dtype=torch.bool)},
    "a cache": lambda model, g: g | {"use_cache": True},
    "longer than any": lambda model, g: given("llama", model, 33),
    "packed sequences": lambda model, g: {"input_ids": g["input_ids"], "position_ids": torch.tensor([[*range(5), *range(4)]] * 4)},
}  # fmt: skip


@pytest.mark.parametrize("what", PLAINLY)
def test_what_cannot_be_padded_takes_the_plain_path(what: str):
    model, plain = pair("llama", "lora", top="generator", attn="eager")
    unipelt.compile(model, lengths=(16, 32), backend=(counter := count()))
    same(model, plain, "llama", PLAINLY[what](model, given("llama", model, 9)), learns=False)
    assert counter.frame_count == 0


def test_positions_are_padded_too():
    model, plain = pair("llama", "lora")
    unipelt.compile(model, backend=(counter := count()))
    inputs = given("llama", model, 9)
    same(model, plain, "llama", inputs | {"position_ids": torch.arange(3, 12).expand(4, -1)})
    assert counter.frame_count == 1


@pytest.mark.parametrize("arch", ["gpt2", "llama", "t5"])
@pytest.mark.parametrize("cache", [True, False])
def test_generation_goes_on_as_it_did(arch: str, cache: bool):
    model, plain = pair(arch, top="generator")
    unipelt.compile(model, backend=count())
    inputs = tiny.inputs(arch, model, batch=2, side="left")
    inputs.pop("decoder_input_ids", None)
    how = {"max_new_tokens": 6, "do_sample": False, "use_cache": cache}
    assert torch.equal(model.generate(**inputs, **how), plain.generate(**inputs, **how))


def test_what_watches_is_called():
    """Compiled code calls no hook that came after it."""
    model, plain = pair("bert")
    unipelt.compile(model, backend=(counter := count()))
    inputs = given("bert", model, 9)
    same(model, plain, "bert", inputs, learns=False)
    with unipelt.record_gates(model) as mine, unipelt.record_gates(plain) as its:
        same(model, plain, "bert", inputs, learns=False)
    assert mine.keys() == its.keys() and all(torch.equal(mine[path][0], its[path][0]) for path in its)
    with unipelt.disabled(model), unipelt.disabled(plain):
        same(model, plain, "bert", inputs, learns=False)
    same(model, plain, "bert", inputs, learns=False)
    assert counter.frame_count == 1


def test_what_registers_other_hooks_is_seen():
    model, plain = pair("bert", "lora")
    unipelt.compile(model, backend=(counter := count()))
    inputs = given("bert", model, 9)
    same(model, plain, "bert", inputs, learns=False)
    with unipelt.dropped(model, 1), unipelt.dropped(plain, 1):
        same(model, plain, "bert", inputs, learns=False)
    assert counter.frame_count == 1
    same(model, plain, "bert", inputs, learns=False)
    unipelt.merge(model, unmergeable="keep")
    assert model._compiled_call_impl is None
    same(model, plain, "bert", inputs, learns=False)


def test_checkpointing_takes_the_plain_path():
    model, plain = pair("bert")
    unipelt.compile(model, backend=(counter := count()))
    for one in (model, plain):
        one.train().gradient_checkpointing_enable()
    same(model, plain, "bert", given("bert", model, 9))
    assert counter.frame_count == 0


def test_detach_and_copies_leave_the_compiled_code_behind():
    model, plain = pair("bert")
    unipelt.compile(model, backend=(counter := count()))
    with pytest.raises(UserError, match="already compiled"):
        unipelt.compile(model)
    inputs = given("bert", model, 9)
    same(copy.deepcopy(model), plain, "bert", inputs)
    unipelt.fix_gates(model, {"bottleneck_ffn": 0.5}), unipelt.fix_gates(plain, {"bottleneck_ffn": 0.5})
    same(model, plain, "bert", inputs)
    unipelt.detach(unipelt.compile(model, backend=counter)), unipelt.detach(plain)
    assert torch.equal(model(**inputs).logits, plain(**inputs).logits)
    assert counter.frame_count == 0


def test_without_a_compiler_it_runs_as_it_is_and_says_so_once():
    def broken(graph: Any, inputs: Any) -> Any:
        raise OSError("no C++ compiler")

    model, plain = pair("bert")
    unipelt.compile(model, backend=broken)
    with pytest.warns(UserWarning, match="runs uncompiled: .*no C\\+\\+ compiler") as said:
        for length in LENGTHS:
            same(model, plain, "bert", given("bert", model, length))
    assert len(said) == 1


@pytest.mark.inductor
def test_inductors_code_agrees():
    model, plain = pair("bert")
    unipelt.compile(model)
    for length in (9, 9, 16):
        same(model, plain, "bert", given("bert", model, length, labels=torch.arange(4) % 3))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"lengths": (16, 0)}, r"lengths=\(16, 0\): expected whole numbers from 1, such as"),
        ({"backend": "inductr"}, "backend='inductr': did you mean 'inductor'"),
        ({"preset": "unipelt-apl(pool='reference')"}, "averages over padding, which compile adds"),
    ],
)
def test_what_cannot_be_compiled_is_refused(how: dict[str, Any], said: str):
    model = attached("bert", how.pop("preset", "lora"))
    with pytest.raises(UserError, match=said):
        unipelt.compile(model, **how)
    assert model._compiled_call_impl is None
