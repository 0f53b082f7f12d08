"""Files of the user's: every format reads the same and is written back, and every mistake gets one line that says what to do."""

import codecs
import csv
import json

import openpyxl
import pyarrow
import pyarrow.parquet
import pytest

from unipelt.data import Columns, Dialect, choose_columns, read_table, table_bytes
from unipelt.data.readers import READERS
from unipelt.data.tables import class_name
from unipelt.errors import DataError
from unipelt.tasks.registry import load

TEXTS = ["good, even great", 'a "quoted" word', "two\nlines", "naïve ☂", "=cmd|' /C calc'!A0"]
LABELS = ["pos", "neg", "pos", "neg", "pos"]
TABLES = [suffix for suffix in READERS if suffix not in (".conll", ".bio")]
SUFFIXES = pytest.mark.parametrize("suffix", TABLES)


def write(path, columns):
    """The columns in the format of the suffix, by other means than the reader's and the writer's."""
    names, rows = list(columns), [list(row) for row in zip(*columns.values())]
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    elif path.suffix == ".xlsx":
        book = openpyxl.Workbook()
        for row in [names, *rows]:
            book.active.append(row)
        for cell in (cell for line in book.active for cell in line if isinstance(cell.value, str)):
            cell.data_type = "s"
        book.save(path)
    elif path.suffix in (".json", ".jsonl"):
        records = [json.dumps(dict(zip(names, row))) for row in rows]
        path.write_text("\n".join(records) if path.suffix == ".jsonl" else f"[{','.join(records)}]")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([names, *rows])
    return path


