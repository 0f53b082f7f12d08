"""Cells that a format cannot hold as they are: written as text, or refused in one line."""

import json

import pytest

from unipelt.data import Dialect, read_table, table_bytes
from unipelt.data.writers import SUFFIXES
from unipelt.errors import DataError

EVERY_FORMAT = pytest.mark.parametrize("suffix", SUFFIXES)


def written(path, columns):
    """The columns after they were written to a file and read again."""
    path.write_bytes(table_bytes(columns, path.suffix, Dialect(suffix=path.suffix)))
    return read_table(path).columns


@EVERY_FORMAT
@pytest.mark.parametrize("text", ["a\rb", "a\r\nb", "a\nb", "a\r"])
def test_an_end_of_line_in_a_cell_is_no_new_row(tmp_path, suffix, text):
    columns = {"text": [text, "plain"], "prediction": ["x", text]}
    assert written(tmp_path / f"out{suffix}", columns) == columns


@EVERY_FORMAT
def test_a_lone_surrogate_is_written_as_its_escape(tmp_path, suffix):
    columns = {"text": ["a", "b"], "note \ud83d": ["\ud83d", "☂"], "list": [["\ud83d"], []], "prediction": ["x", "y"]}
    path = tmp_path / f"out{suffix}"
    read = written(path, columns)
    assert (read["text"], read["prediction"]) == (columns["text"], columns["prediction"])
    name = "note \ud83d" if suffix in (".json", ".jsonl") else r"note \ud83d"
    assert read[name] == columns.get(name, [r"\ud83d", "☂"])
    assert not path.read_bytes().startswith(b"\xef\xbb\xbf")


@EVERY_FORMAT
@pytest.mark.parametrize("number", [2**53 + 1, 2**63, 2**64, 10**25, 10**400, -(10**400)])
def test_large_integers_keep_their_digits(tmp_path, suffix, number):
    read = written(tmp_path / f"out{suffix}", {"text": ["a", "b"], "id": [number, -1]})
    assert [int(value) for value in read["id"]] == [number, -1]


@EVERY_FORMAT
def test_objects_without_fields_are_written(tmp_path, suffix):
    read = written(tmp_path / f"out{suffix}", {"text": ["a", "b"], "extra": [{}, {"b": [{}]}]})
    assert read["text"] == ["a", "b"]
    assert read["extra"][1] in ({"b": [{}]}, json.dumps({"b": [{}]}))


def test_a_text_that_excel_cannot_store_is_refused(tmp_path):
    longest = {"text": ["a", "x" * 32_767]}
    assert written(tmp_path / "out.xlsx", longest) == longest
    for cell, expected in {
        "x" * 32_768: "row 3 holds a text of 32,768 characters, and Excel stores at most 32,767; write CSV instead",
        "\x01": "row 3 holds a control character, which Excel cannot store; write CSV instead",
    }.items():
        with pytest.raises(DataError, match=expected):
            table_bytes({"text": ["a", cell]}, ".xlsx", Dialect(suffix=".csv"))
