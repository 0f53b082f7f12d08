"""`unipelt inspect --show-labels`: which tokens of a file's examples are read, and which are learned."""

from collections.abc import Iterator
from itertools import groupby

from unipelt.errors import UserError

SHOWN = 3  # examples


def label_lines(data: str, base: str) -> Iterator[str]:
    """The tokens of a file's first examples as spans, each read or learned. Raises UserError for a file without answers."""
    from unipelt.tasks import registry
    from unipelt.tasks.generation import Generation

    task, found = registry.load(data)
    if not isinstance(task, Generation):
        raise UserError(f"--show-labels: {data} is a {task.kind} data set; expected chats, or texts with answers")
    model, tokenizer = task.load(base)
    task = task.prepare(model, tokenizer)
    encoded = task.encode(tokenizer, found.train, task.default_max_length)
    learned = sum(map(len, encoded.answers))
    total = sum(map(len, encoded.features["input_ids"]))
    yield f"{data}: {len(encoded)} examples, {total:,} tokens, {learned:,} of them learned; template {task.hash or 'none'}"
    for index in range(min(SHOWN, len(encoded))):
        tokens, answer = encoded.features["input_ids"][index].tolist(), encoded.answers[index].tolist()
        yield f"{found.train.name_of(index)}: {len(tokens)} tokens, {len(answer)} learned"
        if encoded.decoder_start is not None:
            spans = [(False, tokens), (True, answer)]
        else:
            places = {place + 1 for place in encoded.positions[index].tolist()}
            marked = groupby(enumerate(tokens), key=lambda one: one[0] in places)
            spans = [(own, [token for _, token in span]) for own, span in marked]
        for own, span in spans:
            yield f"  {'learned' if own else 'read   '}  {tokenizer.decode(span)!r}"