def said(path, **options):
    """The one line that a mistake raises."""
    with pytest.raises(DataError) as caught:
        load(path, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1000
    assert path.name in message
    return message


@SUFFIXES
def test_every_format_reads_the_same(tmp_path, suffix):
    columns = {"text": TEXTS, "label": LABELS, "stars": [10, 9, 2, 10, 2], "price": [0.5, 1.0, 2.25, -3.0, 4.0]}
    path = write(tmp_path / f"reviews{suffix}", columns)
    task, dataset = load(path, label_column="label", text_column="text")
    assert (task.name, task.kind, task.labels) == ("reviews", "classification", ("neg", "pos"))
    assert dataset.train.inputs == {"text": TEXTS} and [task.labels[i] for i in dataset.train.targets] == LABELS
    task, dataset = load(path, label_column="stars", text_column="text", text_pair_column="label")
    assert task.labels == ("2", "9", "10") and dataset.train.targets == [2, 1, 0, 2, 0], "whole numbers in their order"
    assert dataset.train.inputs["text_pair"] == LABELS
    task, dataset = load(path, label_column="price", text_column="text")
    assert (task.kind, task.labels, dataset.train.targets) == ("regression", (), columns["price"])
    assert load(path, label_column="stars", text_column="text", kind="regression")[1].train.targets == [10, 9, 2, 10, 2]


@SUFFIXES
@pytest.mark.parametrize("dialect", [Dialect(suffix=".csv"), Dialect(suffix=".csv", delimiter=";", bom=True)])
def test_what_is_written_is_read(tmp_path, suffix, dialect):
    path = tmp_path / f"out{suffix}"
    path.write_bytes(
        table_bytes({"text": TEXTS, "prediction": LABELS, "tags": [["a"], ["b", "c"]] * 2 + [["d"]]}, suffix, dialect)
    )
    table = read_table(path)
    assert table.columns["text"] == TEXTS and table.columns["prediction"] == LABELS, "=1+2 stays a text"
    assert table.columns["tags"][1] in (["b", "c"], '["b", "c"]')
    if suffix == ".csv":
        assert (table.dialect.delimiter, table.dialect.bom) == (dialect.delimiter, dialect.bom)
    assert (suffix in (".csv", ".tsv") and dialect.bom) == path.read_bytes().startswith(b"\xef\xbb\xbf")


@SUFFIXES
@pytest.mark.parametrize(
    "cell", ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(1+1)", "\t=1+1", '=HYPERLINK("http://a.b","x")']
)
def test_a_cell_that_a_spreadsheet_would_run_stays_the_text_it_was(tmp_path, suffix, cell):
    """In headers, texts and predictions. Excel stores it as a text; of a CSV file `predict --help` says how to import it."""
    path = tmp_path / f"out{suffix}"
    columns = {cell.strip(): [cell, "plain"], "prediction": ["plain", cell]}
    path.write_bytes(table_bytes(columns, suffix, Dialect(suffix=".csv")))
    assert read_table(path).columns == columns
    if suffix == ".xlsx":
        cells = [one for row in openpyxl.load_workbook(path).active for one in row]
        assert {one.data_type for one in cells} == {"s"}


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-8", "utf-8-sig"])
def test_encodings_are_read_and_written_back(tmp_path, encoding):
    path = tmp_path / "reviews.csv"
    contents = "text;label\ncafé;1\nTür;0\n".encode(encoding)
    path.write_bytes(contents)
    if encoding == "cp1252":
        assert "line 2" in said(path) and "--encoding cp1252" in said(path)
    table = read_table(path, "cp1252" if encoding == "cp1252" else None)
    assert table.columns["text"] == ["café", "Tür"]
    assert table_bytes(table.columns, ".csv", table.dialect) == contents
    beyond = table_bytes({"text": ["☂"]}, ".csv", table.dialect)
    assert "☂" in beyond.decode("utf-8-sig" if encoding == "cp1252" else encoding)


def test_a_byte_order_mark_says_more_than_an_option(tmp_path):
    path = tmp_path / "marked.csv"
    marks = {"utf-8": codecs.BOM_UTF8, "utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}
    for name, mark in marks.items():
        path.write_bytes(contents := mark + "text,label\ncafé,1\n".encode(name))
        table = read_table(path, "cp1252")
        assert table.columns == {"text": ["café"], "label": ["1"]}
        assert table_bytes(table.columns, ".csv", table.dialect) == contents


@pytest.mark.parametrize("encoding", ["utf-9", "base64", "rot13"])
def test_an_encoding_that_does_not_exist_is_refused(tmp_path, encoding):
    path = write(tmp_path / "reviews.csv", {"text": TEXTS, "label": LABELS})
    with pytest.raises(DataError, match=f"--encoding {encoding}: no such text encoding"):
        load(path, encoding=encoding)


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_the_delimiter_is_found(tmp_path, mark):
    path = tmp_path / "reviews.csv"
    path.write_text(f'text{mark}label\n"a, b; c"{mark}x\n\nplain{mark}y\n')
    assert load(path)[1].train.inputs["text"] == ["a, b; c", "plain"]


def test_a_tsv_with_bare_quotes_is_read_as_glue_writes_it(tmp_path):
    path = tmp_path / "bare.tsv"
    path.write_text('sentence\tlabel\n"Open he said\t0\nno "harm done\t1\n')
    assert load(path)[1].train.inputs["text"] == ['"Open he said', 'no "harm done']


def test_quotes_at_both_ends_of_a_tsv_join_no_lines(tmp_path):
    path = tmp_path / "bare.tsv"
    path.write_text('sentence\tlabel\n"Open he said\t0\nplain\t1\n\nand left"\t0\n"whole"\t1\n')
    assert load(path)[1].train.inputs["text"] == ['"Open he said', "plain", 'and left"', '"whole"']


@pytest.mark.parametrize(
    "columns", [{"text": ["a\n\nb", '"c"\n', "d"]}, {"text": ["a\nb", "c"], "label": ["x\r\ny", "z\tz"]}]
)
def test_quoted_ends_of_lines_in_a_tsv_are_part_of_their_cell(tmp_path, columns):
    assert read_table(write(tmp_path / "quoted.tsv", columns)).columns == columns


def test_blank_lines_are_no_examples_but_in_a_single_column(tmp_path):
    path = tmp_path / "new.csv"
    for end in ("", "\n", "\n\n", "\n \r\n\n"):
        path.write_text("\ntext\na b\n\nc d" + end)
        assert read_table(path).columns == {"text": ["a b", "", "c d"]}, "predictions keep their lines"
        assert read_table(path).lines == [3, 4, 5]


def test_incomplete_examples_are_named_or_left_out(tmp_path):
    path = tmp_path / "gaps.csv"
    path.write_text('text,label\n"a\nb",1\n ,0\nc d,\ne f,1\ng h,0\n')
    assert "example 2 (line 4): no value in column 'text'; fill it in" in said(path) and "--skip-empty" in said(path)
    task, dataset = load(path, skip_empty=True)
    assert dataset.train.inputs["text"] == ["a\nb", "e f", "g h"] and dataset.train.targets == [1, 1, 0]
    assert any("2 of 5 examples are incomplete" in note for note in dataset.notes)
    columns = Columns(text="text", label=None)
    assert task.read(read_table(path), columns, skip_empty=True)[1] == [0, 2, 3, 4], "what predictions belong to"


@pytest.mark.parametrize("gap", [None, float("nan"), ""])
@pytest.mark.parametrize(("labels", "kind"), [([0.5, 1.0, 2.25], "regression"), ([0, 1, 0], "classification")])
def test_a_missing_label_does_not_change_the_kind_of_task(tmp_path, labels, kind, gap):
    path = write(tmp_path / "gaps.jsonl", {"text": ["a", "b", "c", "d"], "label": [*labels, gap]})
    task, dataset = load(path, skip_empty=True)
    assert (task.kind, len(dataset.train)) == (kind, 3)
    assert "no value in column 'label'" in said(path)


def test_class_names_that_parquet_declares_are_used_and_odd_metadata_is_not(tmp_path):
    path = tmp_path / "declared.parquet"
    names = {"label": {"names": ["negative", "positive"], "_type": "ClassLabel"}, "text": {"_type": "Value"}}
    odd = [names | {"label": {"names": one, "_type": "ClassLabel"}} for one in (None, 5, [1, 2], ["a", "a"], "ab")]
    for features, expected in [
        (names, ("negative", "positive")),
        *((one, ("0", "1")) for one in [*odd, [], 3, None, {"label": 1}]),
    ]:
        table = pyarrow.table({"text": ["a b", "c d"], "label": [1, 0]})
        metadata = {"huggingface": json.dumps({"info": {"features": features}}), "pandas": "{"}
        pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), path)
        assert load(path)[0].labels == expected


