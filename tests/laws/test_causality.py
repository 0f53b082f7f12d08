"""Rule 13: in a causal stack a later token changes no earlier state, and generation with a cache equals generation without."""

import pytest
import tiny
import torch
import transformers as hf
from torch import nn

import unipelt
from laws.lawbook import (
    DECODERS,
    GENERATORS,
    SEQ2SEQ,
    SMALL_GENERATIONS,
    attached,
    cases,
    equal,
    on_each,
    presets_of,
    result,
    small,
    why_refused,
)
from unipelt import Mixture
from unipelt.errors import SiteError
from unipelt.inject.state import mixture_state


def change_last(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Another last real token in each row of the stream that the causal stack reads."""
    name = "decoder_input_ids" if "decoder_input_ids" in given else "input_ids"
    ids = given[name].clone()
    ids[:, -1] = tiny.SPECIAL + (ids[:, -1] - tiny.SPECIAL + 1) % (tiny.VOCABULARY - tiny.SPECIAL)
    return given | {name: ids}


@pytest.mark.parametrize(("arch", "mixture"), cases(GENERATORS, head=False))
def test_a_later_token_changes_no_earlier_state(arch: str, mixture: Mixture):
    model = attached(arch, mixture, top="base")
    given = tiny.inputs(arch, model, side="left")
    with torch.no_grad():
        before, after = result(model(**given)), result(model(**change_last(given)))
    real = slice(None) if arch in SEQ2SEQ else given["attention_mask"][:, :-1].bool()
    equal(after[:, :-1][real], before[:, :-1][real], arch)
    assert (after[:, -1] - before[:, -1]).abs().max() > 1e-4


@pytest.mark.parametrize("arch", on_each("unipelt-apl", DECODERS))
def test_the_reference_gate_looks_ahead(arch: str):
    """U's mean over all positions in a causal stack: kept as an explicit mode, which this law tells from the default."""
    model = attached(arch, "unipelt-apl(pool='reference')", top="base")
    given = tiny.inputs(arch, model, pads=())
    before, after = result(model(**given)), result(model(**change_last(given)))
    assert (after - before)[:, :-1].abs().max() > 1e-4


@pytest.mark.parametrize("arch", on_each("unipelt-apl", DECODERS))
def test_a_causal_gate_is_each_tokens_own(arch: str):
    model = attached(arch, "unipelt-apl", top="base")
    given = tiny.inputs(arch, model, pads=())
    with unipelt.record_gates(model) as gates:
        model(**given)
        model(**change_last(given))
    for path, (before, after) in gates.items():
        assert before.shape == given["input_ids"].shape
        equal(after[:, :-1], before[:, :-1], arch, what=path)


def generated(model: nn.Module, arch: str, beams: int, cached: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The texts, and the scores by which each token was chosen."""
    given = tiny.inputs(arch, model, side="left", length=6, pads=(0, 2))
    given.pop("decoder_input_ids", None)
    how = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        output = model.generate(
            **given, **how, num_beams=beams, use_cache=cached, return_dict_in_generate=True, output_scores=True
        )
    return output.sequences, torch.stack(output.scores)


def generating_cases() -> list[tuple[str, str, int]]:
    """Every preset that changes something on one architecture of each kind, a gated mixture of all forms on each, with beams;
    with one beam some."""
    found = [
        (arch, preset, 3)
        for arch in GENERATORS
        for preset in (presets_of(arch) if arch in SMALL_GENERATIONS else ["unipelt-apl"])
        if preset != "head" and why_refused(arch, small(preset)) is None
    ]
    return found + [(arch, preset, 1) for arch in SMALL_GENERATIONS for preset in ("unipelt-apl", "houlsby")]


@pytest.mark.parametrize(("arch", "preset", "beams"), generating_cases())
def test_generation_with_a_cache_is_generation_without(arch: str, preset: str, beams: int):
    model = attached(arch, preset, top="generator")
    tokens, scores = generated(model, arch, beams, cached=True)
    tokens_without, scores_without = generated(model, arch, beams, cached=False)
    torch.testing.assert_close(tokens, tokens_without)
    finite = scores_without.isfinite()
    equal(scores[finite], scores_without[finite], arch)


PROMPT_GATES = "unipelt-apl(bottleneck=6, prefix=3, mlp=5, r=2, pool='prompt')"


def prompt_of(given: dict[str, torch.Tensor], tokens: int) -> torch.Tensor:
    """1 at the first real tokens of each row."""
    real = given["attention_mask"]
    return real * (real.cumsum(dim=1) <= tokens)


@pytest.mark.parametrize("arch", on_each("unipelt-apl", DECODERS))
def test_a_gate_of_the_prompt_reads_the_prompt_alone(arch: str):
    """It is the mean of the prompt's tokens' own values, and no state of the prompt sees a later token."""
    model = attached(arch, PROMPT_GATES, top="base")
    given = tiny.inputs(arch, model, side="left")
    mask = prompt_of(given, 3)
    with torch.no_grad(), unipelt.prompt(model, mask), unipelt.record_gates(model) as gates:
        before, after = result(model(**given)), result(model(**change_last(given)))
    real = given["attention_mask"][:, :-1].bool()
    equal(after[:, :-1][real], before[:, :-1][real], arch)
    each = attached(arch, PROMPT_GATES.replace("'prompt'", "'token'"), top="base")
    with torch.no_grad(), unipelt.record_gates(each) as own:
        each(**given)
    first = [path for path in gates if "prefix" in path and ".0." in path]
    for path in first:
        equal(gates[path][0], (own[path][0] * mask).sum(dim=1) / mask.sum(dim=1), arch, what=path)
    assert first and len({tuple(value.tolist()) for values in gates.values() for value in values}) == len(gates)


@pytest.mark.parametrize(("arch", "beams"), [*((arch, 1) for arch in on_each("unipelt-apl", DECODERS)), ("llama", 3)])
def test_gates_of_the_prompt_stay_while_a_text_is_written(arch: str, beams: int):
    """Cached: fixed by the forward that reads the prompt. Not cached: by the mask."""
    model = attached(arch, PROMPT_GATES, top="generator")
    cached = generated(model, arch, beams, cached=True)
    with pytest.raises(SiteError, match="pool='prompt' needs to know which tokens are the prompt"):
        generated(model, arch, beams, cached=False)
    mask = tiny.inputs(arch, model, side="left", length=6, pads=(0, 2))["attention_mask"]
    with unipelt.prompt(model, mask):
        without, again = generated(model, arch, beams, cached=False), generated(model, arch, beams, cached=True)
    finite = without[1].isfinite()
    for tokens, scores in (cached, again):
        torch.testing.assert_close(tokens, without[0])
        equal(scores[finite], without[1][finite], arch)


WRITE = {
    "max_new_tokens": 4,
    "do_sample": False,
    "eos_token_id": None,
    "output_logits": True,
    "return_dict_in_generate": True,
}


@torch.no_grad()
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_a_cache_that_is_used_again_has_the_gates_of_its_new_prompt(arch: str):
    model = attached(arch, PROMPT_GATES, top="generator")
    first, second = (torch.tensor([row]) for row in ([20, 31, 42, 13, 54], [7, 8, 9, 7, 8]))
    fresh = model.generate(second, **WRITE)
    cache = model.generate(first, **WRITE).past_key_values
    cache.reset()
    again = model.generate(second, past_key_values=cache, **WRITE)
    equal(torch.stack(again.logits), torch.stack(fresh.logits), arch)


@pytest.mark.parametrize(("how", "why"), [
    ({"prefill_chunk_size": 2}, "2 tokens in the cache and 2 given: .*pool='prompt' expects the whole prompt"),
    ({"prompt_lookup_num_tokens": 3}, "tokens in the cache and .* cannot be combined with it"),
    ({"cache_implementation": "static"}, "a static cache cannot hold the gates of a prompt"),
], ids=str)  # fmt: skip
def test_generation_that_would_read_another_prompt_is_refused(how: dict, why: str):
    model = attached("llama", PROMPT_GATES, top="generator")
    ids = torch.tensor([[7, 8, 9, 7, 8, 9, 7, 8]])
    with pytest.raises(SiteError, match=why):
        model.generate(ids, **WRITE, **how)


def test_a_cache_without_the_gates_of_its_prompt_is_refused():
    """Its prompt was read by the plain base, or is cut off."""
    model = attached("llama", PROMPT_GATES, top="generator")
    ids = torch.tensor([[7, 8, 9, 7, 8]])
    with torch.no_grad(), unipelt.disabled(model):
        past = model(ids, use_cache=True).past_key_values
    with pytest.raises(SiteError, match="5 tokens in the cache and 1 given"):
        model(ids[:, :1], past_key_values=past)
    past = model(ids, past_key_values=hf.DynamicCache()).past_key_values
    past.crop(-2)
    with pytest.raises(SiteError, match="3 tokens in the cache and 1 given"):
        model(ids[:, :1], past_key_values=past)


@pytest.mark.parametrize("arch", ["bert", "bart"])
def test_gates_of_the_prompt_are_refused_where_nothing_is_prompted(arch: str):
    with pytest.raises(
        SiteError, match=r"Gate\(pool='prompt'\) at .*: a prompt is read by a decoder that stands alone"
    ):
        attached(arch, PROMPT_GATES)


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("arch", ["llama", "bart", "t5", "gpt2"])
def test_decoding_token_by_token_is_the_full_forward(arch: str, attn: str):
    """The cache of a forward, handed on by hand: no position is shifted by a prefix, no logit moves."""
    model = attached(arch, "unipelt-apl", top="generator", attn=attn)
    given = tiny.inputs(arch, model, pads=())
    name = "decoder_input_ids" if arch in SEQ2SEQ else "input_ids"
    with torch.no_grad():
        full, past, steps = result(model(**given)), None, []
        for token in given[name].split(1, dim=1):
            mask = {"attention_mask": given["attention_mask"]} if arch in SEQ2SEQ else {}
            rest = {"input_ids": given["input_ids"]} if arch in SEQ2SEQ else {}
            output = model(**rest, **mask, **{name: token}, past_key_values=past, use_cache=True)
            past, steps = output.past_key_values, [*steps, output.logits]
    equal(torch.cat(steps, dim=1), full, arch, attn)
    assert mixture_state(model).runs == 1
