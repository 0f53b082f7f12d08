"""What the docs take from the code is what the code says now."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))
import diagrams
import generate


@pytest.mark.parametrize("page", generate.pages(), ids=lambda page: page.name)
def test_the_page_is_up_to_date(page: Path):
    text = page.read_text(encoding="utf-8")
    assert generate.generate(text) == text, "run: python docs/generate.py"


def test_every_marker_is_closed():
    for page in generate.pages():
        text = page.read_text(encoding="utf-8")
        assert text.count("<!-- generated: ") == text.count("<!-- end -->") == len(generate.BLOCK.findall(text)), page


@pytest.mark.parametrize("name", diagrams.DIAGRAMS)
def test_a_diagram_is_up_to_date(name: str):
    drawn = (diagrams.ROOT / "docs" / name).read_text(encoding="utf-8")
    assert drawn == diagrams.DIAGRAMS[name](), "run: python docs/diagrams.py"


def test_the_diagram_of_packages_has_every_package():
    folders = {path.parent.name for path in diagrams.SOURCE.glob("*/__init__.py")}
    assert folders == diagrams.ABOUT.keys()


PROSE = [generate.ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")]


@pytest.mark.parametrize(
    "page",
    [*PROSE, *(page for page in generate.pages() if page.name != "architectures.md")],
    ids=lambda page: page.name,
)
def test_lines_of_prose_have_at_most_100_characters(page: Path):
    text = re.sub(
        r"^```.*?^```$|^\|[^\n]*$|<!-- generated.*?-->",
        "",
        page.read_text(encoding="utf-8"),
        flags=re.DOTALL | re.MULTILINE,
    )
    long = [line for line in text.splitlines() if len(re.sub(r"\]\([^)]*\)", "]", line)) > 100]
    assert not long, long[0]
