"""The built-in generation task: deterministic pairs, nothing of train in test, and summaries that are sentences."""

import ast
from pathlib import Path

import pytest

from unipelt.data.builtin import INSTRUCTION, SUMMARY, ShingleIndex, docstring_summaries, first_sentence
from unipelt.errors import DataError

FUNCTION = '''
def {name}(words):
    """{docstring}"""
    for {variable} in words:
        if {variable} in {name}.{name}:
            return {variable} + {name}_of_{variable}
'''


@pytest.fixture
def library(tmp_path: Path) -> Path:
    names = [f"f{number}" for number in range(60)]
    text = "".join(
        FUNCTION.format(name=name, variable=f"v{name}", docstring=f"Say what number {name} is to you.")
        for name in names
    )
    (tmp_path / "argparse.py").write_text(text)
    (tmp_path / "glob.py").write_text(text + FUNCTION.format(name="g", variable="v", docstring="Too short."))
    return tmp_path


def test_pairs_are_found_once_whatever_the_order_of_files(library: Path):
    made = docstring_summaries(library)
    pairs = [*made.train, *made.test]
    assert len(made.test) > 3 and len(set(pairs)) == len(pairs) == 60
    (library / "argparse.py").write_text("raise SystemExit('a file is parsed and never run')")
    assert docstring_summaries.__wrapped__(library) == made
    with pytest.raises(DataError, match="no standard library"):
        docstring_summaries(library / "nowhere")


def test_no_function_of_test_is_like_one_of_train_and_no_summary_is_in_its_function():
    made = docstring_summaries()
    sources = [[source.removeprefix(INSTRUCTION) for source, _ in part] for part in (made.train, made.test)]
    print(f"{len(made.train)} train, {len(made.test)} test, {made.near_duplicates} near-duplicates left out")
    assert len(made.train) > 2000 and len(made.test) == 300
    known = ShingleIndex(sources[0])
    assert not any(source in known for source in sources[1])
    for source, summary in made.test:
        function = ast.parse(source.removeprefix(INSTRUCTION)).body[0]
        assert ast.get_docstring(function) is None and summary not in source
        assert len(summary.split()) <= SUMMARY[1] + 10 and "\n" not in summary and summary[-1] in ".!?"


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Return x.  Then more.", "Return x."),
        ("Return x, e.g. Nothing. More.", "Return x, e.g. Nothing."),
        ("Version 3.11 of\n  this\n\nMore text.", "Version 3.11 of this."),
        ("Is it so? Yes.", "Is it so?"),
    ],
)
def test_the_first_sentence(docstring: str, sentence: str):
    assert first_sentence(docstring) == sentence
