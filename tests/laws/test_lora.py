"""Rule 10: ungated LoRA is the merged weight W + (α/r) BA, wherever the linear is; and what a target names."""

import pytest
import tiny
import torch
from torch import Tensor, nn

import unipelt
from laws.lawbook import attached, equal, result, rows, small, stacks
from unipelt import Change, Gate, Mixture, UserError
from unipelt import LowRank as Low
from unipelt.forms.low_rank import LowRank
from unipelt.inject.architectures import Attention
from unipelt.inject.state import mixture_state

ALPHA, R = 5.0, 2
TUNED = f"lora(r={R}, alpha={ALPHA}, target_modules="


def rows_of(arch: str, model: nn.Module, attention: Attention, which: str, outputs: int) -> Tensor:
    """Which output features of the projection are query, key or value."""
    index = ("query", "key", "value").index(which)
    if attention.query != attention.key:
        return torch.arange(outputs)
    heads = model.config.num_attention_heads
    if attention.groups == "heads":  # head by head: query, key, value
        return torch.arange(outputs).view(heads, 3, -1)[:, index].flatten()
    groups = getattr(model.config, "num_key_value_heads", heads)
    width = outputs // (heads + 2 * groups)
    start = (0, heads * width, (heads + groups) * width, outputs)
    return torch.arange(start[index], start[index + 1])


@torch.no_grad()
def merge(linear: nn.Module, lora: nn.Module, features: Tensor) -> None:
    change = ALPHA / R * lora.up.weight[0] @ lora.down.weight[0]
    weight = linear.weight if isinstance(linear, nn.Linear) else linear.weight.T  # Conv1D is transposed
    weight[features] += change


