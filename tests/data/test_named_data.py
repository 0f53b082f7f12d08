"""One name for every kind of data, the hub's behind a stand-in; and what importing the room costs."""

import subprocess
import sys
from dataclasses import FrozenInstanceError

import datasets
import pytest

from unipelt.data import Examples, load, load_glue, split
from unipelt.errors import DataError

HEADER = "text,label\n"


@pytest.fixture
def hub(monkeypatch):
    """Stands in for datasets.load_dataset: answers with the splits put into it."""
    answers = {}

    def load_dataset(name, config=None):
        if name not in answers:
            raise ConnectionError("cannot reach the hub.\nTry later.")
        return answers[name]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return answers


def rows(labels, word="text"):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    texts = [f"{word} {index}" for index in range(len(labels))]
    return datasets.Dataset.from_dict({"text": texts, "label": labels}, features=features)


def test_a_file_is_one_data_set(tmp_path):
    path = tmp_path / "reviews.csv"
    path.write_text(HEADER + "".join(f"word {index},{index % 3}\n" for index in range(90)))
    dataset = load(path)
    assert load(str(path)) == dataset
    assert dataset.test is None and dataset.complete and dataset.task.labels == ("0", "1", "2")
    assert len(split(dataset, 30, seed=0).test) == 18


def test_a_test_file_is_read_with_the_columns_and_labels_of_training(tmp_path):
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    train.write_text("words,grade\na b,3\nc d,1\n")
    test.write_text("grade,text,words\n3,other,e f\n3,other,g h\n")
    dataset = load(train, test=test)
    assert dataset.test == Examples(first=["e f", "g h"], second=None, labels=[1, 1])
    test.write_text("grade,words\n3,e f\n7,g h\n")
    with pytest.raises(DataError, match=r"test.csv, row 2 .*'7' .* did not occur in training"):
        load(train, test=test)
    test.write_text("grade,wods\n3,e f\n")
    with pytest.raises(DataError, match=r"test.csv has no column 'words'.*did you mean 'wods'"):
        load(train, test=test)


def test_given_parts_are_used_whole(tmp_path):
    paths = {name: tmp_path / f"{name}.csv" for name in ("train", "validation", "test")}
    for name, path in paths.items():
        path.write_text("text,label,author\n" + "".join(f"{name} {i},{i % 2},{name} {i // 3}\n" for i in range(30)))
    dataset = load(paths["train"], validation=paths["validation"], test=paths["test"], group="author")
    assert all(dataset.source.count(str(path)) == 1 for path in paths.values())
    parts = split(dataset, "all", seed=0)
    assert {name: (len(part), part.first[0].split()[0]) for name, part in parts.parts.items()} == {
        name: (30, name) for name in paths
    }
    assert (
        parts.validation.groups[:4] == ["validation 0", "validation 0", "validation 0", "validation 1"]
        and not parts.notes
    )
    assert len(split(load(paths["train"], validation=paths["validation"]), "all", seed=0).test) == 10


@pytest.mark.parametrize("name", ["docstings", "Docstrings", "ssst2", "MRPC"])
def test_a_misspelt_name_gets_the_nearest(name):
    with pytest.raises(DataError, match=r"did you mean '(docstrings|sst2|mrpc)'"):
        load(name)


def test_a_missing_file_is_no_hub_name(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="does not exist"):
        load("reviews.csv")
    with pytest.raises(DataError, match="does not exist"):
        load(tmp_path / "reviews")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match="does not exist"):
        load("data/reviews")


def test_columns_are_refused_where_they_count_for_nothing(hub):
    with pytest.raises(DataError, match="sst2 knows its own columns and test set; leave out --text, --label"):
        load("sst2", text="sentence", label="label")
    with pytest.raises(DataError, match="docstrings knows its own"):
        load("docstrings", test="test.csv")
    with pytest.raises(DataError, match=r"owner/name is a data set of the hub.*leave out --test, --data-dir"):
        load("owner/name", test="test.csv", data_dir="glue")
    with pytest.raises(DataError, match="docstrings knows its own columns and test set; leave out --data-dir"):
        load("docstrings", data_dir="glue")
    with pytest.raises(DataError, match=r"new.csv is a file, and --data-dir is .*; leave out --data-dir"):
        load("new.csv", data_dir="glue")


