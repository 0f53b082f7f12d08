"""AdapterHub's folders: the outputs of `adapters` itself, from its own files; what has no counterpart is refused by name.

The folders beside this file were written by `adapters` (see adapterhub/make.py); those of the golden set are read where it is.
"""

import json
import os
import pickle
import resource
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from values import assert_plain, randomise, state_of

import unipelt
from unipelt import Gate, Learned
from unipelt.checkpoint.formats.adapterhub import CONFIG, HEAD_PICKLED, HEAD_TENSORS, PICKLED, TENSORS
from unipelt.errors import CheckpointError, SiteError
from unipelt.inject.architectures import ARCHITECTURES
from unipelt.inject.state import mixture_state

HERE = Path(__file__).parent / "adapterhub"
sys.path.insert(0, str(HERE))
from make import BERT, CASES, fill  # noqa: E402

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("GOLDEN_DIR", ROOT.parent / "shared" / "golden"))


def base_of(case: str, **options) -> nn.Module:
    kind, config = CASES[case][:2]
    base = getattr(transformers, kind)
    model = base._from_config(base.config_class(**config | options), attn_implementation="eager")
    fill(model)
    return model.double().eval()


@pytest.mark.parametrize("case", CASES)
def test_the_outputs_are_those_of_adapters(case: str, tmp_path: Path):
    """And they stay so when saved as our own checkpoint."""
    expected = load_file(HERE / case / "expected.safetensors")
    logits = expected.pop("logits")
    model = unipelt.load_adapterhub(base_of(case), HERE / case)
    again = unipelt.load(base_of(case), unipelt.save(model, tmp_path))
    exact = not case.startswith(("t5", "llama"))  # these pass through float32 even in float64
    for loaded in (model, again):
        with torch.no_grad():
            torch.testing.assert_close(loaded(**expected).logits, logits, rtol=0, atol=1e-12 if exact else 1e-5)
    with torch.no_grad():
        assert not torch.allclose(base_of(case)(**expected).logits, logits, atol=1e-2)


GOLDEN = sorted(SHARED.glob("ad_*/case.json"))


def golden(case: Path, folder: Path) -> list[Path]:
    """The folders of a golden case; for one that was not saved, a folder made of its parameters and their names."""
    facts, tensors = json.loads((case / "case.json").read_text()), load_file(case / "tensors.safetensors")
    if "saved_checkpoint" in facts:
        return [case / name for name in facts["saved_checkpoint"]["directories"]]
    config = {"config": facts["method"]["reference_config"], "model_type": facts["model"]["model_type"]}
    (folder / CONFIG).write_text(json.dumps(config | {"name": "golden", "hidden_size": 32}))
    named = {about["reference_name"]: tensors[name].float() for name, about in facts["pelt"].items()}
    save_file(named, folder / TENSORS)
    return [folder]


@pytest.mark.skipif(not GOLDEN, reason="the golden folders are not here")
@pytest.mark.parametrize("case", [path.parent for path in GOLDEN], ids=lambda path: path.name)
def test_the_golden_folders_give_the_golden_outputs(case: Path, tmp_path: Path):
    facts, tensors = json.loads((case / "case.json").read_text()), load_file(case / "tensors.safetensors")
    inputs = {name[3:]: value for name, value in tensors.items() if name.startswith("in.") and name != "in.cotangent"}
    expected = tensors.get("out.stock_logits", tensors["out.logits"])
    for folder in golden(case, tmp_path):
        kind = getattr(transformers, facts["model"]["class"])
        config = kind.config_class(**facts["model"]["config"])
        model = kind._from_config(config, attn_implementation="eager").double().eval()
        model.load_state_dict({name[5:]: value for name, value in tensors.items() if name.startswith("base.")})
        unipelt.load_adapterhub(model, folder)
        with torch.no_grad():
            logits = model(**inputs).logits
        loose = "out.stock_logits" in tensors
        torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-5 if loose else 1e-10)


