"""Read chats from files: lists of messages, checked one by one. Knows no tokenizer."""

import json
from typing import Any

from unipelt.data.tables import shown
from unipelt.errors import DataError

ROLES = ("system", "user", "assistant", "tool")
SHAREGPT = {"human": "user", "gpt": "assistant", "system": "system", "tool": "tool"}
"""the roles of ShareGPT's files, whose messages have `from` and `value`"""


def read_chat(value: Any, source: str, *, answered: bool = True) -> tuple[list[dict[str, str]], str | None]:
    """(the messages before the last answer, the last answer); the answer is None if the chat ends with a question.

    value: a list of messages with `role` and `content`, or its JSON as a CSV file has it. source: names the example in
    messages. answered: refuse a chat without an answer at its end. Raises DataError.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise DataError(f"{source}: a chat is not valid JSON; expected a list of messages") from None
    if not isinstance(value, list) or not value:
        raise DataError(f"{source}: a chat is {shown(value)}, expected a list of messages with role and content")
    messages = [_message(message, f"{source}, message {number}") for number, message in enumerate(value, start=1)]
    if messages[-1]["role"] == "assistant":
        *before, last = messages
        if not last["content"].strip():
            raise DataError(f"{source}: the last answer is empty; fill it in or remove the example")
        if all(message["role"] == "system" for message in before):
            raise DataError(f"{source}: no message of the user comes before the answer; expected a question")
        return before, last["content"]
    if answered:
        raise DataError(f"{source}: the chat ends with {messages[-1]['role']!r}, expected an answer (role 'assistant')")
    return messages, None


def _message(message: Any, source: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise DataError(f"{source} is {shown(message)}, expected an object with role and content")
    role, content = message.get("role"), message.get("content")
    if role is None and "from" in message:
        role, content = SHAREGPT.get(message["from"], message["from"]), message.get("value")
    if role not in ROLES:
        raise DataError(f"{source}: role {role!r}, expected one of {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise DataError(f"{source}: its content is {shown(content)}, expected text")
    return {"role": role, "content": content}
