"""A soft prompt is a longer input: the base runs on [P; E(x)], and only its user does not see it."""

from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
import transformers as hf
from torch import Tensor, nn

import unipelt
from laws.lawbook import DECODERS, SEQ2SEQ, attached, equal, on_each, result, small, why_refused
from laws.test_causality import generated
from unipelt import Change, Mixture, Prompt, spec
from unipelt.errors import SiteError, SpecError
from unipelt.inject.shapes import most_tokens
from unipelt.inject.state import mixture_state

LENGTH = 3
PROMPTED = on_each("prompt")


def prompt(length: int = LENGTH, **settings: Any) -> Change:
    return Change(form=Prompt(length=length, **settings), site="embeddings", reads="nothing")


def beside(arch: str) -> Mixture:
    """Gates, an adapter, a prefix and LoRA where they can be."""
    return small("unipelt-apl") if why_refused(arch, small("unipelt-apl")) is None else small("houlsby")


def with_its_values(model: nn.Module, other: nn.Module) -> nn.Module:
    """The model, each tuned parameter that it has too taken from another one."""
    theirs = mixture_state(other).state_of(0)
    with torch.no_grad():
        for name, parameter in mixture_state(model).named_parameters():
            parameter[0].copy_(theirs[name])
    return model


def vectors(model: nn.Module) -> Tensor:
    """P, of all prompts in tuple order `[prompt, d]`."""
    own = mixture_state(model).state_of(0)
    return torch.cat([value for name, value in own.items() if name.endswith("vectors")])


