"""Files of the user's: every format reads the same, and every mistake gets one line that says what to do."""

import csv
import json

import pyarrow
import pyarrow.parquet
import pytest

from unipelt.data import Columns, load_file
from unipelt.data.columns import choose_columns
from unipelt.data.files import read_table
from unipelt.errors import DataError

TEXTS = ["good, even great", 'a "quoted" word', "two\nlines", "naïve ☂", "plain"]
LABELS = ["pos", "neg", "pos", "neg", "pos"]


def write(path, columns):
    """The columns in the format of the suffix, by other means than the reader's."""
    names, rows = list(columns), [list(row) for row in zip(*columns.values())]
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(dict(zip(names, row))) + "\n" for row in rows))
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([names, *rows])
    return path


def said(path, **options):
    """The one line that a mistake raises."""
    with pytest.raises(DataError) as caught:
        load_file(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message


SUFFIXES = pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])


@SUFFIXES
def test_what_is_written_is_read(tmp_path, suffix):
    task, rows = load_file(write(tmp_path / f"reviews{suffix}", {"text": TEXTS, "label": LABELS}))
    assert (task.name, task.kind, task.labels, task.pair) == ("reviews", "classification", ("neg", "pos"), False)
    assert rows.first == TEXTS and rows.second is None
    assert [task.labels[index] for index in rows.labels] == LABELS


@SUFFIXES
def test_pairs_with_numbers_are_regression(tmp_path, suffix):
    numbers = [0.5, 1.0, 2.25, -3.0, 4.0]
    columns = {"sentence1": TEXTS, "sentence2": TEXTS[::-1], "score": numbers, "idx": list(range(5))}
    task, rows = load_file(write(tmp_path / f"pairs{suffix}", columns))
    assert (task.kind, task.labels, task.metric, task.pair) == ("regression", (), "spearman", True)
    assert (rows.first, rows.second, rows.labels) == (TEXTS, TEXTS[::-1], numbers)


@SUFFIXES
def test_whole_numbers_are_classes_in_numeric_order(tmp_path, suffix):
    task, rows = load_file(write(tmp_path / f"stars{suffix}", {"review": TEXTS, "stars": [10, 9, 2, 10, 2]}))
    assert task.labels == ("2", "9", "10")
    assert rows.labels == [2, 1, 0, 2, 0]


def test_whole_numbers_may_be_stored_as_floats_and_said_to_be_regression(tmp_path):
    path = write(tmp_path / "stars.parquet", {"review": TEXTS, "stars": [1.0, 2.0, 5.0, 1.0, 2.0]})
    assert load_file(path)[0].labels == ("1", "2", "5")
    assert load_file(path, kind="regression")[1].labels == [1.0, 2.0, 5.0, 1.0, 2.0]


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_the_delimiter_is_found(tmp_path, mark):
    path = tmp_path / "reviews.csv"
    path.write_text(f'text{mark}label\n"a, b; c"{mark}x\n\nplain{mark}y\n')
    task, rows = load_file(path)
    assert rows.first == ["a, b; c", "plain"] and task.labels == ("x", "y")


def test_a_tsv_with_bare_quotes_is_read_as_glue_writes_it(tmp_path):
    path = tmp_path / "bare.tsv"
    path.write_text('sentence\tlabel\n"Open he said\t0\nno "harm done\t1\n')
    assert load_file(path)[1].first == ['"Open he said', 'no "harm done']


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\n \r\n\n"])
def test_blank_lines_at_the_end_are_no_rows(tmp_path, end):
    (tmp_path / "new.csv").write_text("\ntext\na b\nc d" + end)
    assert load_file(tmp_path / "new.csv", for_prediction=True)[1].first == ["a b", "c d"]


@pytest.mark.parametrize(
    ("gap", "told"),
    [
        ("\n", "; fill it in or remove the row"),
        ('""\n', "; fill it in or remove the row"),
        (" \n\n", ", nor in 1 more (row 3); fill them in or remove these rows"),
        ("\r\n", "; fill it in or remove the row"),
    ],
)
def test_an_empty_row_of_the_only_column_is_not_lost(tmp_path, gap, told):
    path = tmp_path / "new.csv"
    path.write_bytes(b"text\na b\n" + gap.encode() + b"c d\n")
    assert f"row 2 (line 3): no text in column 'text'{told}" in said(path, for_prediction=True)
    path.write_bytes(b'text\na b\n""\n')
    assert "row 2 (line 3): no text" in said(path, for_prediction=True)


