"""Tokens that were added to a base before the training: their rows of the embeddings come back, and nothing else moves."""

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from transformers import PreTrainedModel
from values import assert_plain, randomise, state_of

import unipelt
from unipelt.checkpoint.disk import TENSORS
from unipelt.checkpoint.safe import parse_safetensors
from unipelt.errors import CheckpointError, SpecError
from unipelt.inject.added_tokens import token_rows

ADDED = 3
NEW = tiny.VOCABULARY
BASES = {
    "bert": ("bert", "classifier", {}),
    "tied": ("llama", "generator", {"tie_word_embeddings": True}),
    "untied": ("llama", "generator", {"tie_word_embeddings": False}),
    "bart": ("bart", "generator", {}),
}
Base = Callable[..., PreTrainedModel]


@pytest.fixture
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Base:
    """A base in a folder of its own; `base(more, seed)` loads it and adds rows for so many tokens, drawn from the seed."""
    name, head, options = BASES[getattr(request, "param", "tied")]
    model = tiny.build(name, head, **options)
    model.save_pretrained(tmp_path / "base")

    def load(more: int = 0, seed: int = 0) -> PreTrainedModel:
        torch.manual_seed(seed)
        loaded = type(model).from_pretrained(tmp_path / "base", attn_implementation="eager").eval()
        if more:
            loaded.resize_token_embeddings(NEW + more, mean_resizing=False)
        return loaded

    return load


@torch.no_grad()
def answers(model: PreTrainedModel) -> torch.Tensor:
    """Logits of a text with added tokens, of the tokens that all models here have."""
    ids = torch.tensor([[3, NEW, 5, NEW + ADDED - 1, 6]])
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    return model(input_ids=ids, **more).logits[..., : NEW + ADDED]


@pytest.mark.parametrize("base", BASES, indirect=True)
def test_their_rows_come_back_whatever_the_base_has_in_their_place(base: Base, tmp_path: Path):
    model = randomise(unipelt.attach(base(ADDED, seed=1), "lora"))
    unipelt.save(model, tmp_path / "saved")
    model.save_pretrained(tmp_path / "pretrained")
    for folder in (tmp_path / "saved", tmp_path / "pretrained"):
        for more in (0, ADDED, ADDED + 2):
            other = base(more, seed=2)
            before = state_of(other)
            assert torch.equal(answers(unipelt.load(other, folder)), answers(model))
            assert_plain(unipelt.detach(other), before)
            assert other.config.vocab_size == NEW + more == len(other.get_input_embeddings().weight)


def test_they_stay_when_a_run_is_saved_again_merged_or_given_other_gates(base: Base, tmp_path: Path):
    model = randomise(unipelt.attach(base(ADDED, seed=1), "unipelt-ap"))
    loaded = unipelt.load(base(), unipelt.save(model, tmp_path / "one"))
    again = unipelt.load(base(), unipelt.save(loaded, tmp_path / "two"))
    assert torch.equal(answers(again), answers(model))
    unipelt.fix_gates(again, dict.fromkeys((name for name, _ in loaded.unipelt.mixture.named()), 0.5))
    assert torch.equal(token_rows(again)["input"], token_rows(model)["input"])
    lora = unipelt.load(base(), unipelt.save(randomise(unipelt.attach(base(ADDED, 1), "lora")), tmp_path / "lora"))
    expected = answers(lora)
    with pytest.raises(SpecError, match="tokens were added to the base"):
        unipelt.export_peft(lora, tmp_path / "peft")
    torch.testing.assert_close(answers(unipelt.merge(lora)), expected)


def test_a_trainer_that_resumes_gets_them_back(base: Base, tmp_path: Path):
    model = randomise(unipelt.attach(base(ADDED, seed=1), "lora"))
    model.save_pretrained(tmp_path / "checkpoint")
    resumed = unipelt.attach(base(ADDED, seed=2), "lora")
    stored = parse_safetensors((tmp_path / "checkpoint" / TENSORS).read_bytes(), tmp_path)[0]
    found = resumed.load_state_dict(stored, strict=False)
    assert not found.unexpected_keys and torch.equal(answers(resumed), answers(model))
    assert not unipelt.detach(resumed)._load_state_dict_pre_hooks


