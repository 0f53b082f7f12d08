"""What a language model reads and learns of an example: each line of what breaks in other tools is a test here."""

from dataclasses import replace

import pytest
from generation.toy_text import CHATML, REFUSED, TEMPLATES, tokenizer

from unipelt.data import Columns, Examples
from unipelt.data.chats import read_chat
from unipelt.errors import DataError, UserError
from unipelt.tasks.batches import Encoded
from unipelt.tasks.generation import Generation
from unipelt.tasks.rendering import Rendered, Renderer, TooLong

CHAT = [
    {"role": "user", "content": "what is a list?"},
    {"role": "assistant", "content": "numbers, or words"},
    {"role": "user", "content": "what does it return?"},
    {"role": "assistant", "content": "the sum of two words"},
]


def rendered(renderer: Renderer, chat: list[dict[str, str]] = CHAT) -> Rendered:
    return renderer.render("messages", *read_chat(chat, "here"), "here")


def learned_text(renderer: Renderer, one: Rendered) -> str:
    """Learned tokens as text, `…` where tokens that are not learned lie between."""
    parts, before = [], True
    for token, learned in zip(one.tokens, one.learned):
        if learned:
            parts += [] if before or not parts else ["…"]
            parts.append(renderer.tokenizer.decode([token]))
        before = learned
    return "".join(parts)


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_answer_is_learned_with_the_token_that_ends_it_and_nothing_else(name: str):
    renderer = Renderer(tokenizer(TEMPLATES[name]), max_length=500)
    one = rendered(renderer)
    end = {"eos ends a turn": " </s>", "nothing ends a turn": ""}.get(name, "<|end|>")
    space = " " * (name == "eos ends a turn")
    assert learned_text(renderer, one) == (f"{space}numbers, or words{end}…{space}the sum of two words{end or '</s>'}")
    assert one.tokens[-1] in renderer.stop  # generation waits for the token that training has taught