@SUFFIXES
def test_numbers_are_texts_among_texts_and_where_they_are_said_to_be(tmp_path, suffix):
    mixed = write(
        tmp_path / f"mixed{suffix}", {"text": ["a", "b", "5" if suffix == ".parquet" else 5], "label": [1, 0, 1]}
    )
    assert load_file(mixed)[1].first == ["a", "b", "5"]
    path = write(tmp_path / f"codes{suffix}", {"text": [12, 7], "label": [1, 0]})
    assert "column 'text' holds numbers, expected text; choose with --text" in said(path)
    assert load_file(path, text="text")[1].first == ["12", "7"]


def test_new_rows_are_read_from_the_columns_of_training(tmp_path):
    trained = Columns(text="body", pair=None, label="area")
    one = read_table(write(tmp_path / "one.csv", {"text": TEXTS, "body": TEXTS[::-1], "area": LABELS}))
    ask = {"text": None, "pair": None, "label": None, "for_prediction": True, "trained": trained}
    assert choose_columns(one, **ask) == Columns(text="body", pair=None, label=None)
    assert choose_columns(one, **ask | {"text": "text"}).text == "text"
    headless = read_table(write(tmp_path / "headless.csv", {"a film that I liked": TEXTS}))
    with pytest.raises(DataError, match=r"no column 'body', which the run was trained on, but 'a film that I liked'"):
        choose_columns(headless, **ask)


def test_a_long_document_is_one_text(tmp_path):
    texts = ["word " * 60_000, "short text"]
    assert load_file(write(tmp_path / "long.csv", {"text": texts, "label": [0, 1]}))[1].first == texts


def test_columns_that_nobody_asked_for_may_hold_anything(tmp_path):
    extra = {"when": pyarrow.array([1, 2], pyarrow.timestamp("ns")), "what": [{"a": [1]}, None]}
    path = tmp_path / "rich.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a b", "c d"], "label": [1, 0], **extra}), path)
    assert load_file(path)[1].labels == [1, 0]


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path):
    plain, marked = tmp_path / "a.csv", tmp_path / "b.csv"
    plain.write_bytes(b"text,label\nx y,1\nz w,0\n")
    marked.write_bytes(b"\xef\xbb\xbftext,label\r\nx y,1\r\nz w,0\r\n")
    assert load_file(plain)[1] == load_file(marked)[1]


def test_class_names_that_parquet_declares_are_used(tmp_path):
    features = {"label": {"names": ["negative", "positive"], "_type": "ClassLabel"}, "text": {"_type": "Value"}}
    table = pyarrow.table({"text": ["a b", "c d"], "label": [1, 0]})
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), tmp_path / "declared.parquet")
    task, rows = load_file(tmp_path / "declared.parquet")
    assert [task.labels[index] for index in rows.labels] == ["positive", "negative"]


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        ({"utterance": TEXTS, "Rating": LABELS}, "utterance"),
        ({"words": TEXTS, "label": LABELS}, "words"),
        ({"words": TEXTS, "grade": [1, 2, 1, 2, 1]}, "words"),
        ({"": [0, 1, 2, 3, 4], "text": TEXTS, "anything": LABELS}, "text"),
    ],
)
def test_columns_are_found_where_only_one_can_be_meant(tmp_path, columns, chosen):
    _, rows = load_file(write(tmp_path / "found.csv", columns))
    assert rows.first == columns[chosen] and len(rows.labels) == 5


def test_named_columns_win_over_known_names(tmp_path):
    path = write(tmp_path / "both.csv", {"text": TEXTS, "mine": TEXTS[::-1], "label": [1.5] * 5, "area": LABELS})
    task, rows = load_file(path, text="mine", label="area")
    assert rows.first == TEXTS[::-1] and task.labels == ("neg", "pos")
    assert load_file(path, text="mine", pair="text", label="area")[1].second == TEXTS


