"""Folding: a gate that does not vary becomes a constant of the change's own parameters, and what is then linear is merged in the base."""

from copy import deepcopy
from pathlib import Path

import pytest
import tiny
import torch
from laws.lawbook import attached, compatible_changes, is_exact, on_each, result, stacks, why_refused
from torch import nn

import unipelt
from unipelt import Bottleneck, Change, Gate, LowRank, Mixture
from unipelt.checkpoint.bases import load_base
from unipelt.errors import DataError, SiteError, SpecError
from unipelt.forms.gate import Gate as GateModule
from unipelt.forms.gate import GroupGate
from unipelt.inject.hooks import ModuleHook
from unipelt.inject.state import mixture_state
from unipelt.spec import Location
from unipelt.train.forward import _by_example

GATED = [(arch, preset) for preset in ("unipelt-apl", "unipelt-central") for arch in on_each(preset)]
COMPATIBLE = [
    pytest.param(arch, mixture, id=f"{arch}-{name}")
    for arch in ("gpt_neox",)
    for name, mixture in compatible_changes(arch).items()
    if name.startswith(("gate", "group")) and why_refused(arch, mixture) is None
]


def close(actual: torch.Tensor, expected: torch.Tensor, arch: str) -> None:
    atol = 1e-12 if is_exact(arch) else 3e-5
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol * expected.abs().max().clamp(min=1).item())


@torch.no_grad()
def steady(model: nn.Module, layers: tuple[int, ...] | None = None, logit: float | None = None) -> nn.Module:
    """Each gate of these layers a constant of its own, or that of one logit."""
    generator = torch.Generator().manual_seed(0)
    for path, module in mixture_state(model).named_modules():
        if isinstance(module, GateModule | GroupGate) and (layers is None or Location.parse(path).layer in layers):
            module.score.weight.zero_()
            drawn = torch.randn(module.score.bias.shape, generator=generator)
            module.score.bias.copy_(drawn if logit is None else torch.full_like(drawn, logit))
    return model


@torch.no_grad()
def says(model: nn.Module, given: dict) -> torch.Tensor:
    return result(model(**given))


def gates_of(model: nn.Module) -> list[str]:
    return [path for path, m in mixture_state(model).named_modules() if isinstance(m, GateModule | GroupGate)]


@pytest.mark.parametrize(("arch", "preset"), GATED)
def test_thresholds_of_zero_change_nothing(arch: str, preset: str):
    model = steady(attached(arch, preset), layers=(0,))
    given, before, gates = tiny.inputs(arch, model), mixture_state(model).mixture, gates_of(model)
    expected = says(model, given)
    report = unipelt.simplify_gates(model, [given], max_deviation=0, drop_below=0)
    assert report.fraction("kept") == 1 and report.max_logit_change == 0
    assert torch.equal(says(model, given), expected)
    assert gates_of(model) == gates
    assert [c.weight for c in mixture_state(model).mixture.changes] == [c.weight for c in before.changes]


