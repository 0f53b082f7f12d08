"""Small tokenizers and chat templates: no network, and every way in which real ones differ that has broken a tool."""

from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIALS = ["<pad>", "<s>", "</s>", "<|start|>", "<|end|>"]
WORDS = "the answer is a list of numbers; what does this function return? it returns the sum of two words, or none.\n"

CHATML = """{% if messages[0]['role'] != 'system' %}{{ '<|start|>system\nBe brief.<|end|>\n' }}{% endif %}\
{% for m in messages %}{{ '<|start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}\
{% generation %}{{ m['content'] + '<|end|>' }}{% endgeneration %}{% else %}{{ m['content'] + '<|end|>' }}{% endif %}\
{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"""
TEMPLATES = {
    "chatml": CHATML,
    "with bos": "{{ bos_token }}" + CHATML,
    "eos ends a turn": """{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}\
{% generation %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endgeneration %}\
{% else %}{{ '[' + m['role'] + '] ' + m['content'] + ' [/]' }}{% endif %}{% endfor %}""",
    "nothing ends a turn": """{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }}\
{% else %}{{ m['role'] + ': ' + m['content'] + '\nassistant:\n' }}{% endif %}{% endfor %}""",
}
"""templates that a chat can be trained with; the last has no special token at the end of an answer"""
REFUSED = {
    "forgets earlier answers": """{% for m in messages %}{{ '<|start|>' + m['role'] + '\n' }}\
{% if m['role'] != 'assistant' or loop.last %}{{ m['content'] }}{% endif %}{{ '<|end|>' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}""",
    "another opening to be answered": CHATML.replace("'<|start|>assistant\n'", "'<|start|>assistant\nthink '"),
    "another space to be answered": CHATML.replace(
        "%}{{ '<|start|>assistant\n' }}{% endif", "%}{{ '<|start|>assistant ' }}{% endif"
    ),
    "leaves out answers": "{% for m in messages %}{% if m['role'] != 'assistant' %}{{ m['content'] }}{% endif %}{% endfor %}",
    "raises": "{{ raise_exception('roles must alternate') }}",
    "is broken": "{% for m in messages %}",
}


@cache
def _bytes() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([WORDS] * 4, trainer)
    return tokenizer


def tokenizer(template: str | None = None, *, pair: str = "<s> $A", **given: Any) -> PreTrainedTokenizerFast:
    """Byte-level tokens that put `<s>` before a text. pair: what it puts around one, in tokenizers' notation."""
    backend = Tokenizer.from_str(_bytes().to_str())
    specials = [(token, backend.token_to_id(token)) for token in ("<s>", "</s>")]
    backend.post_processor = processors.TemplateProcessing(single=pair, special_tokens=specials)
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"} | given
    extra = {"additional_special_tokens": ["<|start|>", "<|end|>"]}
    made = PreTrainedTokenizerFast(tokenizer_object=backend, **{k: v for k, v in special.items() if v}, **extra)
    made.chat_template = template
    return made
