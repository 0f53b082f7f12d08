"""IA³ and DoRA: equal to peft's, gradients too, on an encoder, a decoder and an encoder-decoder; and what they refuse."""

from copy import deepcopy

import peft
import pytest
import tiny
import torch
from torch import nn

import unipelt
from laws.lawbook import attached, result
from laws.test_lora import take_head
from unipelt import Change, Mixture, spec
from unipelt.errors import SiteError
from unipelt.forms.dora import Dora
from unipelt.forms.scaling import Scaling
from unipelt.inject.resolve import features
from unipelt.inject.state import mixture_state

pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)  # peft asks for it

FFN = r".*layer\.\d+\.output\.dense"  # of BERT, whose attention has an output.dense too
IA3 = {  # targets, and those whose input is the FFN's hidden activations, as peft names them
    "bert": (rf"{FFN}|.*\.(key|value)", FFN),
    "llama": (["k_proj", "v_proj", "down_proj"], ["down_proj"]),
    "t5": (["k", "v", "wo"], ["wo"]),
}
QUERIES = {"bert": ["query", "value"], "llama": ["q_proj", "v_proj"], "t5": ["q", "v"]}


def compare(arch: str, theirs: nn.Module, ours: nn.Module, pairs: list[tuple[nn.Parameter, nn.Parameter]]) -> None:
    """Outputs and the gradients of each pair of parameters: theirs, and ours with the run axis."""
    given = tiny.inputs(arch, ours)
    outputs = [result(model(**given)) for model in (theirs, ours)]
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-11)
    for output in outputs:
        output.square().sum().backward()
    assert pairs
    for one, other in pairs:
        assert one.grad.abs().max() > 1e-6
        torch.testing.assert_close(one.grad.flatten(), other.grad.flatten(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("arch", IA3)
def test_ia3_is_pefts(arch: str):
    ours = attached(arch, "ia3")
    base = unipelt.detach(deepcopy(ours)).eval()
    take_head(base, ours)
    targets, hidden = IA3[arch]
    config = peft.IA3Config(target_modules=targets, feedforward_modules=hidden)
    theirs = peft.get_peft_model(base, config)
    layers = dict(theirs.base_model.model.named_modules())
    pairs = []
    for one in mixture_state(ours).changes:
        vector, form = layers[one.path].ia3_l["default"], one.form
        assert isinstance(form, Scaling)
        vector.data = (form.offset.data[0] + 1).view(vector.shape).clone()
        pairs.append((vector, form.offset))
    assert len(pairs) == sum("ia3_l" in name for name, _ in theirs.named_parameters())
    compare(arch, theirs, ours, pairs)


@pytest.mark.parametrize("arch", QUERIES)
def test_dora_is_pefts(arch: str):
    ours = attached(arch, "dora(r=2, alpha=3)")
    base = unipelt.detach(deepcopy(ours)).eval()
    take_head(base, ours)
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=QUERIES[arch], use_dora=True)
    theirs = peft.get_peft_model(base, config)
    layers = dict(theirs.base_model.model.named_modules())
    pairs = []
    for one in mixture_state(ours).changes:
        layer, form = layers[one.path], one.form
        assert isinstance(form, Dora)
        for one, other in (
            (layer.lora_A["default"].weight, form.down.weight), (layer.lora_B["default"].weight, form.up.weight),
            (layer.lora_magnitude_vector["default"].weight, form.magnitude),
        ):  # fmt: skip
            one.data = other.data[0].view(one.shape).clone()
            pairs.append((one, other))
    compare(arch, theirs.eval(), ours, pairs)


@pytest.mark.parametrize("arch", [arch for arch in tiny.ARCHITECTURES if arch != "mixtral"])
def test_hidden_activations_are_the_input_of_the_linear_that_ends_the_ffn(arch: str):
    """At −1 they are zero, and the FFN gives the bias of its last linear alone."""
    ours = attached(arch, "ia3")
    base = unipelt.detach(deepcopy(ours))
    take_head(base, ours)
    with torch.no_grad():
        for one in mixture_state(ours).changes:
            ends = one.location.part == "ffn_hidden"
            one.form.offset.fill_(-1.0 if ends else 0.0)
            if ends:
                linear = base.get_submodule(one.path)
                assert one.form.offset.shape[-1] == features(linear)[0]
                linear.weight.zero_()
    given = tiny.inputs(arch, ours)
    torch.testing.assert_close(result(ours(**given)), result(base(**given)))


def test_what_they_refuse():
    with pytest.raises(SiteError, match=r"ffn_hidden: .* has 0 linears .*, expected one"):
        unipelt.attach(tiny.build("mixtral", "base"), "ia3")
    embedding = Change(form=spec.Scaling(), site="linear:word_embeddings", reads="output")
    with pytest.raises(SiteError, match=r"target_modules='word_embeddings' names an? Embedding, not a linear"):
        unipelt.attach(tiny.build("bert", "base"), Mixture((embedding,)))
    model = tiny.build("bert", "base")
    value = model.encoder.layer[1].attention.self.value
    value.weight = nn.Parameter(value.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(
        SiteError, match=r"dora at 'encoder.layer.1.attention.self.value': its weight is Parameter of int8"
    ):
        unipelt.attach(model, "dora")