def test_tags_have_the_names_and_the_order_that_parquet_declares(tmp_path):
    path = tmp_path / "tags.parquet"
    features = {"tags": {"feature": {"names": ["O", "B-LOC"], "_type": "ClassLabel"}, "_type": "Sequence"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    for tags in ([[0, 1], [1]], [[0, 1], [-1]], [[0, 2], [1]]):
        table = pyarrow.table({"tokens": [["in", "Rome"], ["Rome"]], "tags": tags})
        pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), path)
        if tags == [[0, 1], [1]]:
            task, dataset = load(path)
            assert task.labels == ("O", "B-LOC") and dataset.train.targets == [["O", "B-LOC"], ["B-LOC"]]
        else:
            assert "in column 'tags', expected 0 to 1" in said(path)


def test_columns_that_nobody_asked_for_may_hold_anything(tmp_path):
    extra = {"when": pyarrow.array([1, 2], pyarrow.timestamp("ns")), "what": [{"a": [1]}, None]}
    path = tmp_path / "rich.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a b", "c d"], "label": [1, 0], **extra}), path)
    assert load(path)[1].train.targets == [1, 0]


def test_the_first_sheet_of_a_workbook_is_read_and_it_is_said(tmp_path):
    path = write(tmp_path / "book.xlsx", {"text": TEXTS, "label": LABELS})
    book = openpyxl.load_workbook(path)
    book.create_sheet("other").append(["text"])
    book.save(path)
    assert any("sheet 'Sheet', the first of 2" in note for note in load(path)[1].notes)


def test_json_may_hold_records_or_columns(tmp_path):
    path = tmp_path / "data.json"
    for contents in (
        {"data": [{"text": "a", "label": 1}, {"text": "b", "label": 0}]},
        {"text": ["a", "b"], "label": [1, 0]},
    ):
        path.write_text(json.dumps(contents))
        assert read_table(path).columns == {"text": ["a", "b"], "label": [1, 0]}


def test_json_that_is_not_one_table_is_refused(tmp_path):
    """Of two tables, the first alone would be read; of columns of unlike length, labels would stand beside other texts."""
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": 0}]
    for contents in ({"train": rows, "test": rows[:1]}, {"text": ["a", "b"], "label": [1]}):
        (tmp_path / "data.json").write_text(json.dumps(contents))
        assert "expected a list of objects" in said(tmp_path / "data.json")


def test_only_the_end_of_a_line_ends_a_json_object(tmp_path):
    """Separators of Unicode may stand in its texts as they are."""
    path, texts = tmp_path / "texts.jsonl", ["a\u2028b", "c\x85d"]
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    assert read_table(path).columns["text"] == texts


