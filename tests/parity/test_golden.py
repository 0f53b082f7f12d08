"""Parity with the public code of the papers and with two libraries, on the vectors that they gave for tiny random models.

The cases are the folders in GOLDEN_DIR, else those in ../shared/golden, else the copies of a few in tests/golden; the id
of each test says which.
"""

import inspect
import os
import re
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from golden import Case
from torch import Tensor
from torch.overrides import TorchFunctionMode

from unipelt import attach, record_gates
from unipelt.forms.prefix import PrefixMLP, PrefixTable
from unipelt.forms.routed import Route
from unipelt.inject.state import MixtureState, mixture_state

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "golden"
FOLDER = Path(os.environ.get("GOLDEN_DIR", SHARED if SHARED.is_dir() else ROOT / "tests" / "golden"))
CASES = sorted(path.parent for path in FOLDER.glob("*/case.json"))


class Float64(TorchFunctionMode):
    """Casts to float32 go to float64: the golden values of the Llama libraries were made this way."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        function = Tensor.double if function is Tensor.float else function
        wide = [torch.float64 if value is torch.float32 else value for value in args]
        named = {k: torch.float64 if value is torch.float32 else value for k, value in (kwargs or {}).items()}
        return function(*wide, **named)


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: os.path.relpath(folder, ROOT))
def test_the_function_is_that_of_the_reference(folder: Path):
    case = Case.read(folder)
    stock = case.take("out.stock_logits").get("")
    with nullcontext() if stock is None else Float64():
        model, mixture = case.base(), case.mixture()
        model.load_state_dict(case.take("base."), strict=True)
        if mixture.changes:
            attach(model, mixture, head_modules=None if case.has_head else [])
            parameters = by_name(case, mixture_state(model))
        else:  # the plain base, whose own parameters have gradients
            parameters = {f"base.{name}": p for name, p in model.named_parameters()}
        load(parameters, case.take("pelt."))

        inputs = case.take("in.")
        cotangent = inputs.pop("cotangent", None)
        assert set(inputs) <= set(inspect.signature(model.forward).parameters)
        outputs, gates = forward(model, inputs)
        if cotangent is not None:
            outputs["loss"] = (outputs["logits"] * cotangent).sum()
        outputs["loss"].backward()
        outputs |= values_of_gates(case, gates) | (
            values_of_prefixes(case, mixture_state(model)) if mixture.changes else {}
        )

    if columns := case.hidden_columns:
        for name in [name for name in outputs if "attentions" in name]:
            own = outputs[name][..., columns:]
            outputs[name] = own / own.sum(dim=-1, keepdim=True)
    golden, beside = case.take("out."), {"last_hidden_state", "encoder_last_hidden_state", "pooler_output"}
    assert set(golden) <= set(outputs) <= set(golden) | beside
    for name, value in golden.items():
        close(name, outputs[name], value)
    gradients = case.take("grad.")
    assert set(gradients) == set(parameters)
    for name, value in gradients.items():
        close(f"grad.{name}", parameters[name].grad.view(value.shape), value)
    if stock is not None:
        with torch.no_grad():
            torch.testing.assert_close(model(**inputs).logits, stock, rtol=1e-5, atol=1e-5)
    assert not case.tensors, f"neither used nor compared: {sorted(case.tensors)}"


def test_no_case_is_missing():
    """The README beside the cases has a table of them."""
    listed = re.findall(r"^\| `(\w+)` \|", (FOLDER / "README.md").read_text(), flags=re.MULTILINE)
    assert [folder.name for folder in CASES] == sorted(name for name in listed if not name.endswith("_"))


BART = {
    "vocab_size": 20, "d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "max_position_embeddings": 16,
}  # fmt: skip
SITES = {"encoder": ("encoder", "self_attn"), "decoder_self": ("decoder", "self_attn"), "decoder_cross": ("decoder", "cross_attn")}  # fmt: skip


@pytest.mark.parametrize("norm", ["prefix.{site}.layer.0.layer_norm", "{stack}.layer.0.prefix_{attn}.layer_norm"])
@pytest.mark.parametrize("form", ["explicit gated addition", "multi-head parallel adapter (relu)"])
def test_names_that_no_case_here_has_are_understood(form: str, norm: str):
    """Those that the README allows for a gated prefix of an encoder-decoder, written out: all of ours, and no other."""
    leaves = [f"prefix.{site}.layer.0.{leaf}" for site in SITES for leaf in ("key", "value")]
    leaves += [
        f"{stack}.layer.0.gate.prefix_{attn}.{kind}" for stack, attn in SITES.values() for kind in ("weight", "bias")
    ]
    if "relu" in form:
        norms = [norm.format(site=site, stack=stack, attn=attn) for site, (stack, attn) in SITES.items()]
        leaves += [f"{name}.{kind}" for name in norms for kind in ("weight", "bias")]
    sites = [f"{stack} {attn}" for stack, attn in SITES.values()]
    prefix = {"enabled": True, "gated": True, "form": form, "length": 3, "sites": sites}
    facts = {"class": "BartForConditionalGeneration", "model_type": "bart", "config": BART}
    case = Case(facts, {"prefix": prefix}, {f"pelt.{name}": torch.empty(0) for name in leaves})
    model = attach(case.base(), case.mixture(), head_modules=[])
    assert set(by_name(case, mixture_state(model))) == set(case.tensors)


def close(name: str, ours: Tensor, golden: Tensor) -> None:
    torch.testing.assert_close(ours.detach(), golden, rtol=1e-9, atol=1e-10, msg=lambda text: f"{name}: {text}")


def by_name(case: Case, tuned: MixtureState) -> "dict[str, Tensors]":
    """Every tuned parameter by its golden name; the head's are the base's own values, unless the method brings a head."""
    found: dict[str, Tensors] = {}
    for path, parameter in tuned.named_parameters():
        for layer, name in case.names(path, parameter):
            of_base = name.startswith("head.") and f"pelt.{name}" not in case.tensors
            name = f"base.{name.removeprefix('head.')}" if of_base else f"pelt.{name}"
            assert name not in found or ".outputs." in path
            found.setdefault(name, Tensors([])).parts.append((parameter, layer))
    return found


@dataclass
class Tensors:
    """A golden tensor and what it is of ours: one parameter, a layer of one, or one per layer, their rows one behind the other."""

    parts: list[tuple[torch.nn.Parameter, int | None]]

    def joined(self, tensors: list[Tensor]) -> Tensor:
        own = [t if layer is None else t[:, layer] for t, (_, layer) in zip(tensors, self.parts)]
        return torch.cat(own, dim=1) if len(own) > 1 else own[0]

    @property
    def shape(self) -> torch.Size:
        return self.joined([p.detach() for p, _ in self.parts]).shape

    @property
    def grad(self) -> Tensor:
        return self.joined([p.grad for p, _ in self.parts])

    def copy_(self, value: Tensor) -> None:
        start = 0
        for part, layer in self.parts:
            own = part if layer is None else part[:, layer]
            rows = own.shape[1] if own.dim() > 1 else 0
            own.copy_(value[:, start : start + rows] if len(self.parts) > 1 else value)
            start += rows


@torch.no_grad()
def load(parameters: dict[str, Tensors], pelt: dict[str, Tensor]) -> None:
    ours = {name.removeprefix("pelt.") for name in parameters if name.startswith("pelt.")}
    assert ours == set(pelt), f"only ours: {sorted(ours - set(pelt))}, only theirs: {sorted(set(pelt) - ours)}"
    for name, value in pelt.items():
        assert parameters[f"pelt.{name}"].shape == (1, *value.shape), name
        parameters[f"pelt.{name}"].copy_(value[None])


def forward(model: torch.nn.Module, inputs: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[Tensor]]]:
    """Everything that the model and its base return, tuples item by item; and what every gate gave."""
    returned = {}
    handle = model.base_model.register_forward_hook(lambda module, args, output: returned.update(output))
    with record_gates(model) if hasattr(model, "unipelt") else nullcontext({}) as gates:
        returned |= model(**inputs, output_hidden_states=True, output_attentions=True)
    handle.remove()
    outputs = {}
    for name, value in returned.items():
        items = {f"{name}.{i}": item for i, item in enumerate(value)} if isinstance(value, tuple) else {name: value}
        outputs |= {key: item for key, item in items.items() if isinstance(item, Tensor)}
    return outputs, gates


def values_of_gates(case: Case, gates: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    outputs = {}
    for path, values in gates.items():
        for value in values:  # a shared gate is asked by each of its changes
            assert torch.equal(value, values[0])
        place, _, method = case.name(path).replace("gate.", "").rpartition(".")
        if method == "central":
            outputs |= {f"gate.{place}.lora_{which}": values[0][:, 0] for which in ("query", "value")}
            outputs[f"gate.{place}.prefix"] = values[0][:, 1]
        else:
            outputs[f"gate.{place}.{method}"] = values[0]
    return outputs


def values_of_prefixes(case: Case, tuned: MixtureState) -> dict[str, Tensor]:
    """P_k and P_v before any gate, `[head, prefix, d]`."""
    outputs = {}
    for path, table in tuned.named_modules():
        if isinstance(table, PrefixMLP | PrefixTable):
            site = case.prefix_site(path)
            for layer in range(len(table.outputs) if isinstance(table, PrefixMLP) else table.key.shape[1]):
                pair = zip(("key", "value"), table(layer, Route.blocks(1), 1))
                outputs |= {f"prefix.{site}layer.{layer}.{which}": heads[0] for which, heads in pair}
    return outputs
