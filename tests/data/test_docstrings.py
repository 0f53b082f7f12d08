"""The built-in task: real rows, the same on every run of one Python, and no test row that train has seen."""

import json
import os
import subprocess
import sys
from collections import Counter

import pytest

from unipelt.data import causal_texts
from unipelt.data.builtin import (
    ALIKE,
    AREAS,
    LONGEST,
    SHORTEST,
    ShingleIndex,
    clean,
    docstring_examples,
    shingles,
    words,
)
from unipelt.errors import DataError
from unipelt.tasks.registry import load


@pytest.fixture(scope="module")
def dataset():
    return load("docstrings")[1]


def test_a_few_thousand_rows_of_every_area(dataset):
    assert dataset.classes == tuple(AREAS) and 6 <= len(AREAS) <= 8
    assert len(dataset.train) >= 3000 and len(dataset.test) >= 500
    for rows in (dataset.train, dataset.test):
        counts = Counter(rows.targets).values()
        assert sum(counts) == len(rows)
        assert max(counts) < 3 * min(counts)  # no area drowns another


def test_no_module_stands_in_two_areas():
    modules = " ".join(AREAS.values()).split()
    assert len(modules) == len(set(modules))


def test_rows_are_prose_of_bounded_length(dataset):
    for text in dataset.train.inputs["text"] + dataset.test.inputs["text"]:
        assert len(text.split()) <= LONGEST and len(words(text)) >= SHORTEST
        assert ">>>" not in text and "\n" not in text and text == text.strip()


def test_no_test_row_is_like_a_train_row(dataset):
    """Jaccard similarity by brute force over the rows that share a word triple with the test row."""
    train = [shingles(text) for text in dataset.train.inputs["text"]]
    for text in dataset.test.inputs["text"][::10]:
        parts = shingles(text)
        assert max(len(parts & other) / len(parts | other) for other in train) < ALIKE


def test_no_text_occurs_twice(dataset):
    keys = [" ".join(words(text)) for text in dataset.train.inputs["text"] + dataset.test.inputs["text"]]
    assert len(keys) == len(set(keys))


def test_near_duplicates_are_found():
    base = "return the number of bytes that were written to the open file"
    known = ShingleIndex([base, "too short"])
    assert (
        base in known and base + " now" in known and "too short" in known and "close the socket and wait" not in known
    )
    assert "one" not in ShingleIndex()


def test_the_count_of_what_was_left_out_is_said(dataset):
    assert f"({docstring_examples().near_duplicates} near-duplicates" in dataset.source


def test_rows_do_not_depend_on_the_process(dataset):
    """Another hash seed, other modules imported: the same rows in the same order."""
    program = (
        "import email, json; from unipelt.data.builtin import causal_texts; print(json.dumps(causal_texts()[0][::10]))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(ran.stdout) == dataset.train.inputs["text"][::10]


def test_causal_texts_are_the_same_docstrings(dataset):
    train, held_out = causal_texts()
    assert (train, held_out) == (dataset.train.inputs["text"], dataset.test.inputs["text"])


def test_what_a_caller_changes_stays_with_the_caller(dataset):
    load("docstrings")[1].train.inputs["text"].clear()
    assert load("docstrings")[1].train == dataset.train


def test_cleaning_keeps_prose():
    docstring = "Join words.\n=====\n\n- with a bullet\n\nMore here.\n\n>>> join()\n'x'"
    assert clean(docstring) == "Join words. with a bullet More here."


def test_definitions_are_found_wherever_statements_nest(tmp_path):
    (tmp_path / "csv.py").write_text(
        '"""Words of the module itself."""\n'
        "try:\n    async def f():\n"
        '        """Words of a coroutine inside try."""\n'
        "except ImportError:\n    class C:\n"
        "        if True:\n            def g(self):\n"
        '                """Words of a method inside if."""\n'
        '        """No docstring but an expression."""\n'
    )
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "tool.py").write_text('"""Words of a package\'s module."""')
    (tmp_path / "json" / "tests").mkdir()
    (tmp_path / "json" / "tests" / "t.py").write_text('"""Words of a forgotten test."""')
    (tmp_path / "os.py").write_text('"""Words that two areas share."""')
    (tmp_path / "bdb.py").write_text('"""Words that two areas share."""')
    examples = docstring_examples(tmp_path)
    assert {text for text, _ in examples.train + examples.test} == {
        "Words of the module itself.",
        "Words of a coroutine inside try.",
        "Words of a method inside if.",
        "Words of a package's module.",
    }
    assert {area for _, area in examples.train + examples.test} == {list(AREAS).index("text")}


def test_a_python_without_sources_is_refused(tmp_path):
    with pytest.raises(DataError, match="no standard library"):
        docstring_examples(tmp_path)
