"""One name for every kind of data, the hub's behind a stand-in; and what importing the package costs."""

import subprocess
import sys
from dataclasses import replace

import datasets
import pytest

from unipelt.data import Dataset, Examples, split
from unipelt.errors import DataError
from unipelt.tasks.registry import load

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


def test_a_test_file_is_read_with_the_columns_and_labels_of_training(tmp_path):
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    train.write_text("words,grade\na b,3\nc d,1\n")
    test.write_text("grade,text,words\n3,other,e f\n3,other,g h\n")
    assert load(train, test=test)[1].test == Examples(inputs={"text": ["e f", "g h"]}, targets=[1, 1])
    test.write_text("grade,words\n3,e f\n7,g h\n")
    with pytest.raises(DataError, match=r"test.csv, example 2 .*'7' .* did not occur in training"):
        load(train, test=test)
    test.write_text("grade,wods\n3,e f\n")
    with pytest.raises(DataError, match=r"test.csv has no column 'words'.*did you mean 'wods'"):
        load(train, test=test)


def test_given_sets_are_used_whole(tmp_path):
    paths = {name: tmp_path / f"{name}.csv" for name in ("train", "validation", "test")}
    for name, path in paths.items():
        path.write_text("text,label,author\n" + "".join(f"{name} {i},{i % 2},{name} {i // 3}\n" for i in range(30)))
    dataset = load(paths["train"], validation=paths["validation"], test=paths["test"], group_column="author")[1]
    assert all(dataset.source.count(str(path)) == 1 for path in paths.values())
    parts = split(dataset, "all", seed=0)
    for name, part in parts.parts.items():
        assert len(part) == 30 and all(text.startswith(name) for text in part.inputs["text"])
    assert parts.validation.groups[:4] == [*["validation 0"] * 3, "validation 1"] and not parts.notes


@pytest.mark.parametrize("name", ["docstings", "Docstrings", "ssst2", "MRPC"])
def test_a_misspelt_name_gets_the_nearest(name):
    with pytest.raises(DataError, match=r"did you mean '(docstrings|sst2|mrpc)'"):
        load(name)


def test_a_missing_file_is_no_hub_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("reviews.csv", tmp_path / "reviews", "data/reviews"):
        with pytest.raises(DataError, match="does not exist"):
            load(name)


def test_options_are_refused_where_they_count_for_nothing(hub):
    for name, given, expected in (
        ("sst2", {"text_column": "a", "label_column": "b"}, "leave out --text-column, --label-column"),
        ("docstrings", {"test": "test.csv"}, "docstrings knows its own columns and test set; leave out --test"),
        ("docstrings", {"data_dir": "glue"}, "leave out --data-dir"),
        ("owner/name", {"test": "test.csv", "data_dir": "glue"}, "data set of the hub.*leave out --test, --data-dir"),
        ("new.csv", {"data_dir": "glue"}, "is a file, and --data-dir .*; leave out --data-dir"),
    ):
        with pytest.raises(DataError, match=expected):
            load(name, **given)


def test_examples_without_a_group_are_alone(tmp_path):
    train, validation = tmp_path / "train.csv", tmp_path / "validation.jsonl"
    train.write_text("text,label,author\na b,0,\nc d,1,7\ne f,0,7\ng h,1, \n")
    validation.write_text('{"text": "i", "label": 0, "author": null}\n{"text": "j", "label": 1, "author": 7.0}\n')
    dataset = load(train, validation=validation, group_column="author")[1]
    assert dataset.train.groups[1:3] == ["7", "7"] and dataset.validation.groups[1] == "7", "in whatever format"
    assert len({*dataset.train.groups, *dataset.validation.groups}) == 4


@pytest.mark.parametrize("way", ["itself", "a copy"])
def test_training_examples_are_no_test_examples(tmp_path, way):
    path = tmp_path / "train.csv"
    path.write_text(HEADER + "a b,3\nc d,1\n")
    test = path if way == "itself" else tmp_path / "test.csv"
    test.write_bytes(path.read_bytes())
    for name in ("validation", "test"):
        with pytest.raises(DataError, match=rf"--{name} .*: has the same examples as .*train.csv; give other examples"):
            load(path, **{name: test})


def test_a_hub_out_of_reach_is_one_line(hub):
    with pytest.raises(DataError, match=r"nyu-mll/glue .*cannot reach the hub.*--data-dir") as caught:
        load("sst2")
    assert "\n" not in str(caught.value)


def test_glue_from_the_hub_is_glue_from_a_folder(hub, tmp_path):
    columns = {"sentence": ["a b", "c d", "e f"], "label": [1, 0, 1], "idx": [0, 1, 2]}
    names = datasets.ClassLabel(names=["negative", "positive"])
    features = datasets.Features({"sentence": datasets.Value("string"), "label": names, "idx": datasets.Value("int32")})
    table = datasets.Dataset.from_dict(columns, features=features)
    other = datasets.Dataset.from_dict(columns | {"sentence": ["g", "h", "i"]}, features=features)
    withheld = datasets.Dataset.from_dict({**columns, "label": [-1] * 3}, features=features)
    hub["nyu-mll/glue"] = datasets.DatasetDict({"train": table, "validation": other, "test": withheld})
    (tmp_path / "sst2").mkdir()
    for part, rows_ in (("train", table), ("validation", other)):
        rows_.to_parquet(tmp_path / "sst2" / f"{part}.parquet")
    (task, online), (same, local) = load("sst2"), load("sst2", data_dir=tmp_path)
    assert task == same and (online.train, online.test) == (local.train, local.test)