def test_prediction_needs_texts_alone(tmp_path):
    bare = write(tmp_path / "new.csv", {"anything": TEXTS})
    task, rows = load_file(bare, labels=("neg", "pos"), for_prediction=True)
    assert rows.first == TEXTS and rows.labels is None and task.labels == ("neg", "pos")
    labelled = write(tmp_path / "old.csv", {"text": TEXTS, "label": ["other"] * 5, "stars": [1] * 5})
    assert load_file(labelled, for_prediction=True)[1].labels is None
    with pytest.raises(DataError, match="row 1"):
        load_file(labelled, label="label", labels=("neg", "pos"), for_prediction=True)


def test_labels_of_training_fix_the_indices(tmp_path):
    path = write(tmp_path / "test.csv", {"text": TEXTS, "label": ["pos"] * 5})
    assert load_file(path, labels=("unsure", "pos", "neg"))[1].labels == [1] * 5


BAD_BYTES = {
    "empty.csv": (b"", "is empty"),
    "blank.csv": (b"\n \n", "is empty"),
    "header.csv": (b"text,label\n", "has a header and no rows"),
    "zipped.csv": (b"PK\x03\x04rest", "Excel"),
    "binary.csv": (b"text,label\nab\0c,1\n", "binary file"),
    "wide.csv": ("text,label\na,1\n".encode("utf-16"), "UTF-16"),
    "latin.csv": (b"text,label\nab,1\ncaf\xe9,0\n", r"byte 0xe9 at position 19 \(line 3\)"),
    "marked.csv": (b"\xef\xbb\xbftext,label\ncaf\xe9,0\n", r"byte 0xe9 at position 17 \(line 2\)"),
    "ragged.csv": (b"text,label\na b,1\n\nc, d,0\n", "line 4 has 3 of the header's 2 fields; put"),
    "short.csv": (b"text,label\na b,1\nc d\n", "line 3 has 1 of the header's 2 fields; fill"),
    "quote.csv": (b'text,label\na b,1\n"c d,0\ne f,1\n', "line 3: .*quote"),
    "twice.csv": (b"text,text\na,b\n", "'text' stands twice"),
    "notext.csv": (b"text,label\na b,1\n ,0\n", r"row 2 \(line 3\): no text in column 'text'"),
    "nolabel.csv": (b"text,label\na b,1\nc d,\n", r"row 2 \(line 3\): no label in column 'label'"),
    "later.csv": (b'text,label\n"a\nb",1\nc d,\n', r"row 2 \(line 4\)"),
    "oneclass.csv": (b"text,label\na b,1\nc d,1\n", "every label in column 'label' is '1'"),
    "numbers.csv": (b"text,label\n12,1\n3.5,0\n", "column 'text' holds numbers"),
    "onlynumbers.csv": (b"a,b\n12,1\n3.5,0\n", "no column of text among 'a', 'b'"),
    "notanumber.csv": (b"text,label\na b,1.5\nc d,nan\n", "row 2 .*nan.* not finite"),
    "infinite.csv": (b"text,label\na b,1.5\nc d,-inf\n", "row 2 .*-inf.* not finite"),
    "twotexts.csv": (b"a,b,label\nx y,z w,1\nx y,z w,0\n", "columns 'a', 'b' could each be the text"),
    "twoknown.csv": (b"text,review,label\nx y,z w,1\nx y,z w,0\n", "'text', 'review' could each be the text"),
    "twolabels.csv": (b"text,label,stars\nx y,1,2\nx y,0,3\n", "'label', 'stars' could each be the label"),
    "tworest.csv": (b"text,a,b\nx y,1,2\nx y,0,3\n", "'a', 'b' could each be the label"),
    "unlabelled.csv": (b"text\nx y\nz w\n", "no label beside the text 'text'"),
    "malformed.jsonl": (b'{"text": "a", "label": 1}\n{"text": \n', "line 2 is no JSON"),
    "array.jsonl": (b'[{"text": "a", "label": 1}]\n', "line 1 is a JSON list, expected an object"),
    "nothing.jsonl": (b"{}\n{}\n", "objects without any field"),
    "gap.jsonl": (b'{"text": "a b", "label": 1}\n\n{"label": 0}\n', r"row 2 \(line 3\): no text"),
    "object.jsonl": (b'{"text": "a b", "label": 1}\n{"text": {}, "label": 0}\n', "row 2 .* dict '{}', expected a text"),
    "list.jsonl": (b'{"text": "a b", "label": ["x"]}\n', "row 1 .*label list"),
    "half.jsonl": (b'{"text": "\\ud800", "label": 1}\n{"text": "a", "label": 0}\n', "row 1 .*no valid Unicode"),
    "halflabel.jsonl": (
        b'{"text": "a", "label": "b"}\n{"text": "a", "label": "\\ud800"}\n',
        "row 2 .*'label' .*Unicode",
    ),
    "vast.csv": (b"text,label\na b,1.5\nc d,-1e31\n", r"row 2 .*label -1e\+31 .*at most 1e\+30"),
    "deep.jsonl": (b"[" * 100_000 + b"\n", "line 1 is no JSON"),
    "false.parquet": (b"text,label\na,1\n", "no readable Parquet"),
    "page.txt": (b"text\n", "'.txt'; expected .csv, .tsv, .jsonl, .parquet"),
    "list.json": (b"[]\n", "'.json'; expected"),
}