def test_gates_are_read_with_their_own_pooling_and_scales_as_learned():
    unipelt_ = mixture_state(unipelt.load_adapterhub(base_of("bert-unipelt"), HERE / "bert-unipelt")).mixture
    assert {change.weight for change in unipelt_.changes} == {Gate(pool="reference")}
    assert [name for name, _ in unipelt_.named()] == [
        "prefix_heads", "bottleneck_ffn", "low_rank_query", "low_rank_value",
    ]  # fmt: skip
    parallel = unipelt.load_adapterhub(base_of("distilbert-parallel"), HERE / "distilbert-parallel")
    assert mixture_state(parallel).mixture.changes[0].weight == Learned()


def test_layers_left_out_and_sizes_of_their_own_are_kept():
    flat = unipelt.load_adapterhub(base_of("bert-flat"), HERE / "bert-flat")
    assert (
        mixture_state(flat).mixture.changes[0].layers == (1,) and mixture_state(flat).mixture.changes[0].form.mlp == 0
    )
    sizes = unipelt.load_adapterhub(base_of("bert-sizes"), HERE / "bert-sizes")
    assert [(c.form.size, c.layers) for c in mixture_state(sizes).mixture.changes] == [(2, (0,)), (4, (1,))]


def test_without_a_head_file_the_head_is_the_bases_own(tmp_path: Path):
    copied("bert-lora", tmp_path)
    (tmp_path / HEAD_TENSORS).unlink()
    model = unipelt.load_adapterhub(base_of("bert-lora"), tmp_path)
    assert not mixture_state(model).head_modules
    randomise(model)


def test_a_base_whose_row_the_table_lacks_is_discovered_or_given():
    given = load_file(HERE / "bert-lora" / "expected.safetensors")
    logits = given.pop("logits")
    for options in ({}, {"stacks": ARCHITECTURES["bert"], "discover": False}):
        other = base_of("bert-lora")
        other.config.use_bidirectional_attention = True  # a switch under which the table has no row
        model = unipelt.load_adapterhub(other, HERE / "bert-lora", **options)
        with torch.no_grad():
            torch.testing.assert_close(model(**given).logits, logits, rtol=0, atol=1e-12)
    with pytest.raises(SiteError, match="discover=True"):
        unipelt.load_adapterhub(unipelt.detach(model), HERE / "bert-lora", discover=False)


def test_lora_of_before_1_1_has_the_scale_it_was_trained_with(tmp_path: Path):
    """`adapters` 1.0 ignored α/r, and 1.1 reads such files with α = r: their pull request 770."""
    copied("bert-lora", tmp_path, version="adapters.1.0.1")
    forms = [c.form for c in mixture_state(unipelt.load_adapterhub(base_of("bert-lora"), tmp_path)).mixture.changes]
    assert {form.alpha for form in forms} == {3.0}


def copied(case: str, to: Path, config: dict | None = None, /, **whole) -> Path:
    """A folder with other options in its config."""
    for path in (HERE / case).iterdir():
        if path.name != "expected.safetensors":
            (to / path.name).write_bytes(path.read_bytes())
    facts = json.loads((to / CONFIG).read_text()) | whole
    facts["config"] = {**facts["config"], **config} if config else facts["config"]
    (to / CONFIG).write_text(json.dumps(facts))
    return to


def assert_refused(case: str, folder: Path, message: str, error: type = CheckpointError, **options) -> None:
    model = base_of(case, **options)
    before = state_of(model)
    with pytest.raises(error, match=message) as raised:
        unipelt.load_adapterhub(model, folder)
    assert "\n" not in str(raised.value)
    assert_plain(model, before)