@pytest.mark.parametrize("name", [name for name, template in TEMPLATES.items() if "endgeneration" in template])
def test_the_mask_is_that_of_a_template_that_marks_its_answers(name: str):
    renderer = Renderer(tokenizer(TEMPLATES[name]), max_length=500)
    one = rendered(renderer)
    whole = renderer.tokenizer.apply_chat_template(
        CHAT, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert one.tokens == whole["input_ids"][: len(one.tokens)]
    assert one.learned == list(map(bool, whole["assistant_masks"][: len(one.tokens)]))
    assert not any(whole["assistant_masks"][len(one.tokens) :])


@pytest.mark.parametrize("template", [None, *TEMPLATES.values()])
@pytest.mark.parametrize("kind", ["messages", "prompt", "source"])
def test_the_prompt_of_training_is_the_prompt_of_prediction(template: str | None, kind: str):
    renderer = Renderer(tokenizer(template), max_length=500)
    if kind == "messages" and template is None:
        with pytest.raises(DataError, match="here: a chat, but the tokenizer has no chat template"):
            rendered(renderer)
        return
    value = CHAT[:3] if kind == "messages" else "what does it return?"
    trained, asked = (renderer.render(kind, value, target, "here") for target in ("the sum", None))
    assert asked.tokens == trained.tokens[: trained.prompt]
    assert asked.prompt == len(asked.tokens) and asked.learned == trained.learned[: trained.prompt]
    assert trained.tokens.count(renderer.tokenizer.bos_token_id) <= 1


def test_one_bos_alone_whoever_writes_it():
    plain = Renderer(tokenizer(), max_length=100)
    assert [plain.render("prompt", text, "a", "here").tokens.count(1) for text in ("", "what", "<s>what")] == [1, 1, 1]
    assert plain.render("prompt", "<s>what", "a", "") == plain.render("prompt", "what", "a", "")
    assert rendered(Renderer(tokenizer(TEMPLATES["with bos"]), max_length=500)).tokens.count(1) == 1


def test_eos_is_learned_once_even_where_it_is_the_padding_token():
    renderer = Renderer(tokenizer(pad_token="</s>"), max_length=100)
    for answer in ("the sum", "the sum</s>"):
        one = renderer.render("prompt", "what?", answer, "here")
        assert learned_text(renderer, one) == "the sum</s>"
    assert learned_text(renderer, renderer.render("text", "the sum", None, "here")) == "the sum</s>"


@pytest.mark.parametrize("kind", ["prompt", "source", "messages"])
@pytest.mark.parametrize("template", [None, CHATML])
def test_an_example_that_is_too_long_loses_prompt_and_never_answer(kind: str, template: str | None):
    if kind == "messages" and template is None:
        return
    whole = Renderer(tokenizer(template), max_length=10_000)
    long = " ".join(f"word {number}" for number in range(60))
    value = [{"role": "user", "content": long}] if kind == "messages" else long
    full = whole.render(kind, value, "the sum of it", "here")
    shortest = len(whole.render(kind, CHAT[:1] if kind == "messages" else "a", "the sum of it", "here").tokens)
    for limit in (len(full.tokens), len(full.tokens) - 1, 150, shortest + 5):
        one = Renderer(tokenizer(template), max_length=limit).render(kind, value, "the sum of it", "here")
        assert limit - 3 <= len(one.tokens) <= limit and one.trimmed == (limit < len(full.tokens))
        assert learned_text(whole, one) == learned_text(whole, full)
        asked = whole.tokenizer.decode(one.tokens[: one.prompt])
        assert ("word 59" if kind == "prompt" and template is None else "word 0") in asked
        if one.trimmed:
            with pytest.raises(TooLong, match=r"here: .* --max-length"):
                Renderer(tokenizer(template), max_length=limit, trim=False).render(kind, value, "the sum of it", "here")
    with pytest.raises(TooLong, match="an answer is never cut"):
        Renderer(tokenizer(template), max_length=len(full.tokens) - full.prompt).render(
            kind, value, "the sum of it", "here"
        )
    with pytest.raises(TooLong, match=r"its answer has .* --max-target-length 3"):
        Renderer(tokenizer(template), 500, max_target_length=3).render(kind, value, "the sum of it", "here")


def test_a_long_chat_loses_its_oldest_exchanges_and_keeps_its_system_message():
    system = {"role": "system", "content": "a list of words"}
    renderer = Renderer(tokenizer(CHATML), max_length=len(rendered(Renderer(tokenizer(CHATML), 500)).tokens))
    one = rendered(renderer, [system, *CHAT, *CHAT])
    assert one.trimmed and one == Rendered(**vars(rendered(renderer, [system, *CHAT])) | {"trimmed": True})


def test_of_one_exchange_the_longest_message_before_the_answer_is_shortened():
    """A long system message, with the documents of a question, or a long question."""
    long, short = " ".join(f"word {number}" for number in range(60)), "what is it?"
    for system, user in ((long, short), (short, long)):
        chat = [{"role": "system", "content": system}, {"role": "user", "content": user}, CHAT[3]]
        one = rendered(renderer := Renderer(tokenizer(CHATML), max_length=150), chat)
        asked = renderer.tokenizer.decode(one.tokens[: one.prompt])
        assert one.trimmed and short in asked and "word 0" in asked and "word 59" not in asked


def test_a_message_is_cut_between_characters():
    """Each of which is two tokens here."""
    for limit in (100, 101):
        chat = [{"role": "user", "content": "é" * 100}, CHAT[3]]
        one = rendered(renderer := Renderer(tokenizer(CHATML), max_length=limit), chat)
        asked = renderer.tokenizer.decode(one.tokens[: one.prompt])
        assert one.trimmed and "\ufffd" not in asked and "éé<|end|>" in asked


def test_only_special_tokens_end_an_answer():
    """One that a template puts before it does not; nor does the last token of an answer that nothing ends."""
    end = {"chatml": 4, "nothing ends a turn": 2, "eos ends a turn": 2}
    assert {name: Renderer(tokenizer(TEMPLATES[name]), 500).stop for name in end} == {
        name: sorted({2, token}) for name, token in end.items()
    }
    opened = CHATML.replace("{% generation %}{{ m['content']", "{% generation %}{{ '<|start|>' + m['content']")
    renderer = Renderer(tokenizer(opened), max_length=500)
    assert learned_text(renderer, rendered(renderer)) == "…".join(
        f"<|start|>{answer}<|end|>" for answer in ("numbers, or words", "the sum of two words")
    )


def test_what_an_example_has_at_most_it_may_have():
    """Tokens of an answer, and tokens of which one is the prompt's; of a plain text the beginning is kept."""
    whole = Renderer(tokenizer(), max_length=500)
    for kind in ("prompt", "source"):
        full = whole.render(kind, "what does it return?", "the sum", "here")
        fixed = len(full.tokens) - len(whole.tokenizer("what does it return?", add_special_tokens=False)["input_ids"])
        assert (
            len(replace(whole, max_length=fixed + 1).render(kind, "what does it return?", "the sum", "").tokens)
            == fixed + 1
        )
        answer = len(full.tokens) - full.prompt
        assert replace(whole, max_target_length=answer).render(kind, "what does it return?", "the sum", "") == full
        for refused in ({"max_length": fixed}, {"max_target_length": answer - 1}):
            with pytest.raises(TooLong):
                replace(whole, **refused).render(kind, "what does it return?", "the sum", "here")
    text = whole.render("text", "a list of two words", None, "here")
    cut = replace(whole, max_length=5).render("text", "a list of two words", None, "here")
    assert cut == Rendered(text.tokens[:5], [False, *[True] * 4], 1, trimmed=True) and len(text.tokens) > 5


@pytest.mark.parametrize("name", REFUSED)
def test_a_template_that_cannot_be_trained_with_is_refused(name: str):
    with pytest.raises(DataError) as error:
        rendered(Renderer(tokenizer(REFUSED[name]), max_length=500))
    said = str(error.value)
    assert said.startswith("here: ") and "\n" not in said
    reasons = {"raises": "roles must alternate", "leaves out answers": "no token of it is learned"}
    reasons["another space to be answered"] = "the tokens before an answer differ from those of the whole chat"
    assert reasons.get(name, "") in said


@pytest.mark.parametrize(
    ("chat", "said"),
    [
        ("no list", "not valid JSON"),
        ([], "expected a list of messages"),
        (CHAT[:3], "ends with 'user', expected an answer"),
        ([CHAT[1]], "no message of the user"),
        ([*CHAT[:1], {"role": "bot", "content": "a"}], "message 2: role 'bot', expected one of system, user"),
        ([*CHAT[:1], {"role": "assistant", "content": None}], "message 2: its content is nothing, expected text"),
        ([*CHAT[:1], {"role": "assistant", "content": " \n"}], "the last answer is empty"),
        ([*CHAT[:1], {"role": "assistant", "content": "<|end|>"}], "holds '<|end|>'"),
        ([{"from": "human", "value": "what?"}, {"from": "gpt", "value": ["a"]}], "message 2: its content is list"),
    ],
)
def test_a_bad_chat_is_one_line_with_its_row(chat, said: str):
    with pytest.raises(DataError) as error:
        rendered(Renderer(tokenizer(CHATML), max_length=500), chat)
    assert said in str(error.value) and str(error.value).startswith("here") and "\n" not in str(error.value)


def test_a_tokenizer_without_eos_is_refused_unless_its_template_ends_turns():
    with pytest.raises(UserError, match="no eos token"):
        Renderer(tokenizer(eos_token=None), max_length=100).render("prompt", "what?", "a", "here")
    with pytest.raises(UserError, match="no eos token"):
        _ = Renderer(tokenizer(eos_token=None), max_length=100).stop
    one = rendered(Renderer(tokenizer(CHATML, eos_token=None), max_length=500))
    assert one.tokens[-1] == 4


def test_an_encoder_decoder_reads_the_source_and_learns_the_whole_target():
    coder = tokenizer(CHATML, pair="<s> $A </s>")
    one = Renderer(coder, max_length=12, encoder_decoder=True).render("source", "a " * 40, "the sum", "here")
    assert len(one.tokens) == 12 and one.tokens[-1] == coder.eos_token_id and one.trimmed
    assert one.answer == coder("the sum")["input_ids"] and one.learned == [True] * len(one.answer)
    with pytest.raises(DataError, match="here: 'text' needs a causal base"):
        Renderer(coder, max_length=12, encoder_decoder=True).render("text", "a", None, "here")


def test_sharegpt_files_are_chats():
    theirs = [{"from": {"user": "human", "assistant": "gpt"}[one["role"]], "value": one["content"]} for one in CHAT]
    assert read_chat(theirs, "here") == read_chat(CHAT, "here") == (CHAT[:3], CHAT[3]["content"])


def encoded(prompts: list[str], targets: list[str] | None, max_length: int, **given) -> Encoded:
    columns = Columns(text="prompt", label="completion")
    task = Generation(name="made", metric="loss", columns=columns, labels=(), input_kind="prompt", **given)
    return task.encode(tokenizer(), Examples(inputs={"prompt": prompts}, targets=targets), max_length)


def test_what_is_left_out_takes_its_answer_with_it_and_nothing_is_left_out_of_what_is_asked():
    prompts, answers = ["what?", "word " * 50, "a list?"], ["the sum", "none", "of words"]
    kept = encoded(prompts, answers, 30, excess_length="drop")
    words = tokenizer()
    assert kept.targets == ["the sum", "of words"] == [words.decode(ids[:-1]) for ids in kept.answers]
    assert [words.decode(ids) for ids in kept.prompts] == ["<s>what?", "<s>a list?"]
    assert [
        ids[: len(prompt)].tolist() for ids, prompt in zip(kept.features["input_ids"], kept.prompts)
    ] == kept.prompts
    with pytest.raises(TooLong):
        encoded(prompts, None, 30, excess_length="drop")


def test_a_prompt_has_the_tokens_that_are_not_needed_for_new_ones():
    """In training both share the tokens; asked, the prompt has all but those that the base needs for new ones."""
    long = "what does this function return? " * 9
    for given, most in (({}, 40), ({"positions": 50, "generation_options": {"max_new_tokens": 30}}, 20)):
        one = encoded([long], ["the sum of two words"], 40, **given)
        (row,), (prompt,), (answer,) = one.features["input_ids"], one.prompts, one.answers
        assert len(row) == 40 and len(prompt) == most and row[-len(answer) :].tolist() == answer.tolist()
        assert prompt[1:] == tokenizer()(long, add_special_tokens=False)["input_ids"][1 - most :]
    with pytest.raises(DataError, match="--max-new-tokens 50: the base reads at most 50 tokens"):
        encoded([long], None, 40, positions=50, generation_options={"max_new_tokens": 50})