def test_words_of_a_file_with_tabs_may_hold_spaces(tmp_path):
    path = tmp_path / "names.conll"
    path.write_text("New York\tB-LOC\nis\tO\n")
    assert read_table(path).columns == {"tokens": [["New York", "is"]], "tags": [["B-LOC", "O"]]}


def test_cells_of_a_workbook_are_what_was_typed(tmp_path):
    """No text that a reader may take for a gap, no whole number beside a gap with a fraction, and the rows of the sheet."""
    columns = {"text": ["NA", "null", "None"], "label": [1, None, 3]}
    table = read_table(write(tmp_path / "typed.xlsx", columns))
    assert table.columns["text"] == columns["text"]
    assert [repr(value) for value in table.columns["label"]] in (["1", "None", "3"], ["1", "''", "3"])
    assert table.example(2).endswith("example 3 (line 4)")


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        ({"utterance": TEXTS, "Rating": LABELS}, "utterance"),
        ({"phrase": TEXTS, "label": LABELS}, "phrase"),
        ({"phrase": TEXTS, "grade": [1, 2, 1, 2, 1]}, "phrase"),
        ({"": [0, 1, 2, 3, 4], "text": TEXTS, "anything": LABELS}, "text"),
    ],
)
def test_columns_are_found_where_only_one_can_be_meant(tmp_path, columns, chosen):
    assert load(write(tmp_path / "found.csv", columns))[1].train.inputs["text"] == columns[chosen]


def test_new_examples_are_read_from_the_columns_of_training(tmp_path):
    trained = Columns(text="body", label="area")
    labels = dict.fromkeys(("area", "label", "stars"), LABELS)  # nobody asks for a label, so two are none too many
    one = read_table(write(tmp_path / "one.csv", {"text": TEXTS, "body": TEXTS[::-1], **labels}))
    assert choose_columns(one, labelled=False, trained=trained) == Columns(text="body")
    assert choose_columns(one, labelled=False, trained=trained, text="text").text == "text"
    headless = read_table(write(tmp_path / "headless.csv", {"a film that I liked": TEXTS}))
    with pytest.raises(DataError, match=r"no column 'body', which the run was trained on, but 'a film that I liked'"):
        choose_columns(headless, labelled=False, trained=trained)


def test_a_wide_header_and_a_long_document_are_read(tmp_path):
    wide = {f"column {i}": [str(i)] * 3 for i in range(13_200)}
    message = said(write(tmp_path / "wide.csv", wide))
    assert "13,200 in all" in message
    texts = ["word " * 60_000, "short text", "another"]
    table = write(tmp_path / "long.csv", wide | {"text": texts, "label": [0, 1, 1]})
    assert load(table)[1].train.inputs["text"] == texts
    assert "13,202 in all" in said(table, text_column="nothing like it")


