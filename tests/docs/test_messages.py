"""Every message that the code can raise, collected from the source. `python docs/messages.py` prints the list."""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))
import messages


def test_the_list_is_whole():
    """Each kind of error is raised somewhere, and no message is written in a way that the collection does not see."""
    source = "".join(path.read_text(encoding="utf-8") for path in messages.SOURCE.rglob("*.py"))
    calls = sum(len(re.findall(rf"\b{kind}\(", source)) for kind in messages.kinds())
    places = {(path, line) for path, line, _ in messages.messages()}
    assert len(places) >= 0.95 * (calls - len(messages.kinds()))


def test_every_message_is_one_plain_line():
    """No end of a sentence (the command line adds its own), and a length that a terminal shows."""
    for path, line, text in messages.messages():
        where = f"{path}:{line}: {text}"
        assert not re.search(r"[.!]$|\bplease\b|  ", text), where
        assert len(re.sub(r"\{[^{}]*\}", "…", text)) < 300, where