REFUSED = {
    "compacter": ("bert-sizes", {"phm_layer": True}, "bottleneck: phm_layer=True cannot be read; expected False"),
    "invertible": ("bert-sizes", {"inv_adapter": "nice"}, "inv_adapter='nice' cannot be read"),
    "channel": ("bert-sizes", {"scaling": "channel"}, "scaling='channel' cannot be read"),
    "norm before": ("bert-sizes", {"ln_before": True}, "ln_before=True cannot be read"),
    "norm after": ("bert-sizes", {"ln_after": True}, "ln_after=True cannot be read"),
    "original norm": ("bert-sizes", {"original_ln_after": False}, "original_ln_after=False cannot be read"),
    "residual": ("bert-sizes", {"residual_before_ln": "post_add"}, "residual_before_ln='post_add' cannot be read"),
    "scaled gate": ("bert-sizes", {"use_gating": True, "scaling": 2.0}, "scaling=2.0 cannot be read beside use_gating"),
    "activation": ("bert-sizes", {"non_linearity": "mish"}, "non_linearity='mish' cannot be read; expected 'relu'"),
    "a future option": ("bert-sizes", {"whirl": 3}, "bottleneck: the option whirl=3 is not known"),
    "no factor": ("bert-sizes", {"reduction_factor": {"7": 2}}, "its config is not as expected"),
    "factor 0": ("bert-sizes", {"reduction_factor": 0}, "its config is not as expected"),
    "dora": ("bert-lora", {"use_dora": True}, "lora: use_dora=True cannot be read"),
    "vera": ("bert-lora", {"vera_d": 0.1}, "vera_d=0.1 cannot be read"),
    "ia3": ("bert-lora", {"composition_mode": "scale"}, "composition_mode='scale' cannot be read"),
    "prompt": ("bert-lora", {"architecture": "prompt_tuning"}, "architecture='prompt_tuning': did you mean 'prefix_t"),
    "reft": ("bert-lora", {"architecture": "reft"}, "architecture='reft': known: bottleneck, lora, prefix_tuning"),
    "rank": ("bert-lora", {"r": "3"}, r"low_rank\(r='3'\): expected a whole number"),
    "relu mlp": ("bert-flat", {"flat": False, "non_linearity": "relu"}, "non_linearity='relu' cannot be read"),
    "two gates": ("bert-flat", {"flat": False, "shared_gating": False}, "shared_gating=False cannot be read"),
    "left out": ("t5-houlsby", {"leave_out": [1]}, "leave_out or reduction_factor differs between encoder and decoder"),
    "no cross": ("t5-houlsby", {"cross_adapter": False}, "cross_adapter=False beside mh_adapter=True cannot be read"),
    "parallel": ("t5-houlsby", {"is_parallel": True}, "a parallel adapter on attention of 't5' reads its residual"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_has_no_counterpart_is_refused_by_name(what: str, tmp_path: Path):
    case, config, message = REFUSED[what]
    assert_refused(case, copied(case, tmp_path, config), message)


PREFIX = {"architecture": "prefix_tuning", "prefix_length": 3, "bottleneck_size": 5, "non_linearity": "tanh"}


@pytest.mark.parametrize(
    ("case", "options", "message"),
    [
        ("bart-unipelt", {"cross_prefix": False}, "cross_prefix=False cannot be read"),
        ("bart-unipelt", {"encoder_prefix": False}, "encoder_prefix=False cannot be read"),
        ("t5-houlsby", {}, "counts T5's relative positions from its prefix: cannot be read"),
    ],
)
def test_prefixes_that_are_another_function_are_refused(case: str, options: dict, message: str, tmp_path: Path):
    assert_refused(case, copied(case, tmp_path, config=PREFIX | options), message)


def test_another_base_is_refused(tmp_path: Path):
    folder = HERE / "bert-lora"
    assert_refused("llama-mam", folder, "made for a 'bert' of hidden size 16; got a 'llama' of 16; load that base")
    assert_refused("bert-lora", folder, "hidden size 16; got a 'bert' of 32", hidden_size=32)
    assert_refused(
        "bert-lora",
        folder,
        r"'head\.classifier\.(weight|bias)' is .*load a base with as many labels",
        num_labels=5,
    )
    assert_refused("bert-lora", folder, r"has no 'encoder\.layer\.2\.attention", num_hidden_layers=3)
    assert_refused("bert-lora", folder, r"holds 'encoder\.layer\.1\.", num_hidden_layers=1)
    assert_refused("bert-lora", folder, r"is \(24, 3\), expected \(28, 3\)", intermediate_size=28)
    gpt2 = copied("bert-lora", tmp_path, model_type="gpt2")
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2))
    with pytest.raises(CheckpointError, match="adapters of 'gpt2' cannot be read: known: albert"):
        unipelt.load_adapterhub(model, gpt2)
    model.config.model_type = "unheard-of"
    with pytest.raises(CheckpointError, match="made for a 'gpt2' of hidden size 16; got a 'unheard-of' of 16"):
        unipelt.load_adapterhub(model, gpt2)