BAD_BYTES = {
    "empty.csv": (b"", "is empty"),
    "blank.csv": (b"\n \n", "is empty"),
    "marked.csv": (b"\xef\xbb\xbf\n", "is empty"),
    "header.csv": (b"text,label\n", "has a header and no examples"),
    "zipped.csv": (b"PK\x03\x04rest", "Excel"),
    "binary.csv": (b"text,label\nab\0c,1\n", "binary file"),
    "latin.csv": (b"text,label\nab,1\ncaf\xe9,0\n", r"byte 0xe9 at position 19 \(line 3\)"),
    "marklatin.csv": (b"\xef\xbb\xbftext,label\ncaf\xe9,0\n", r"byte 0xe9 at position 17 \(line 2\)"),
    "ragged.csv": (b"text,label\na b,1\n\nc, d,0\n", "line 4 has 3 of the header's 2 fields; put"),
    "short.csv": (b"text,label\na b,1\nc d\n", "line 3 has 1 of the header's 2 fields; fill"),
    "quote.csv": (b'text,label\na b,1\n"c d,0\ne f,1\n', "line 3: .*quote"),
    "twice.csv": (b"text,text\na,b\n", "'text' occurs twice"),
    "oneclass.csv": (b"text,label\na b,1\nc d,1\n", "every label in column 'label' is '1'"),
    "numbers.csv": (b"text,label\n12,1\n3.5,0\n", "column 'text' holds numbers"),
    "onlynumbers.csv": (b"a,b\n12,1\n3.5,0\n", "no column of text among 'a', 'b'"),
    "nan.csv": (b"text,label\na b,1.5\nc d,nan\n", "example 2 .*'nan', expected a finite number"),
    "infinite.csv": (b"text,label\na b,1.5\nc d,-inf\n", "example 2 .*-inf.* expected a finite number"),
    "twotexts.csv": (b"a,b,label\nx y,z w,1\nx y,z w,0\n", "columns 'a', 'b' could each be the text"),
    "twoknown.csv": (b"text,review,label\nx y,z w,1\nx y,z w,0\n", "'text', 'review' could each be the text"),
    "twolabels.csv": (b"text,label,stars\nx y,1,2\nx y,0,3\n", "'label', 'stars' could each be the label"),
    "tworest.csv": (b"text,a,b\nx y,1,2\nx y,0,3\n", "'a', 'b' could each be the label"),
    "unlabelled.csv": (b"text\nx y\nz w\n", "no label column besides the text 'text'"),
    "malformed.jsonl": (b'{"text": "a", "label": 1}\n{"text": \n', "line 2 is not JSON"),
    "array.jsonl": (b'[{"text": "a", "label": 1}]\n', "line 1 is a JSON list, expected an object"),
    "nothing.jsonl": (b"{}\n{}\n", "objects without any field"),
    "gap.jsonl": (b'{"text": "a b", "label": 1}\n\n{"label": 0}\n', r"example 2 \(line 3\): no value in column 'text'"),
    "object.jsonl": (b'{"text": "a b", "label": 1}\n{"text": {"a": 1}, "label": 0}\n', "example 2 .*dict.*expected text"),
    "dict.jsonl": (b'{"text": "a b", "label": {"x": 1}}\n', "example 1 .*'label' holds dict"),
    "half.jsonl": (b'{"text": "\\ud800", "label": 1}\n{"text": "a", "label": 0}\n', "example 1 .*an incomplete character"),
    "halflabel.jsonl": (b'{"text": "a", "label": "b"}\n{"text": "a", "label": "\\ud800"}\n', "example 2 .*'label'"),
    "vast.csv": (b"text,label\na b,1.5\nc d,-1e31\n", r"example 2 .*-1e31.*at most 1e\+30"),
    "deep.jsonl": (b"[" * 100_000 + b"\n", "line 1 is not JSON"),
    "deep.json": (b"[" * 100_000 + b"\n", "is not JSON"),
    "list.json": (b"[]\n", "expected a list of objects"),
    "line.json": (b'[{"text": "a"},\n{"text" "b"}]\n', r"\(line 2\) is not JSON"),
    "false.parquet": (b"text,label\na,1\n", "no readable Parquet"),
    "false.xlsx": (b"text,label\na,1\n", "no readable Excel"),
    "page.txt": (b"text\n", "'.txt'; expected .csv, .tsv, .json"),
    "ragged.conll": (b"John B-PER\nlives\n", "line 2 has 1 fields, expected 2"),
    "unlike.jsonl": (b'{"tokens": ["a", "b"], "tags": ["O"]}\n', "example 1 .*2 words, 1 tags"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_BYTES)
def test_each_mistake_has_its_line(tmp_path, name):
    contents, expected = BAD_BYTES[name]
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(DataError, match=expected) as caught:
        load(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    assert "does not exist" in said(tmp_path / "gone.csv")
    assert "is a folder" in said(tmp_path)


@pytest.mark.parametrize("role", ["text", "text_pair", "label", "group"])
def test_a_misspelt_column_names_the_nearest(tmp_path, role):
    path = write(tmp_path / "named.csv", {"review": TEXTS, "other": TEXTS, "stars": LABELS})
    given = {"text_column": "review", "text_pair_column": "other", "label_column": "stars", "group_column": "other"}
    message = said(path, **given | {f"{role}_column": given[f"{role}_column"][:-1]})
    assert f"--{role.replace('_', '-')}-column" in message
    assert f"did you mean {given[f'{role}_column']!r}" in message


def test_flags_that_contradict_each_other(tmp_path):
    path = write(tmp_path / "named.csv", {"review": TEXTS, "stars": LABELS})
    assert "named twice" in said(path, text_column="review", label_column="review")
    assert "--text-column" in said(path, text_pair_column="review")


def test_whole_numbers_name_one_class_however_they_are_written():
    """Pandas writes 1.0 into a CSV file where another cell of the column is empty."""
    assert {class_name(value) for value in (1, 1.0, "1", "1.0", " 1.00 ")} == {"1"}
    assert [class_name(value) for value in ("1.5", "v1.0", "-2.0", "1.")] == ["1.5", "v1.0", "-2", "1."]