def test_rows_without_a_group_are_alone(tmp_path):
    train, validation = tmp_path / "train.csv", tmp_path / "validation.jsonl"
    train.write_text("text,label,author\na b,0,\nc d,1,7\ne f,0,7\ng h,1, \n")
    validation.write_text('{"text": "i", "label": 0, "author": null}\n{"text": "j", "label": 1, "author": 7.0}\n')
    dataset = load(train, validation=validation, group="author")
    assert dataset.train.groups[1:3] == ["7", "7"] and dataset.validation.groups[1] == "7", "in whatever format"
    assert len({*dataset.train.groups, *dataset.validation.groups}) == 4


@pytest.mark.parametrize("way", ["itself", "a link", "a copy"])
def test_training_rows_are_no_test_rows(tmp_path, way):
    path = tmp_path / "train.csv"
    path.write_text(HEADER + "a b,3\nc d,1\n")
    test = path if way == "itself" else tmp_path / "test.csv"
    if way == "a link":
        test.symlink_to(path)
    elif way == "a copy":
        test.write_bytes(path.read_bytes())
    for name in ("validation", "test"):
        with pytest.raises(
            DataError, match=rf"--{name} .*: has the very rows that .*train.csv trains on; leave it out"
        ):
            load(path, **{name: test})
    other = tmp_path / "other.csv"
    other.write_text(HEADER + "e f,3\ng h,1\n")
    with pytest.raises(
        DataError, match=r"--test .*: has the very rows that --validation .*other.csv has; leave it out"
    ):
        load(path, validation=other, test=other)


def test_a_hub_out_of_reach_is_one_line(hub):
    with pytest.raises(DataError, match=r"nyu-mll/glue .*cannot reach the hub.*--data-dir") as caught:
        load("sst2")
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="owner/name could not be had from the hub"):
        load("owner/name")


def test_glue_from_the_hub_is_glue_from_a_folder(hub, tmp_path):
    columns = {"sentence": ["a b", "c d", "e f"], "label": [1, 0, 1], "idx": [0, 1, 2]}
    features = datasets.Features(
        {
            "sentence": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["negative", "positive"]),
            "idx": datasets.Value("int32"),
        }
    )
    table = datasets.Dataset.from_dict(columns, features=features)
    withheld = datasets.Dataset.from_dict({**columns, "label": [-1] * 3}, features=features)
    hub["nyu-mll/glue"] = datasets.DatasetDict({"train": table, "validation": table, "test": withheld})
    (tmp_path / "sst2").mkdir()
    for part in ("train", "validation"):
        table.to_parquet(tmp_path / "sst2" / f"{part}.parquet")
    online, local = load("sst2"), load_glue("sst2", tmp_path)
    assert (online.task, online.train, online.test) == (local.task, local.train, local.test)


def test_a_hub_data_set_brings_its_names_and_splits(hub):
    train, test, withheld = rows([0, 1, 1]), rows([1, 0], "test"), rows([-1, -1])
    hub["owner/name"] = datasets.DatasetDict({"train": train, "validation": test, "test": withheld})
    dataset = load("owner/name")
    assert dataset.task.labels == ("no", "yes") and dataset.task.name == "name"
    assert dataset.test.first == ["test 0", "test 1"] and dataset.validation is None
    hub["owner/name"] = datasets.DatasetDict({"train": train, "validation": rows([1], "validation"), "test": test})
    dataset = load("owner/name")
    assert (len(dataset.test), len(dataset.validation)) == (2, 1)
    hub["owner/name"] = datasets.DatasetDict({"validation": train})
    with pytest.raises(DataError, match="no split 'train' but validation"):
        load("owner/name")


def test_rows_are_values():
    pair = Examples(first=["a", "b"], second=["c", "d"], labels=[0, 1])
    assert len(pair) == 2 and pair.take([1]) == Examples(first=["b"], second=["d"], labels=[1])
    assert pair.take([0, 1]).fingerprint() == pair.fingerprint()
    different = [
        pair.take([1, 0]),
        Examples(first=["a", "b"], second=["c", "d"], labels=[1, 0]),
        Examples(first=["a", "b"], second=None, labels=[0, 1]),
        Examples(first=["ab", ""], second=["c", "d"], labels=[0, 1]),
    ]
    assert len({rows.fingerprint() for rows in [pair, *different]}) == 5
    with pytest.raises(FrozenInstanceError):
        pair.first = []
    with pytest.raises(DataError, match=r"unequal length \[1, 2\]"):
        Examples(first=["a", "b"], second=["c"], labels=None)


def test_importing_the_room_brings_nothing_heavy():
    program = "import sys, unipelt.data; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in ran.stdout.split()}
    assert not loaded & {"torch", "transformers", "datasets", "pyarrow", "sklearn", "scipy", "numpy", "pandas"}