def take_head(base: nn.Module, model: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in mixture_state(model).named_parameters():
            if name.startswith("head."):
                base.get_parameter(name.removeprefix("head.")).copy_(parameter[0])


@pytest.mark.parametrize("which", ["query", "key", "value"])
@pytest.mark.parametrize("arch", tiny.ARCHITECTURES)
def test_lora_is_the_merged_weight(arch: str, which: str):
    model = attached(arch, f"{TUNED}'{which}')")
    merged = unipelt.detach(attached(arch, f"{TUNED}'{which}')"))
    given = tiny.inputs(arch, model)
    take_head(merged, model)
    with torch.no_grad():
        assert (result(merged(**given)) - result(model(**given))).abs().max() > 1e-3
        for stack in stacks(merged):
            for layer in stack.layers:
                for kind, attention in stack.entry.attentions():
                    linear = layer.get(getattr(attention, which))
                    outputs = linear.weight.shape[0 if isinstance(linear, nn.Linear) else 1]
                    label = ("cross_" if kind == "cross" else "") + which
                    lora = mixture_state(model).get_submodule(
                        f"{stack.entry.name}.{layer.index}.low_rank_{which}.{label}"
                    )
                    merge(linear, lora, rows_of(arch, merged, attention, which, outputs))
        equal(result(merged(**given)), result(model(**given)), arch)


@pytest.mark.parametrize("arch", tiny.ARCHITECTURES)
def test_lora_on_all_linears_is_the_merged_weights(arch: str):
    model = attached(arch, f"{TUNED}'all-linear')")
    merged = unipelt.detach(attached(arch, f"{TUNED}'all-linear')"))
    given = tiny.inputs(arch, model)
    take_head(merged, model)
    done = 0
    for stack in stacks(merged):
        for layer in stack.layers:
            for path, linear in layer.module.named_modules():
                if isinstance(linear, nn.Linear) or type(linear).__name__ == "Conv1D":
                    lora = mixture_state(model).get_submodule(
                        f"{stack.entry.name}.{layer.index}.low_rank_linear.{path}"
                    )
                    features = linear.weight.shape[0 if isinstance(linear, nn.Linear) else 1]
                    merge(linear, lora, torch.arange(features))
                    done += 1
    assert done == len([m for m in mixture_state(model).modules() if hasattr(m, "scale") and hasattr(m, "down")]) > 0
    with torch.no_grad():
        equal(result(merged(**given)), result(model(**given)), arch)


@pytest.mark.parametrize(
    ("arch", "target", "paths"),
    [
        ("bert", "bert.encoder.layer.0.output.dense", ["encoder.layer.0.output.dense"]),
        ("bert", "encoder.layer.0.output.dense", ["encoder.layer.0.output.dense"]),
        ("bert", "intermediate.dense", [f"encoder.layer.{i}.intermediate.dense" for i in (0, 1)]),
        ("bert", r".*\.1\..*(query|value)", [f"encoder.layer.1.attention.self.{n}" for n in ("query", "value")]),
        ("llama", "q_proj", [f"layers.{i}.self_attn.q_proj" for i in (0, 1)]),
        ("llama", r"layers\.0\.mlp\.(up|down)_proj", [f"layers.0.mlp.{n}_proj" for n in ("up", "down")]),
        ("gpt2", "c_fc", [f"h.{i}.mlp.c_fc" for i in (0, 1)]),
        ("t5", "EncDecAttention.q", [f"decoder.block.{i}.layer.1.EncDecAttention.q" for i in (0, 1)]),
    ],
)
def test_a_target_is_a_name_a_suffix_or_a_regular_expression(arch: str, target: str, paths: list[str]):
    model = unipelt.attach(tiny.build(arch), small("lora", target_modules=target))
    layers = {f"{stack.entry.name}.{layer.index}": layer.path for stack in stacks(model) for layer in stack.layers}
    found = set()
    for path, module in mixture_state(model).named_modules():
        if isinstance(module, LowRank):
            owner, inside = path.split(".low_rank_linear.")
            found.add(f"{layers[owner]}.{inside}".removeprefix(f"{model.base_model_prefix}."))
    assert found == set(paths)


def test_every_target_must_match():
    """A misspelt one among good ones is an error, with the nearest names."""
    base = tiny.build("llama")
    with pytest.raises(UserError, match=r"target_modules='v_porj' matches no linear.*'v_proj'"):
        unipelt.attach(base, small("lora", target_modules=("q_proj", "v_porj")))


@pytest.mark.parametrize(
    ("arch", "top", "target", "said"),
    [
        ("bert", "classifier", "LayerNorm", "names a LayerNorm, not a linear"),
        ("bert", "classifier", "classifier", "names a linear outside of the stacks"),
        ("llama", "generator", "lm_head", "names a linear outside of the stacks"),
    ],
)
def test_a_target_that_cannot_be_changed_says_what_it_is(arch: str, top: str, target: str, said: str):
    with pytest.raises(UserError, match=f"target_modules='{target}' {said}"):
        unipelt.attach(tiny.build(arch, top), f"lora(target_modules='{target}')")


@pytest.mark.parametrize(
    ("target", "gate", "words"),
    [
        ("pooler.dense", Gate(), "does not read the states of tokens"),
        ("intermediate.dense", Gate(group="g"), "a gate of group 'g' reads the input of an attention projection"),
    ],
)
def test_a_gate_on_a_linear_whose_input_it_cannot_read_is_refused(target: str, gate: Gate, words: str):
    changes = [Change(form=Low(r=2), site=site, reads="input", weight=gate) for site in (f"linear:{target}", "query")]
    with pytest.raises(UserError, match=words):
        unipelt.attach(tiny.build("bert"), Mixture(tuple(changes)))


def test_all_linear_leaves_embeddings_and_head_alone():
    model = attached("bert", "lora(target_modules='all-linear')")
    low_rank = {name for name, _ in mixture_state(model).named_parameters() if "low_rank" in name}
    assert low_rank and not any("pooler" in name or "classifier" in name or "embeddings" in name for name in low_rank)


def test_a_gate_replaces_alpha_over_r():
    """In UniPELT g stands where α/r stood: the preset's own scale is 1."""
    scales = {c.form.alpha / c.form.r for c in small("unipelt-apl").changes if c.form.name == "low_rank"}
    assert scales == {1.0} and rows("bert")