@pytest.mark.parametrize(
    ("name", "value"),
    [("name", None), ("model_type", 3), ("config", "pfeiffer"), ("config", {"architecture": "union"})],
)
def test_a_config_that_is_not_one_is_refused(name: str, value: object, tmp_path: Path):
    assert_refused("bert-lora", copied("bert-lora", tmp_path, **{name: value}), r"adapter_config\.json: ")


def test_tensors_that_do_not_fit_are_refused(tmp_path: Path):
    copied("bert-lora", tmp_path)
    tensors = load_file(tmp_path / TENSORS)
    name = "bert.encoder.layer.1.attention.self.query.loras.theirs.lora_B"
    changed = {
        r"has no 'encoder\.layer\.1\.attention\.self\.query\.loras\.theirs\.lora_B'; another base, or a damaged": {
            key: value for key, value in tensors.items() if key != name
        },
        "holds 'surplus', which its config does not have": tensors | {"surplus": torch.zeros(1)},
        r"up\.weight' is \(16, 4\), expected \(16, 3\)": tensors | {name: torch.zeros(16, 4)},
        r"has no 'encoder\.layer\.\d.*theirs": {k.replace("theirs", "other"): v for k, v in tensors.items()},
    }
    for message, other in changed.items():
        save_file(other, tmp_path / TENSORS)
        assert_refused("bert-lora", tmp_path, message)


def test_copies_of_a_prefix_that_differ_are_refused(tmp_path: Path):
    copied("bert-unipelt", tmp_path)
    tensors = torch.load(tmp_path / PICKLED, weights_only=True)
    name = "bert.prefix_tuning.prefix_tunings.theirs.self_prefix.wte.weight"
    tensors[name] = tensors[name] + 1
    torch.save(tensors, tmp_path / PICKLED)
    assert_refused("bert-unipelt", tmp_path, "its copies of 'prefix_tunings.theirs.self_prefix.wte.weight' differ")


def test_a_head_of_another_model_is_refused(tmp_path: Path):
    copied("bert-lora", tmp_path)
    save_file({"heads.theirs.1.weight": torch.zeros(3, 16)}, tmp_path / HEAD_TENSORS)
    assert_refused("bert-lora", tmp_path, "a head with 'heads.theirs.1.weight', which this BertForSequenceClass")
    save_file({"bert.embeddings.word_embeddings.weight": torch.zeros(40, 16)}, tmp_path / HEAD_TENSORS)
    assert_refused("bert-lora", tmp_path, "a head with a Embedding")


