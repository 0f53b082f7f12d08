"""What the docs take from the code is what the code says now."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))
import generate


@pytest.mark.parametrize("page", generate.pages(), ids=lambda page: page.name)
def test_the_page_is_up_to_date(page: Path):
    text = page.read_text(encoding="utf-8")
    assert generate.generate(text) == text, "run: python docs/generate.py"


def test_every_marker_is_closed():
    for page in generate.pages():
        text = page.read_text(encoding="utf-8")
        assert text.count("<!-- generated: ") == text.count("<!-- end -->") == len(generate.BLOCK.findall(text)), page
