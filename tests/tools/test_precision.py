"""A base in bfloat16, or in 8 or 4 bits, takes float32 tuned parameters without casts by hand."""

from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pytest
import tiny
import torch
from laws.lawbook import attached, first, gradients, listen, result, scalar, small, stacks
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from toy import classifier, keys, train, tuned_keys

import unipelt
from unipelt.inject.state import mixture_state
from unipelt.train.forward import autocast, has_bf16

PRESETS = ("unipelt-apl", "lora", "mam", "houlsby")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("arch", ["bert", "modernbert", "llama", "gemma3_text", "bart", "t5"])
def test_a_bfloat16_base_keeps_its_precision(arch: str, preset: str):
    model = attached(arch, preset, dtype=torch.bfloat16, attn="sdpa")
    assert {p.dtype for p in mixture_state(model).parameters()} == {torch.float32}
    given = tiny.inputs(arch, model)
    with listen(model, stacks(model)[0].layers[0].path) as calls:
        logits = model(**given).logits
    assert logits.dtype == torch.bfloat16
    assert first(calls[0][2]).dtype == torch.bfloat16
    logits.float().logsumexp(dim=-1).sum().backward()
    found = gradients(model)
    assert found.keys() == dict(mixture_state(model).named_parameters()).keys()
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in found.values())


@pytest.mark.parametrize("preset", ["unipelt-apl", "lora"])
def test_bfloat16_agrees_with_float32_up_to_its_rounding(preset: str):
    narrow, wide = (attached("llama", preset, dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
    given = tiny.inputs("llama", wide)
    expected = wide(**given).logits
    error = (narrow(**given).logits.float() - expected).abs().max() / expected.abs().max()
    assert error < 0.1  # bfloat16 has 8 bits: 0.4 % an operation


class Casts(TorchDispatchMode):
    """How often each weight is cast, and in which precision prefixes and keys are put together."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.names = {p.untyped_storage().data_ptr(): name for name, p in model.named_parameters()}
        self.casts: Counter[str] = Counter()
        self.together: set[torch.dtype] = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        output = operation(*args, **(kwargs or {}))
        if operation is torch.ops.aten._to_copy.default and args[0].dtype != output.dtype:
            self.casts[self.names.get(args[0].untyped_storage().data_ptr(), "")] += 1
        if operation is torch.ops.aten.cat.default and output.dim() == 4:
            self.together.add(output.dtype)
        return output


@pytest.mark.parametrize("preset", ["unipelt-apl", "unipelt-central", "mam", "prefix", "houlsby"])
@pytest.mark.parametrize("arch", ["bert", "llama", "bart", "t5"])
def test_under_autocast_no_weight_is_cast_twice_in_a_step(arch: str, preset: str):
    model = attached(arch, preset, dtype=torch.float32, attn="sdpa").train()
    with Casts(model) as seen, torch.autocast("cpu", dtype=torch.bfloat16):
        scalar(result(model(**tiny.inputs(arch, model)))).backward()
    seen.casts.pop("")
    # each layer computes the hidden layer of a prefix's MLP, and each member of a central gate its gate
    for name in [name for name in seen.casts if ".hidden." in name or ".central." in name]:
        seen.casts.pop(name)
    assert seen.casts.most_common(1)[0][1] == 1, seen.casts.most_common(3)
    if "prefix" in preset or preset in ("unipelt-apl", "mam"):
        assert torch.bfloat16 in seen.together, seen.together
        assert arch != "bert" or seen.together == {torch.bfloat16}


def test_trainer_in_bfloat16(tmp_path: Path):
    """Both ways: a bfloat16 base, and autocast around a float32 one."""
    for given in ({}, {"bf16": True}):
        model = classifier(dtype=torch.float32 if given else torch.bfloat16)
        trainer = train(model, tmp_path / str(len(given)), num_train_epochs=4, save_strategy="epoch", **given)
        assert {p.dtype for p in mixture_state(trainer.model).parameters()} == {torch.float32}
        assert trainer.evaluate()["eval_loss"] < 0.5  # chance is log 2
        assert keys(tmp_path / str(len(given)) / "checkpoint-24") == tuned_keys(trainer.model)


def test_a_gpu_without_bfloat16_takes_the_plain_path_and_says_so_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    has_bf16.cache_clear()
    with pytest.warns(UserWarning, match="^this GPU has no bfloat16: it computes in float32$") as said:
        modes = [autocast(torch.device("cuda")) for _ in range(2)]
    has_bf16.cache_clear()
    assert len(said) == 1 and all(isinstance(mode, nullcontext) for mode in modes)


@pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning")
@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantised_base(bits: int, tmp_path: Path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes, which makes 8- and 4-bit bases, is not installed")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    plain = tiny.build("llama", "generator", hidden_size=64, intermediate_size=128)  # 4-bit blocks hold 64 weights
    plain.save_pretrained(tmp_path)
    how = BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4, bnb_4bit_compute_dtype=torch.bfloat16)
    base = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=how, dtype=torch.bfloat16)
    given = tiny.inputs("llama", base)
    base.train()  # in eval mode bitsandbytes takes kernels on CPUs that have no gradient
    before = base(**given).logits
    for preset in PRESETS:
        model = unipelt.attach(base, small(preset))
        assert {p.dtype for p in mixture_state(model).parameters()} == {torch.float32}
        logits = model(**given).logits
        assert logits.dtype == torch.bfloat16
        logits.float().logsumexp(dim=-1).sum().backward()
        assert all(gradient.isfinite().all() for gradient in gradients(model).values())
        assert gradients(model).keys() == dict(mixture_state(model).named_parameters()).keys()
        unipelt.detach(model)
        assert torch.equal(base(**given).logits, before)