def test_a_hub_data_set_brings_its_names_and_splits(hub):
    train, test, withheld = rows([0, 1, 1]), rows([1, 0], "test"), rows([-1, -1])
    hub["owner/name"] = datasets.DatasetDict({"train": train, "validation": test, "test": withheld})
    task, dataset = load("owner/name")
    assert task.labels == ("no", "yes") and task.name == "name"
    assert dataset.test.inputs["text"] == ["test 0", "test 1"] and dataset.validation is None
    hub["owner/name"] = datasets.DatasetDict({"train": train, "validation": rows([1], "validation"), "test": test})
    dataset = load("owner/name")[1]
    assert (len(dataset.test), len(dataset.validation)) == (2, 1)
    hub["owner/name"] = datasets.DatasetDict({"validation": train})
    with pytest.raises(DataError, match="no split 'train' but validation"):
        load("owner/name")


def test_examples_are_values():
    pair = Examples(inputs={"text": ["a", "b"], "text_pair": ["c", "d"]}, targets=[0, 1])
    assert len(pair) == 2
    assert pair.take([1]) == Examples(inputs={"text": ["b"], "text_pair": ["d"]}, targets=[1])
    assert pair.take([0, 1]).fingerprint == pair.fingerprint
    one, other = (replace(pair.take([index]), groups=["x"], names=[f"line {index}"]) for index in (0, 1))
    assert one.joined(other) == replace(pair, groups=["x", "x"]) and one.joined(other).names == ["line 0", "line 1"]
    assert one.joined(replace(other, groups=None)) == pair, "what one of them lacks is not known of both"
    different = [
        pair.take([1, 0]),
        Examples(inputs=pair.inputs, targets=[1, 0]),
        Examples(inputs={"text": ["a", "b"]}, targets=[0, 1]),
        Examples(inputs={"text": ["ab", ""], "text_pair": ["c", "d"]}, targets=[0, 1]),
    ]
    assert len({one.fingerprint for one in [pair, *different]}) == 5


def test_the_identity_of_a_data_set_is_all_that_results_depend_on():
    """A study that is asked for again is refused where any of it is another."""
    one = Examples(inputs={"text": ["a", "b"]}, targets=[0, 1], groups=["x", "y"])
    data = Dataset(name="made", train=one, test=one, classes=("no", "yes"))
    different = [
        data, replace(data, train=one.take([1, 0])), replace(data, train=replace(one, groups=["x", "x"])),
        replace(data, classes=("yes", "no")), replace(data, test=None), replace(data, validation=one),
        replace(data, test=one.take([0])),
    ]  # fmt: skip
    assert len({each.identity for each in different}) == len(different)
    assert replace(data, name="moved", notes=("read elsewhere",)).identity == data.identity
    assert data.identity.startswith("2 training and 2 test examples, sha256 ")


def test_importing_data_loads_nothing_heavy():
    program = "import sys, unipelt.data; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in ran.stdout.split()}
    assert not loaded & {"torch", "transformers", "datasets", "pyarrow", "sklearn", "scipy", "numpy", "pandas"}


@pytest.mark.parametrize(
    ("name", "columns", "expected"),
    [
        ("EdinburghNLP/xsum", {"document": ["a b"], "summary": ["a"], "id": ["1"]}, ("a b", "a")),
        ("knkarthick/samsum", {"id": ["1"], "dialogue": ["a: b"], "summary": ["a"]}, ("a: b", "a")),
        ("abisee/cnn_dailymail", {"article": ["a b"], "highlights": ["a"], "id": ["1"]}, ("a b", "a")),
        ("wmt/wmt16/ro-en", {"translation": [{"ro": "unu", "en": "one"}]}, ("one", "unu")),
        ("wmt/wmt16/de-fr", {"translation": [{"de": "eins", "fr": "un"}]}, ("eins", "un")),
    ],
)
def test_known_data_sets_of_the_hub_are_texts_and_their_answers(hub, name, columns, expected):
    hub["/".join(name.split("/")[:2])] = datasets.DatasetDict({"train": datasets.Dataset.from_dict(columns)})
    task, found = load(name)
    assert task.kind == "generation" and (next(iter(found.train.inputs.values())), found.train.targets) == (
        [expected[0]], [expected[1]],
    )  # fmt: skip


def test_a_language_of_translations_can_be_chosen(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"translation": {"en": "one", "ro": "unu"}}\n' * 30)
    task, found = load(path, text_column="translation.ro", label_column="translation.en")
    assert task.kind == "generation" and found.train.targets[0] == "one"
    with pytest.raises(DataError, match=r"no column 'translation.de' \(--text-column\)"):
        load(path, text_column="translation.de", label_column="translation.en")


def test_chats_may_have_files_of_their_own_for_validation_and_test(tmp_path):
    chat = '{"messages": [{"role": "user", "content": "%s %d"}, {"role": "assistant", "content": "yes"}]}\n'
    paths = {part: tmp_path / f"{part}.jsonl" for part in ("train", "validation", "test")}
    for part, path in paths.items():
        path.write_text("".join(chat % (part, number) for number in range(20)))
    dataset = load(paths["train"], validation=paths["validation"], test=paths["test"])[1]
    assert [len(part) for part in split(dataset, "all", seed=0).parts.values()] == [20, 20, 20]
