"""A tiny base with a tokenizer of its own, files of a few dozen rows, and the command line in this process."""

import csv
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from unipelt.cli import main

SPECIALS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
GOOD, BAD = ["good", "fine", "great", "lovely", "bright"], ["bad", "poor", "awful", "dull", "grim"]
PLAIN = [f"word{i}" for i in range(tiny.VOCABULARY - len(SPECIALS + GOOD + BAD))]


@dataclass
class Said:
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line of a refusal."""
        assert self.code == 2, f"exit code {self.code}: {self.out}{self.err}"
        *_, line = self.err.strip().splitlines()
        assert "Traceback" not in self.err and line.startswith("unipelt: "), self.err
        return line


@pytest.fixture
def run(capsys: pytest.CaptureFixture) -> Callable[..., Said]:
    """The command line in this process: `run("train", "--data", …)`."""

    def call(*words: Any) -> Said:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        return Said(ended.value.code, *capsys.readouterr())  # type: ignore[arg-type]

    return call


def save_base(folder: Path, arch: str) -> str:
    """A random base without a head, as from the hub, with a tokenizer of one token a word."""
    tiny.build(arch, "base").save_pretrained(folder)
    words = {word: index for index, word in enumerate(SPECIALS + GOOD + BAD + PLAIN)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    pair, ends = "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 1), ("[SEP]", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair=pair, special_tokens=ends)
    names = dict(zip(("pad_token", "cls_token", "sep_token", "unk_token", "mask_token"), SPECIALS))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The folder of a tiny base of an architecture, made once."""
    made: dict[str, str] = {}

    def make(arch: str) -> str:
        if arch not in made:
            made[arch] = save_base(tmp_path_factory.mktemp("bases") / arch, arch)
        return made[arch]

    return make


@pytest.fixture(scope="session")
def tiny_base(base_of: Callable[[str], str]) -> str:
    return base_of("bert")


def write_reviews(
    path: Path, count: int = 60, seed: int = 0, labels: bool = True, pairs: bool = False, numbers: bool = False
) -> Path:
    """Texts with one word that says which label is right."""
    chance = random.Random(seed)
    sentence = partial(chance.choices, PLAIN)
    lines = []
    for index in range(count):
        words = [*sentence(k=chance.randint(2, 9)), chance.choice((GOOD, BAD)[index % 2])]
        chance.shuffle(words)
        label = 0.5 + words.index(next(w for w in words if w in GOOD + BAD)) if numbers else ("yes", "no")[index % 2]
        lines.append([" ".join(words), *([" ".join(sentence(k=4))] if pairs else []), *([label] if labels else [])])
    header = ["review", *(["other"] if pairs else []), *(["stars"] if labels else [])]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *lines])
    return path


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reviews(tmp_path_factory.mktemp("data") / "reviews.csv")


@pytest.fixture(scope="session")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reviews(tmp_path_factory.mktemp("data") / "new.csv", 9, seed=1, labels=False)


def same_result(one: Path, other: Path) -> None:
    """Bit-identical parameters, and the same record but for the time that it took."""
    records = [json.loads((folder / "run.json").read_text()) for folder in (one, other)]
    for name in ("seconds", "predicting"):
        assert [record.pop(name) > 0 for record in records] == [True, True]
    assert records[0] == records[1]
    tensors = {path.name for path in other.glob("*.safetensors")}
    assert len(tensors) == 1 and {path.name for path in one.glob("*.safetensors")} == tensors
    assert all((one / name).read_bytes() == (other / name).read_bytes() for name in tensors)


SMALL = {  # a method in a size for a base of 32 hidden units
    "unipelt-apl": "unipelt-apl(bottleneck=4, prefix=2, mlp=8, r=2)",
    "lora": "lora(r=2)",
    "full": "full",
}
QUICK = (
    "--epochs",
    4,
    "--evaluate-every",
    1,
    "--batch-size",
    8,
    "--lr",
    3e-3,
    "--patience",
    0,
    "--precision",
    "fp32",
    "--device",
    "cpu",
)


def replaced(given: Sequence[Any], more: Sequence[Any]) -> list[str]:
    """Command-line words in which each option of `more` stands in place of the same option of `given`."""
    kept, drop, names = [], False, {word for word in map(str, more) if word.startswith("--")}
    for word in map(str, given):
        drop = word in names if word.startswith("--") else drop
        kept += [] if drop else [word]
    return [*kept, *map(str, more)]


@pytest.fixture(scope="session")
def train_words(tiny_base: str, reviews: Path) -> Callable[..., list[str]]:
    """The words of a quick training; an option in `more` replaces the one here."""

    def words(out: Path, method: str = "unipelt-apl", *more: Any) -> list[str]:
        given = ["train", "--model", tiny_base, "--data", reviews, "--method", SMALL.get(method, method), "--out", out]
        return replaced([*given, *QUICK], more)

    return words


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, train_words: Callable[..., list[str]]) -> Callable[[str], Path]:
    """A finished run of a method, made once; not to be changed."""
    made: dict[str, Path] = {}

    def make(method: str) -> Path:
        if method not in made:
            made[method] = tmp_path_factory.mktemp("runs") / method
            with pytest.raises(SystemExit) as ended:
                main(train_words(made[method], method))
            assert ended.value.code == 0
        return made[method]

    return make