@pytest.mark.parametrize("name", BAD_BYTES)
def test_each_mistake_has_its_line(tmp_path, name):
    contents, expected = BAD_BYTES[name]
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(DataError, match=expected) as caught:
        load_file(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    assert "does not exist" in said(tmp_path / "gone.csv")
    assert "is a folder" in said(tmp_path)


@pytest.mark.parametrize("flag", ["text", "pair", "label"])
def test_a_misspelt_column_names_the_nearest(tmp_path, flag):
    path = write(tmp_path / "named.csv", {"review": TEXTS, "other": TEXTS, "stars": LABELS})
    given = {"text": "review", "pair": "other", "label": "stars"}
    wrong = {**given, flag: given[flag][:-1]}
    message = said(path, **wrong)
    assert f"--{flag}" in message and f"did you mean {given[flag]!r}" in message


def test_flags_that_contradict_each_other(tmp_path):
    path = write(tmp_path / "named.csv", {"review": TEXTS, "stars": LABELS})
    assert "named twice" in said(path, text="review", label="review")
    assert "--text" in said(path, pair="review")


def test_an_unseen_label_names_its_row_and_the_nearest(tmp_path):
    path = write(tmp_path / "unseen.csv", {"text": TEXTS, "label": ["pos", "neg", "poss", "neg", "pos"]})
    message = said(path, labels=("neg", "pos"))
    assert "row 3" in message and "'poss'" in message and "did you mean 'pos'" in message


def test_regression_refuses_names(tmp_path):
    path = write(tmp_path / "named.csv", {"text": TEXTS, "label": LABELS})
    assert "row 1" in said(path, kind="regression") and "expected a number" in said(path, kind="regression")


def test_labels_that_hardly_repeat_ask_for_a_word(tmp_path):
    rows = [f"word {index}" for index in range(30)]
    path = write(tmp_path / "wide.csv", {"text": rows, "label": list(range(30))})
    assert "30 different labels" in said(path)
    assert len(load_file(path, kind="classification")[0].labels) == 30
    assert load_file(path, kind="regression")[1].labels == list(range(30))


def test_parquet_without_rows_and_with_gaps(tmp_path):
    nothing = pyarrow.table({"text": pyarrow.array([], pyarrow.string()), "label": pyarrow.array([], pyarrow.int64())})
    pyarrow.parquet.write_table(nothing, tmp_path / "none.parquet")
    assert "no rows" in said(tmp_path / "none.parquet")
    gaps = write(tmp_path / "gaps.parquet", {"text": ["a b", None, "c d"], "label": [1.0, 0.0, float("nan")]})
    assert "row 2: no text" in said(gaps)
    labels = write(tmp_path / "labels.parquet", {"text": ["a b", "c d"], "label": [1.0, float("nan")]})
    assert "row 2: no label" in said(labels)
