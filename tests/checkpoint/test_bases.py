"""A base is loaded whole or refused in one line, and no code that it brings is run."""

import json
from pathlib import Path

import pytest
import tiny
import transformers
from safetensors.torch import load_file, save_file

from unipelt.checkpoint.bases import declared_pooling, from_hub, load_base, load_tokenizer
from unipelt.errors import CheckpointError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.build("bert", "base").save_pretrained(tmp_path)
    return tmp_path


def changed(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {new: value for name, old in tensors.items() for new, value in change(name, old)}, folder / "model.safetensors"
    )


UNFIT = {
    "other names": (lambda name, value: [(name.replace("attention.self.query", "attention.q"), value)], "query.*is not in its file.*3 more"),
    "a missing layer": (lambda name, value: [] if "layer.1." in name else [(name, value)], r"layer\.1\..*is not in its file"),
    "another shape": (lambda name, value: [(name, value[:40] if "word" in name else value)], r"word_embeddings.*is \(40, 32\) in its file and \(60, 32\) by its config"),
    "nothing of it": (lambda name, value: [(f"x.{name}", value)], "is not in its file"),
}  # fmt: skip


@pytest.mark.parametrize("what", UNFIT)
def test_weights_that_do_not_fit_the_config_are_refused(what: str, folder: Path):
    change, words = UNFIT[what]
    changed(folder, change)
    with pytest.raises(CheckpointError, match=words) as error:
        load_base(str(folder), outputs=2)
    assert "\n" not in str(error.value)


def test_a_head_and_a_pooler_may_be_new(tmp_path: Path):
    tiny.build("bert", num_labels=5).save_pretrained(tmp_path)
    changed(tmp_path, lambda name, value: [] if "pooler" in name else [(name, value)])
    assert load_base(str(tmp_path), outputs=2).classifier.out_features == 2


@pytest.mark.parametrize(("name", "refused"), [("gpt2", False), ("llama", True)])
def test_outputs_of_a_language_model_are_its_own_or_tied(name: str, refused: bool, tmp_path: Path):
    tiny.build(name, "base").save_pretrained(tmp_path)
    if refused:
        with pytest.raises(CheckpointError, match=r"lm_head\.weight is not in its file"):
            load_base(str(tmp_path))
    else:
        assert load_base(str(tmp_path)).get_output_embeddings() is not None


@pytest.mark.parametrize("model_type", ["bert", "theirs"])
def test_code_of_a_base_is_never_run(model_type: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    trace = folder / "trace"
    (folder / "code.py").write_text(f"open({str(trace)!r}, 'w')\n")
    names = {
        "AutoConfig": "code.Config",
        "AutoModelForSequenceClassification": "code.Model",
        "AutoTokenizer": ["code.Slow", None],
    }
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": names, "model_type": model_type}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": names, "tokenizer_class": "Theirs"}))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    loaders = [lambda: load_tokenizer(str(folder)), lambda: load_base(str(folder), outputs=2)]
    if model_type == "theirs":
        loaders.append(lambda: from_hub(str(folder), transformers.AutoConfig.from_pretrained))
    for load in loaders:
        try:
            load()
        except CheckpointError as error:
            assert "\n" not in str(error)
    if model_type == "theirs":
        with pytest.raises(CheckpointError, match="asks for Python code of its own, which is never run"):
            load_base(str(folder), outputs=2)
    assert not trace.exists()


@pytest.mark.parametrize(("text", "found"), [
    ("{", None), ("[1]", None), ("\xff", None), ('{"pooling_mode_mean_tokens": true}', "mean"), ('{"pooling_mode": "cls"}', "cls"), ('{"pooling_mode": ["mean"]}', "model"),
])  # fmt: skip
def test_what_a_sentence_encoder_declares_is_read_or_refused(text: str, found: str | None, tmp_path: Path):
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(text, encoding="latin-1")
    if found is None:
        with pytest.raises(CheckpointError, match="1_Pooling"):
            declared_pooling(str(tmp_path))
    else:
        assert declared_pooling(str(tmp_path)) == found


def test_damaged_files_of_a_base_are_one_line(folder: Path):
    whole = (folder / "config.json").read_text()
    for config in ("{", "[]", whole.replace('"num_hidden_layers": 2', '"num_hidden_layers": "two"'), "null"):
        (folder / "config.json").write_text(config)
        with pytest.raises(CheckpointError, match="--model ") as error:
            load_base(str(folder), outputs=2)
        assert "\n" not in str(error.value)
    (folder / "config.json").write_text(whole)
    (folder / "model.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_base(str(folder), outputs=2)
