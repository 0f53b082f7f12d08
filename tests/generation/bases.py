"""Tiny random language models in folders, with a tokenizer, and files of chats and pairs."""

import json
from pathlib import Path

import tiny
from generation.toy_text import TEMPLATES, tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

CHAT_TEMPLATE = TEMPLATES["nothing ends a turn"]
ANSWERS = ("a list", "none", "the sum of two words, or a list of numbers", "words", "two numbers")


def save_base(folder: Path, arch: str = "llama", template: str | None = None) -> Path:
    """A base of one architecture, as `--model` takes it."""
    entry = tiny.ARCHITECTURES[arch]
    words = tokenizer(template, pair="<s> $A </s>" if entry.kind == "encoder-decoder" else "<s> $A")
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    longest = {} if arch in ("t5", "gpt2") else {"max_position_embeddings": 256}
    config = entry.config(
        **{"vocab_size": len(words)} | special | longest | ({"n_positions": 256} if arch == "gpt2" else {})
    )
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = kind.from_config(config)
    tiny.randomise(model)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def save_pairs(path: Path, count: int = 60, names: tuple[str, str] = ("source", "target")) -> Path:
    """Questions of unequal length with answers of unequal length that can be learned."""
    rows = [
        dict(zip(names, (f"what does function {n} return? " + "word " * (n % 7), ANSWERS[n % len(ANSWERS)])))
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def save_chats(path: Path, count: int = 60) -> Path:
    """Chats of one and of two exchanges."""
    lines = []
    for n in range(count):
        first = [{"role": "user", "content": f"what is {n}?"}, {"role": "assistant", "content": ANSWERS[n % 5]}]
        then = [{"role": "user", "content": "and then?"}, {"role": "assistant", "content": ANSWERS[n % 3]}]
        lines.append(json.dumps({"messages": first + then * (n % 2)}))
    path.write_text("\n".join(lines) + "\n")
    return path