class Code:
    """A pickle of this runs a command when it is loaded."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("name", [PICKLED, HEAD_PICKLED])
@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_pickle_with_code_is_refused_and_not_run(name: str, how: str, tmp_path: Path):
    folder, trace = copied("bert-unipelt", tmp_path), tmp_path / "trace"
    payload = {"weight": Code(trace)}
    torch.save(payload, folder / name) if how == "torch" else (folder / name).write_bytes(pickle.dumps(payload))
    assert_refused("bert-unipelt", folder, rf"{name}: refused: truncated, or holds more than tensors")
    assert not trace.exists()
    pickle.loads(pickle.dumps(payload))
    assert trace.exists()  # it would have run


@pytest.mark.parametrize("keep", [0, 10, 1000, -30])
def test_truncated_files_are_refused(keep: int, tmp_path: Path):
    for case, name in (("bert-unipelt", PICKLED), ("bert-lora", TENSORS), ("bert-lora", HEAD_TENSORS)):
        folder = tmp_path / name
        folder.mkdir()
        copied(case, folder)
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: min(keep, len(data) - 30)])
        assert_refused(case, folder, rf"{name}: (refused: )?truncated")


def test_a_pickle_of_something_else_is_refused(tmp_path: Path):
    folder = copied("bert-unipelt", tmp_path)
    for other in ([torch.zeros(1)], {"weight": 1}):
        torch.save(other, folder / PICKLED)
        assert_refused("bert-unipelt", folder, "expected tensors by name; got (list|dict)")


def test_a_pickle_of_other_kinds_of_tensors_is_refused(tmp_path: Path):
    folder = copied("bert-unipelt", tmp_path)
    tensors = torch.load(folder / PICKLED, weights_only=True)
    name = next(name for name, value in tensors.items() if value.dim() == 2)
    value = tensors[name].float()
    for other in (value.to_sparse(), value.to("meta")):
        torch.save(tensors | {name: other}, folder / PICKLED)
        assert_refused(
            "bert-unipelt", folder, "is sparse, quantised, nested or without values; expected a plain tensor"
        )


@pytest.mark.parametrize("factor", [2**-14, 2**-20, 1e-300, 0, -4, "x", [16], None])
def test_sizes_are_checked_against_the_file_before_anything_is_built(factor, tmp_path: Path):
    """A factor of 2⁻¹⁴ asks for half a million hidden units: 130 MB a layer on a base of 300 kB."""
    config = json.loads((HERE / "bert-unipelt" / CONFIG).read_text())["config"]
    for part in config["configs"]:
        if "reduction_factor" in part:
            part["reduction_factor"] = factor
    copied("bert-unipelt", tmp_path, config)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert_refused("bert-unipelt", tmp_path, f"{CONFIG}|expected|has no")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # kB


def test_missing_files_are_named(tmp_path: Path):
    assert_refused("bert-lora", tmp_path, "no adapter_config.json in it; expected a folder that save_adapter")
    copied("bert-lora", tmp_path)
    (tmp_path / TENSORS).unlink()
    assert_refused("bert-lora", tmp_path, "neither adapter.safetensors nor pytorch_adapter.bin in it")


def test_paths_in_a_config_are_not_followed(tmp_path: Path):
    elsewhere = str(tmp_path / "elsewhere")
    copied("bert-lora", tmp_path, model_name=elsewhere, head=elsewhere)
    assert mixture_state(unipelt.load_adapterhub(base_of("bert-lora"), tmp_path)).mixture.changes
    copied("bert-lora", tmp_path, name="../" + elsewhere)
    assert_refused("bert-lora", tmp_path, "has no 'encoder")


def test_a_headless_base_takes_the_adapter_alone(tmp_path: Path):
    """Keys count from the base model, whatever class saved them."""
    copied("bert-lora", tmp_path)
    (tmp_path / HEAD_TENSORS).unlink()
    whole = unipelt.load_adapterhub(base_of("bert-lora"), tmp_path)
    alone = (
        transformers.BertModel._from_config(transformers.BertConfig(**BERT), attn_implementation="eager")
        .double()
        .eval()
    )
    alone.load_state_dict(base_of("bert-lora").bert.state_dict())
    unipelt.load_adapterhub(alone, tmp_path)
    inputs = {k: v for k, v in load_file(HERE / "bert-lora" / "expected.safetensors").items() if k != "logits"}
    with torch.no_grad():
        assert torch.equal(
            alone(**inputs).last_hidden_state, whole(**inputs, output_hidden_states=True).hidden_states[-1]
        )