@pytest.mark.parametrize(("arch", "what"), [*GATED, *COMPATIBLE])
def test_a_constant_gate_is_replaced_exactly(arch: str, what: str | Mixture, tmp_path: Path):
    model = steady(attached(arch, what))
    given = tiny.inputs(arch, model)
    expected = says(model, given)
    with unipelt.disabled(model):
        plain = says(model, given)
    base = {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("unipelt.")}
    report = unipelt.simplify_gates(model, [given], max_deviation=1e-6, drop_below=0)
    assert report.fraction("fixed", "merged") == 1 and report.max_logit_change < 1e-3 and not gates_of(model)
    close(says(model, given), expected, arch)

    unipelt.save(model, tmp_path)
    with unipelt.disabled(model):
        assert torch.equal(says(model, given), plain)
    close(says(model, given), expected, arch)
    unipelt.detach(model)
    assert all(torch.equal(value, base[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    close(says(unipelt.load(model, tmp_path), given), expected, arch)
    close(says(unipelt.merge(model, unmergeable="keep"), given), expected, arch)


@pytest.mark.parametrize("arch", [arch for arch in on_each("unipelt-apl") if arch != "albert"])
def test_a_layer_keeps_its_gates_while_another_loses_them(arch: str, tmp_path: Path):
    """ALBERT's layers share one change."""
    model = steady(attached(arch, "unipelt-apl"), layers=(0,))
    given = tiny.inputs(arch, model)
    expected = says(model, given)
    report = unipelt.simplify_gates(model, [given], max_deviation=1e-6, drop_below=0)
    assert {Location.parse(gate.path).layer: gate.decision == "kept" for gate in report.gates} == {0: False, 1: True}
    assert all(Location.parse(path).layer == 1 for path in gates_of(model)) and gates_of(model)
    close(says(model, given), expected, arch)
    unipelt.save(model, tmp_path)
    close(says(unipelt.load(unipelt.detach(model), tmp_path), given), expected, arch)


@pytest.mark.parametrize("arch", on_each("unipelt-apl"))
def test_a_change_whose_gate_is_zero_is_gone(arch: str):
    model = steady(attached(arch, "unipelt-apl"), logit=-800.0)
    given = tiny.inputs(arch, model)
    expected = says(model, given)
    places = {one.path for one in mixture_state(model).changes if one.change.form.name != "prefix"}
    report = unipelt.simplify_gates(model, [given])
    assert {Location.parse(gate.path).change: gate.decision for gate in report.gates} == {
        "bottleneck_ffn": "dropped", "low_rank_query": "dropped", "low_rank_value": "dropped", "prefix_heads": "fixed",
    }  # fmt: skip
    assert {one.name for one in mixture_state(model).changes} == {"prefix_heads"}, "at weight 0 it takes softmax mass"
    hooks = (hook for path in places for hook in model.get_submodule(path)._forward_hooks.values())
    assert not any(isinstance(hook.__self__, ModuleHook) for hook in hooks), "no change, no computing"
    close(says(model, given), expected, arch)


@pytest.mark.parametrize("arch", ["gpt2", "llama", "bart", "bert"])
def test_what_is_measured_is_over_real_tokens(arch: str):
    """Each token of a causal stream has a gate of its own; padding has no vote."""
    model = attached(arch, "unipelt-apl", top="generator" if arch in ("gpt2", "llama") else "classifier")
    batches = [tiny.inputs(arch, model, pads=pads, seed=seed) for seed, pads in enumerate([(0, 3, 5), (6, 1)])]
    report = unipelt.simplify_gates(model, batches, max_deviation=0, drop_below=0)
    path = f"{stacks(model)[0].entry.name}.1.low_rank_query.query"
    found = []
    for batch in batches:
        with unipelt.record_gates(model) as values, torch.no_grad():
            model(**batch)
        (value,) = values[path + ".gate"]
        found.append(value if value.dim() == 1 else value[batch["attention_mask"].bool()])
    every = torch.cat(found).double()
    (gate,) = [gate for gate in report.gates if gate.path == path]
    assert gate.mean == pytest.approx(every.mean().item(), rel=1e-12)
    assert gate.deviation == pytest.approx(every.std(correction=0).item(), rel=1e-9)
    assert gate.deviation > 1e-3 and report.examples == 6


@pytest.mark.parametrize("length", [9, 12], ids=["as long as the source", "longer"])
def test_gates_of_cross_attention_s_values_are_measured_over_the_source(length: int):
    model = attached("bart", "unipelt-apl(pool='token')", top="generator")
    given = tiny.inputs("bart", model)
    given["decoder_input_ids"] = torch.randint(5, 60, (3, length))
    given["decoder_attention_mask"] = (torch.arange(length) < torch.tensor([[2], [3], [length]])).long()
    with unipelt.record_gates(model) as recorded, torch.no_grad():
        model(**given, use_cache=False)
    own, cross = "decoder.1.low_rank_value.value", "decoder.1.low_rank_value.cross_value"
    report = unipelt.simplify_gates(deepcopy(model), [given], max_deviation=0)
    by_example = _by_example(model, recorded, given)
    for path, mask in ((own, given["decoder_attention_mask"]), (cross, given["attention_mask"])):
        (gate,) = [gate for gate in report.gates if gate.path == path]
        (value,) = recorded[f"{path}.gate"]
        assert gate.mean == pytest.approx(value[mask.bool()].mean().item(), abs=1e-6)
        expected = torch.stack([row[real.bool()].mean() for row, real in zip(value, mask)])
        torch.testing.assert_close(by_example[path], expected.float())


def test_what_it_costs_is_measured():
    model = attached("bert", "unipelt-apl")
    batches = [tiny.inputs("bert", model, seed=seed) | {"labels": torch.tensor([0, 1, 2])} for seed in range(3)]

    def right() -> float:
        return sum((says(model, b).argmax(dim=-1) == b["labels"]).sum().item() for b in batches) / 9

    logits = torch.cat([says(model, batch) for batch in batches])
    before = right()
    report = unipelt.simplify_gates(model.train(), batches, max_deviation=1, drop_below=0)
    assert model.training
    model.eval()
    assert (report.metric, report.before, report.after) == ("accuracy", pytest.approx(before), pytest.approx(right()))
    moved = (torch.cat([says(model, batch) for batch in batches]) - logits).abs().max().item()
    assert report.max_logit_change == pytest.approx(moved, rel=1e-9) and moved > 1e-3
    assert "50% fixed, 50% merged" in str(report) and f"accuracy {before:.4f} → " in str(report)

    named = unipelt.simplify_gates(
        attached("bert", "unipelt-apl"), batches, score=("rows", lambda logits, labels: len(logits))
    )
    assert (named.metric, named.before, named.after) == ("rows", 9, 9)
    unlabelled = unipelt.simplify_gates(attached("bert", "unipelt-apl"), [tiny.inputs("bert", model)])
    assert (unlabelled.metric, unlabelled.before) == ("", None)


@pytest.mark.parametrize("arch", ["gpt2", "bart"])
def test_a_language_model_s_loss_is_that_of_a_token(arch: str):
    """However its rows are put into batches."""
    model = attached(arch, "unipelt-apl", top="generator")
    batch = tiny.inputs(arch, model, pads=())
    batch["labels"] = batch.get("decoder_input_ids", batch["input_ids"]).clone()
    batch["labels"][0, 2:] = -100
    with torch.no_grad():
        loss = model(**batch).loss.item()
    apart = [{name: value[rows] for name, value in batch.items()} for rows in (slice(0, 1), slice(1, None))]
    for batches in ([batch], apart):
        report = unipelt.simplify_gates(deepcopy(model), batches)
        assert (report.metric, report.before) == ("loss", pytest.approx(loss))


def test_one_run_of_many_is_simplified():
    model = steady(attached("bart", "unipelt-apl", runs=3))
    given = tiny.inputs("bart", model)
    with unipelt.route(model, [1, 1, 1]):
        expected = says(model, given)
    with pytest.raises(SpecError, match=r"run=None: the model has runs 0 to 2; say which one, such as run=0"):
        unipelt.simplify_gates(model, [given])
    with pytest.raises(SpecError, match=r"unmergeable='keep' with 3 runs: the base's weights hold one"):
        unipelt.merge(model, run=1, unmergeable="keep")
    unipelt.simplify_gates(model, [given], max_deviation=1e-6, run=1)
    assert mixture_state(model).runs == 1
    close(says(model, given), expected, "bart")


@pytest.mark.parametrize("arch", on_each("unipelt-apl-nogate"))
def test_what_is_merged_into_the_weights_computes_the_same(arch: str, tmp_path: Path):
    model = attached(arch, "unipelt-apl-nogate")
    given = tiny.inputs(arch, model)
    unipelt.save(model, tmp_path / "before")
    expected, copy = says(model, given), deepcopy(model)
    low_rank = {one.path for one in mixture_state(model).changes if one.change.form.name == "low_rank"}
    assert unipelt.merge(unipelt.merge(model, unmergeable="keep"), unmergeable="keep") is model
    close(says(model, given), expected, arch)
    assert not any(model.get_submodule(path)._forward_hooks for path in low_rank)
    assert not any(p.requires_grad for name, p in mixture_state(model).named_parameters() if "low_rank" in name)
    unipelt.save(model, tmp_path / "after")
    before, after = ((tmp_path / when / "unipelt.safetensors").read_bytes() for when in ("before", "after"))
    assert before == after
    again = deepcopy(model)
    unipelt.detach(again)
    close(says(model, given), expected, arch)  # the copy's weights are its own
    assert torch.equal(says(copy, given), expected)


def test_what_comes_behind_another_change_waits_for_it():
    """The adapter reads the query, the LoRA is added behind it: in the weight it would come first."""
    behind = Mixture(
        (
            Change(form=Bottleneck(size=3), site="query", reads="output"),
            Change(form=LowRank(r=2), site="query", reads="input"),
            Change(form=LowRank(r=2), site="value", reads="input"),
            Change(form=Bottleneck(size=3), site="value", reads="output"),
        )
    )
    model = attached("bert", behind)
    given = tiny.inputs("bert", model)
    expected = says(model, given)
    unipelt.merge(model, unmergeable="keep")
    close(says(model, given), expected, "bert")
    assert {one.name for one in mixture_state(model).changes if one.merged} == {"low_rank_value"}
    found = [one.name for one in mixture_state(model).changes if one.path.endswith("0.attention.self.value")]
    assert found == ["low_rank_value", "bottleneck_value"], "in the order in which they are composed"


def test_a_group_keeps_its_gate_where_one_member_varies_and_a_gate_of_two_sites_is_one():
    one = [
        Change(form=LowRank(r=2), site=site, reads="input", weight=Gate(group="g"))
        for site in ("query", "key", "value")
    ]
    model = attached("bert", Mixture(tuple(one)))
    with torch.no_grad():  # the first two share nearly all, so the third hardly moves
        for module in mixture_state(model).modules():
            if isinstance(module, GroupGate):
                module.score.bias.copy_(torch.tensor([10.0, 10.0, 0.0]))
                module.score.weight[:, 2] = 0
    report = unipelt.simplify_gates(model, [tiny.inputs("bert", model)], max_deviation=1e-3)
    assert report.fraction("kept") == 1 and {gate.deviation < 1e-3 for gate in report.gates} == {True, False}
    both = Mixture((Change(form=LowRank(r=2), site=("query", "value"), reads="input", weight=Gate()),))
    model = steady(attached("bert", both))
    assert [g.decision for g in unipelt.simplify_gates(model, [tiny.inputs("bert", model)]).gates] == [
        "merged",
        "merged",
    ]


@pytest.mark.parametrize(
    ("what", "options", "error", "words"),
    [
        (
            "lora",
            {},
            SpecError,
            r"'lora' has no gates, so there is nothing to simplify; unipelt.merge\(model, unmergeable=",
        ),
        ("unipelt-apl", {"max_deviation": -0.1}, SpecError, r"max_deviation=-0.1: expected a number from 0 to 1"),
        ("unipelt-apl", {"max_deviation": True}, SpecError, r"max_deviation=True: expected a number"),
        ("unipelt-apl", {"drop_below": float("nan")}, SpecError, r"drop_below=nan: expected a number from 0 to 1"),
        ("unipelt-apl", {"drop_below": "low"}, SpecError, r"drop_below='low': expected a number from 0 to 1"),
        ("unipelt-apl", {"data": []}, DataError, r"data: expected at least one batch .*; got none"),
        ("unipelt-apl", {"data": {"input_ids": torch.ones(1, 3)}}, DataError, r"got a str"),
        ("unipelt-apl", {"data": None}, DataError, r"got a NoneType"),
        ("unipelt-apl", {"data": [{}]}, DataError, r"got an empty batch"),
        ("unipelt-apl", {"data": [{"input_ids": torch.ones(0, 3)}]}, DataError, r"got an empty batch"),
        ("unipelt-apl", {"score": len}, SpecError, r"score=.*len.* expected a metric's name and its function"),
        ("unipelt-apl", {"run": 2}, SpecError, r"run=2: the model has runs 0 to 0"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_has_changed(what: str, options: dict, error: type, words: str):
    model = attached("bert", what)
    before, given = mixture_state(model), tiny.inputs("bert", model)
    with pytest.raises(error, match=words) as raised:
        unipelt.simplify_gates(model, **({"data": [given]} | options))
    assert "\n" not in str(raised.value)
    assert mixture_state(model) is before and before.handles


def test_a_compiled_model_and_a_misspelt_rest_are_refused():
    model = attached("bert", "lora")
    with pytest.raises(SpecError, match="unmergeable='kept': did you mean 'keep'"):
        unipelt.merge(model, unmergeable="kept")
    model.compile()
    with pytest.raises(SiteError, match="compiled in place"):
        unipelt.merge(model, unmergeable="keep")


def test_a_real_base_is_simplified():
    """MiniLM: gates that are constants, in float32."""
    torch.manual_seed(0)
    model = unipelt.attach(load_base("minilm", outputs=2), "unipelt-apl").eval()
    ids = torch.randint(1000, 20_000, (4, 12))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    expected = says(steady(model), given)
    report = unipelt.simplify_gates(model, [given])
    assert len(report.gates) == 24 and (report.fraction("fixed"), report.fraction("merged")) == (0.5, 0.5)
    torch.testing.assert_close(says(model, given), expected, rtol=0, atol=2e-5)
