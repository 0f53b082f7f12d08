"""Every example runs in a process of its own, on tiny bases."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

EXAMPLES = Path(__file__).parents[2] / "examples"
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
METHOD = "unipelt-apl(bottleneck=4, prefix=2, mlp=8, r=2)"
CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|end|>"
    "{% endgeneration %}{% else %}{{ m['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def example(name: str, *words: object) -> str:
    """What an example prints."""
    program = ["bash"] if name.endswith(".sh") else [sys.executable]
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*program, EXAMPLES / name, *map(str, words)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT that reads letters."""
    folder, special = tmp_path_factory.mktemp("encoder"), ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [prefix + chr(code) for prefix in ("", "##") for code in range(ord("!"), ord("~") + 1)]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(special + letters)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, **names).save_pretrained(folder)
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=200, max_position_embeddings=128, **SIZES)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with a chat template, which reads bytes."""
    folder, special = tmp_path_factory.mktemp("chat"), ["<|end|>", "<|user|>", "<|assistant|>", "<|pad|>"]
    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({sign: i for i, sign in enumerate(signs)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    names = {"eos_token": "<|end|>", "pad_token": "<|pad|>", "additional_special_tokens": special[1:3]}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHAT, **names)
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(fast), max_position_embeddings=256, eos_token_id=fast.eos_token_id, **SIZES)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_classify_csv(tmp_path: Path):
    said = example("classify_csv.sh", tmp_path, "--epochs", 1, "--folds", 2, "--no-learning-curve", "--device", "cpu")
    assert "The invoice names the wrong company.,billing," in said and "p(technical)" in said
    assert (tmp_path / "tickets" / "report" / "report.html").exists() and "out-of-fold accuracy" in said


def test_trainer(encoder: Path, tmp_path: Path):
    said = example("trainer.py", tmp_path, "--model", encoder, "--method", METHOD, "--steps", 2)
    assert re.search(r"[\d,]+ trained parameters, test accuracy \d\.\d\d\n", said)
    assert (tmp_path / "tuned" / "unipelt.safetensors").exists()


@pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed: pip install 'unipelt[trl]'")
def test_chat_sft(chat_model: Path, tmp_path: Path):
    said = example("chat_sft.py", tmp_path, "--model", chat_model, "--method", "lora(r=4)", "--steps", 8)
    first, last = map(float, re.search(r"loss (\S+) at the first step, (\S+) at the last", said).groups())  # type: ignore[union-attr]
    assert last < first and (tmp_path / "tuned" / "unipelt.safetensors").exists()


@pytest.mark.skipif(find_spec("sentence_transformers") is None, reason="sentence-transformers is not installed")
def test_sentence_embeddings(encoder: Path, tmp_path: Path):
    said = example("sentence_embeddings.py", tmp_path, "--model", encoder, "--method", METHOD, "--steps", 20)
    before, after = map(float, re.search(r"areas: (\S+) before, (\S+) after", said).groups())  # type: ignore[union-attr]
    assert after > before and (tmp_path / "tuned" / "unipelt.safetensors").exists()


def test_many_runs(encoder: Path, tmp_path: Path):
    said = example("many_runs.py", tmp_path, "--model", encoder, "--steps", 3)
    assert len(re.findall(r"losses( \d\.\d\d){8}\n", said)) == 2
    assert len(list(tmp_path.glob("run-*/unipelt.safetensors"))) == 8


def test_every_example_is_run_and_listed():
    names = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh")}
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    tested = Path(__file__).read_text(encoding="utf-8")
    assert all(f"({name})" in listed and f'example("{name}"' in tested for name in names)