def longer(model: nn.Module, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a user would give to the base: right-padded rows, so that the prompt is at the very front."""
    own = vectors(model)
    words = model.get_input_embeddings()(given["input_ids"])
    rest = {name: value for name, value in given.items() if name.startswith("decoder")}
    mask = F.pad(given["attention_mask"], (len(own), 0), value=1)
    return rest | {"inputs_embeds": torch.cat([own.expand(len(words), -1, -1), words], dim=1), "attention_mask": mask}


@pytest.mark.parametrize("arch", PROMPTED)
@torch.no_grad()
def test_the_base_runs_on_the_longer_input(arch: str):
    """With other forms beside it, whose gates count the prompt among the tokens; every output has the length of the input."""
    others = beside(arch)
    model = attached(arch, Mixture((prompt(), *others.changes)), top="base", attn="eager")
    plain = with_its_values(attached(arch, others, top="base", attn="eager"), model)
    given = tiny.inputs(arch, model)
    how = {"output_hidden_states": True, "output_attentions": True}
    ours, theirs = model(**given, **how), plain(**longer(model, given), **how)
    mask = given["attention_mask"].bool()
    if arch in SEQ2SEQ:
        equal(ours.last_hidden_state, theirs.last_hidden_state, arch, "eager")
        mine = [ours.encoder_last_hidden_state, *ours.encoder_hidden_states, *ours.encoder_attentions]
        other = [theirs.encoder_last_hidden_state, *theirs.encoder_hidden_states, *theirs.encoder_attentions]
    else:
        mine = [ours.last_hidden_state, *ours.hidden_states, *ours.attentions]
        other = [theirs.last_hidden_state, *theirs.hidden_states, *theirs.attentions]
    for one, another in zip(mine, other, strict=True):
        one, another = (t.transpose(1, 2) if t.dim() == 4 else t for t in (one, another))
        equal(one[mask], another[:, LENGTH:][mask], arch, "eager")
    bare = {name: value for name, value in given.items() if name != "attention_mask"}
    long = {name: value for name, value in longer(model, given).items() if name != "attention_mask"}
    without = arch in (*SEQ2SEQ, "roberta", "xlm-roberta", "camembert", "mpnet")  # the latter number what is no padding
    if not without:
        equal(result(model(**bare)), result(plain(**long))[:, LENGTH:], arch, "eager", what="without a mask")


@pytest.mark.parametrize("arch", ["bert", "albert", "roberta"])
@torch.no_grad()
def test_a_head_reads_the_first_token_or_the_prompts_first_vector(arch: str):
    model, first = (attached(arch, Mixture((prompt(first=which),))) for which in ("input", "prompt"))
    plain = with_its_values(attached(arch, "head"), model)
    given = tiny.inputs(arch, model)
    equal(first(**given).logits, plain(**longer(model, given)).logits, arch)
    states = first(**given, output_hidden_states=True).hidden_states[-1]
    assert states.shape[1] == given["input_ids"].shape[1]
    base = model.base_model
    last = base(**given).last_hidden_state
    if arch == "bert":
        torch.testing.assert_close(base(**given).pooler_output, base.pooler(last))
    assert (model(**given).logits - first(**given).logits).abs().max() > 1e-3


@torch.no_grad()
def test_the_mean_over_tokens_leaves_out_padding_on_the_left():
    model = attached("bert", "prompt", pooling="mean")
    given = tiny.inputs("bert", model, pads=())
    ids, mask = given["input_ids"], given["attention_mask"]
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    alone = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    for pads in ((2, 0), (LENGTH + 2, 0), (0, 2)):
        padded = [F.pad(value, pads) for value in (ids, mask, positions)]
        logits = model(**dict(zip(("input_ids", "attention_mask", "position_ids"), padded))).logits
        equal(logits, alone, "bert", what=f"padding {pads}")


@pytest.mark.parametrize("arch", ["bert", "llama", "bart"])
@torch.no_grad()
def test_two_prompts_are_one_of_both_lengths(arch: str):
    two, one = (attached(arch, Mixture(changes)) for changes in ((prompt(2), prompt(3)), (prompt(5),)))
    for name, parameter in mixture_state(one).named_parameters():
        other = mixture_state(two).state_of(0)
        parameter[0].copy_(vectors(two) if name.endswith("vectors") else other[name])
    given = tiny.inputs(arch, one)
    equal(result(one(**given)), result(two(**given)), arch)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("arch", ["roberta", "deberta-v2", "gpt2", "opt", "gpt_neox", "t5"])
@torch.no_grad()
def test_rows_of_unlike_prompts_stand_side_by_side(arch: str, side: str):
    """A row whose mixture has a shorter prompt, or none, is as if it were alone."""
    mixtures = [Mixture((prompt(4),)), Mixture((prompt(2),)), small("parallel-adapter")]
    model, route = attached(arch, mixtures, top="base"), [2, 0, 1, 1, 2, 0]
    given = tiny.inputs(arch, model, batch=6, side=side)
    with unipelt.route(model, route):
        together = result(model(**given))
    for number, mixture in enumerate(mixtures):
        alone, mine = attached(arch, mixture, top="base"), torch.tensor(route) == number
        state = model.unipelt.mixtures[number].state_of(0)
        for name, parameter in mixture_state(alone).named_parameters():
            parameter[0].copy_(state[name])
        own = {name: value[mine] for name, value in given.items()}
        real = own["attention_mask"].bool() if arch not in SEQ2SEQ else ...
        equal(together[mine][real], result(alone(**own))[real], arch, what=str(mixture))


@pytest.mark.parametrize("arch", [arch for arch in DECODERS if arch not in ("llama", "mixtral")] + ["mbart"])
def test_generation_with_a_cache_is_generation_without(arch: str):
    """Rows of unlike padding, beams; llama, bart and t5 are among the presets' cases."""
    model = attached(arch, "prompt", top="generator")
    scores, uncached = (generated(model, arch, 2, cached)[1] for cached in (True, False))
    finite = uncached.isfinite()
    equal(scores[finite], uncached[finite], arch)
    with unipelt.disabled(model):
        assert (generated(model, arch, 2, True)[1] - scores)[finite].abs().max() > 1e-4


@torch.no_grad()
def test_a_gate_over_the_text_to_go_on_from_counts_the_vectors_too():
    """Gate(pool='prompt'), by its mask and by the cache, of rows with padding on the left."""
    gated = spec.mixture("unipelt-ap(bottleneck=6, prefix=3, mlp=5, pool='prompt')").changes
    model = attached("llama", Mixture((prompt(), *gated)), top="generator")
    given = tiny.inputs("llama", model, side="left")
    full = model(**given, past_key_values=hf.DynamicCache()).logits
    with unipelt.prompt(model, given["attention_mask"]):
        equal(model(**given, use_cache=False).logits, full, "llama")


def test_a_cache_that_lost_the_prompt_is_refused():
    """As assisted generation cuts one, or a later call that goes on counts it."""
    model = attached("llama", "prompt", top="generator")
    given = tiny.inputs("llama", model, pads=())
    past = model(**given, use_cache=True).past_key_values
    assert past.get_seq_length() == 9 + LENGTH
    step = {"input_ids": given["input_ids"][:, :1], "past_key_values": past}
    with pytest.raises(SiteError, match=r"mask of 9 tokens, 1 of them new, for a cache of 12, 3 of them the prompt's"):
        model(**step, attention_mask=given["attention_mask"])
    with pytest.raises(SiteError, match="a static cache cannot hold a prompt"):
        model.generate(**given, max_new_tokens=3, cache_implementation="static")

    with pytest.raises(
        SiteError, match=r"attention_mask \[3, 1, 9, 9\]: with a prompt, expected a mask \[batch, seq\]"
    ):
        model(input_ids=given["input_ids"], attention_mask=torch.ones(3, 1, 9, 9))


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_packed_sequences_are_refused(arch: str):
    """Without a mask, positions that start again are packed sequences, as transformers reads them."""
    model = attached(arch, "prompt", top="generator")
    ids, packed = torch.full((1, 10), 7), torch.tensor([[*range(6), *range(4)]])
    with pytest.raises(SiteError, match=r"position_ids that start again in a row: .* unpack them"):
        model(ids, position_ids=packed)
    model(ids, position_ids=torch.arange(10)[None])
    model(ids, position_ids=packed, attention_mask=torch.ones_like(ids))
    with unipelt.disabled(model):
        model(ids, position_ids=packed)


def test_where_a_prompt_cannot_be_it_is_refused():
    with pytest.raises(SpecError, match=r"layers=\(0,\): a prompt has no layers"):
        Change(form=Prompt(), site="embeddings", reads="nothing", layers=(0,))
    with pytest.raises(SiteError, match=r"length=64 of the 64 positions that bert has leaves none for the input"):
        unipelt.attach(tiny.build("bert"), "prompt(length=64)")
    with pytest.raises(SiteError, match="expected one encoder"):
        unipelt.attach(tiny.build("llama"), Mixture((prompt(first="prompt"),)))
    model = attached("bert", "prompt")
    with pytest.raises(SpecError, match="a prompt adds vectors to the input, which no weight of the base can"):
        unipelt.merge(model)


@pytest.mark.parametrize("arch", ["bert", "roberta", "gpt2", "opt", "bart", "distilbert", "mpnet"])
def test_a_row_of_the_most_tokens_fits_with_its_prompt(arch: str):
    model = attached(arch, "prompt")
    most = most_tokens(model, 1000)
    assert most == most_tokens(tiny.build(arch), 1000) - LENGTH
    assert result(model(**tiny.inputs(arch, model, batch=2, length=most, pads=(0,)))).isfinite().all()


def test_a_prompt_starts_at_embeddings_of_tokens_or_uniform():
    model = unipelt.attach(tiny.build("bart"), Mixture((prompt(), prompt(init="uniform"))), seeds=[5])
    table = model.get_input_embeddings()
    drawn = vectors(model)
    every = table(torch.arange(table.num_embeddings))  # BART scales its embeddings
    assert all((row == every).all(dim=1).any() for row in drawn[:LENGTH])
    assert drawn[LENGTH:].abs().max() <= 0.5 and not any((row == every).all(dim=1).any() for row in drawn[LENGTH:])
