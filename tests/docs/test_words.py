"""Plain words: no file of the project uses a private word or a name that was replaced by a standard one."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("src", "tests", "docs", "examples", "benchmarks")
PRIVATE = {
    "house", "houses", "room", "rooms", "door", "doors", "seam", "guest", "fate", "fates", "hang", "hangs", "hung", "meet", "meets",
    "met", "wake", "wakes", "whom", "lawful", "unlawful", "anew", "nought",
}  # fmt: skip
"""words of prose and of names that a reader would have to look up: there are plain ones"""
REPLACED = {
    "Junction", "Joined", "Tuned", "LiveStack", "Flow", "Hold", "KernelDoor", "Turns", "Corpus", "Keeper", "unhang", "look_again",
    "arranged", "spelt", "what_was_read", "docstring_corpus", "broken_laws",
}  # fmt: skip
"""names of classes and functions that have plainer ones now"""


def pages() -> list[Path]:
    """Every source file and page."""
    inside = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md", ".sh")]
    own = {Path(__file__).resolve(), Path(__file__).with_name("test_messages.py").resolve()}
    return [path for path in (*inside, *ROOT.glob("*.md")) if path.resolve() not in own]


def words(line: str) -> set[str]:
    """The words of a line; those of a name apart: `LiveStack` is live and stack."""
    return set(re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", line).lower()))


def test_no_private_word():
    for path in pages():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            assert not words(line) & PRIVATE, f"{path.relative_to(ROOT)}:{number}: {line.strip()}"


def test_no_name_that_was_replaced():
    defined = re.compile(r"^\s*(?:class|def) (\w+)|^(\w+) = ", re.MULTILINE)
    for path in (ROOT / "src").rglob("*.py"):
        names = {one or other for one, other in defined.findall(path.read_text(encoding="utf-8"))}
        assert not names & REPLACED, f"{path.relative_to(ROOT)}: {names & REPLACED}"