def test_runs_side_by_side_share_them_or_are_refused(base: Base, tmp_path: Path):
    alone = {}
    for name, more, seed in (("plain", 0, 0), ("A", ADDED, 1), ("B", ADDED, 1), ("C", ADDED, 2)):
        model = randomise(unipelt.attach(base(more, seed), "lora"), seed=ord(name[0]))
        alone[name] = answers(model) if more else None
        unipelt.save(model, tmp_path / name)
    model = unipelt.load(base(), [tmp_path / name for name in ("plain", "B")])
    before = token_rows(model)["input"].clone()
    with pytest.raises(CheckpointError, match="'C' has other embeddings for the same added tokens"):
        unipelt.add(model, tmp_path / "C")
    assert torch.equal(token_rows(model)["input"], before)
    unipelt.remove(unipelt.add(model, tmp_path / "A"), "plain")
    for name in "AB":
        with unipelt.route(model, [name]):
            torch.testing.assert_close(answers(model), alone[name])


@pytest.mark.parametrize("change", ["one fewer", "none of the output's", "not finite", "another width"])
def test_damaged_rows_are_refused_before_anything_is_attached(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import unipelt.checkpoint.folder as folder

    tiny.build("llama", "generator", tie_word_embeddings=False).save_pretrained(tmp_path / "base")
    load = type(tiny.build("llama", "generator")).from_pretrained
    model = load(tmp_path / "base")
    model.resize_token_embeddings(NEW + ADDED, mean_resizing=False)
    rows = folder.added_rows

    def damaged(*given) -> dict[str, torch.Tensor]:
        found = rows(*given)
        if change == "none of the output's":
            return {"added.input": found["added.input"]}
        cut = {"one fewer": lambda t: t[:-1], "not finite": lambda t: t / 0, "another width": lambda t: t[:, :-1]}[
            change
        ]
        return found | {"added.output": cut(found["added.output"]).contiguous()}

    monkeypatch.setattr(folder, "added_rows", damaged)
    unipelt.save(unipelt.attach(model, "lora"), tmp_path / "run")
    other = load(tmp_path / "base")
    before = state_of(other)
    with pytest.raises(CheckpointError, match=r"does not fit its mixture: .*added"):
        unipelt.load(other, tmp_path / "run")
    assert_plain(other, before)


def test_output_embeddings_that_are_not_tied_belong_to_the_identity_of_a_base(tmp_path: Path):
    model = tiny.build("llama", "generator", tie_word_embeddings=False)
    unipelt.save(unipelt.attach(model, "lora"), tmp_path)
    other = tiny.build("llama", "generator", tie_word_embeddings=False)
    unipelt.detach(unipelt.load(other, tmp_path))
    other.lm_head.weight.data[-1, -1] += 1
    with pytest.raises(CheckpointError, match=r"the weights of .* differ \(lm_head\.weight differs in rows"):
        unipelt.load(other, tmp_path)


def test_a_pipeline_takes_the_tokenizer_with_the_added_tokens(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    tiny.build("bert", "base").save_pretrained(tmp_path / "base")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(NEW - 5))]
    plain, tokenizer = (transformers.BertTokenizerFast(vocab={w: i for i, w in enumerate(words)}) for _ in range(2))
    plain.save_pretrained(tmp_path / "base")
    from unipelt.checkpoint.bases import load_base

    tokenizer.add_tokens(["<new>"])
    model = load_base(str(tmp_path / "base"), outputs=2)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    randomise(unipelt.attach(model.eval(), "lora"))
    unipelt.save(model, tmp_path / "run", task={"labels": ["a", "b"]}, tokenizer=tokenizer)
    text = "w1 <new> w2"
    pipe = unipelt.pipeline(tmp_path / "run", device="cpu")
    found = {one["label"]: one["score"] for one in pipe(text, top_k=None)}
    with torch.no_grad():
        expected = model(**tokenizer(text, return_tensors="pt")).logits[0].softmax(0)
    torch.testing.assert_close(torch.tensor([found["a"], found["b"]]), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(CheckpointError, match="was trained with another tokenizer"):
        unipelt.load(load_base(str(tmp_path / "base"), outputs=2), tmp_path / "run", tokenizer=plain)
