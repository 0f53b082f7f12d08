"""The store: what is written is there, what is no store is left as it was, and writers do not clash."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from unipelt.errors import StoreError
from unipelt.study.schema import NOT_STORED
from unipelt.study.store import FILE, Store
from unipelt.train.records import RunKey, RunRecord

KEYS = [RunKey(task="a", k=k, method="lora", seed=seed, lr=1e-3) for k in (100, "all") for seed in range(3)]
RESULT = RunRecord(
    status="finished", metric="accuracy", validation=0.5, test=0.25, curve=[{"epoch": 1, "accuracy": 0.5}], predictions=[0, 1],
    gates={"encoder.0.x": {"mean": 0.5, "sd": 0.1}}, examples={"train": {"number": 100}}, complete=False,
)  # fmt: skip


def test_what_is_written_is_read(tmp_path: Path):
    store = Store.create(tmp_path / "new", {"model": "m", "recipe": {"epochs": 3}})
    store.plan(KEYS)
    store.plan(KEYS[::-1])
    assert store.pending() == KEYS, "a plan is added once, and keeps its order"
    store.finish({KEYS[1]: RESULT})
    store.finish({KEYS[1]: RunRecord(status="finished", metric="f1", validation=0.9)})
    for opened in (store, Store.read(tmp_path / "new"), Store.read(tmp_path / "new" / FILE)):
        assert opened.pending() == [KEYS[0], *KEYS[2:]]
        row = opened.runs()[1]
        stored = {name: value for name, value in vars(RESULT).items() if name not in NOT_STORED}
        assert {name: row[name] for name in stored} == stored, "what is done stays"
        assert (row["k"], opened.runs()[4]["k"], opened.options["recipe"]) == (100, "all", {"epochs": 3})


def test_near_rates_are_two_runs(tmp_path: Path):
    store, near = Store.create(tmp_path / "new", {}), [0.001, 0.0010000001, 1e-4 / 3]
    store.plan([replace(KEYS[0], lr=rate) for rate in near])
    assert [key.lr for key in store.pending()] == near
    assert [key.id.rpartition("/")[2] for key in store.pending()] == ["0.001", "0.0010000001", str(1e-4 / 3)]
    assert replace(KEYS[0], lr=5e-05).id.endswith("/5e-05") and replace(KEYS[0], lr=1).id.endswith("/1")


def test_runs_get_a_fleet_once(tmp_path: Path):
    store = Store.create(tmp_path / "new", {})
    store.plan(KEYS[:3])
    store.assign(lambda free: {"one": free})
    store.plan(KEYS)
    store.assign(lambda free: {"two": free})
    assert store.fleets() == {"one": KEYS[:3], "two": KEYS[3:]}


def test_what_failed_is_planned_again_by_itself(tmp_path: Path):
    """Once its fleet has nothing left to do: until then the fleet is trained as it was planned, by whatever process."""
    store = Store.create(tmp_path / "new", {})
    store.plan(KEYS)
    store.assign(lambda free: {"one": free})
    store.finish({KEYS[0]: replace(RESULT, status="failed: why"), KEYS[1]: RESULT})
    store.plan(KEYS)
    assert store.pending() == KEYS[2:]
    store.finish(dict.fromkeys(KEYS[2:], RESULT))
    store.plan(KEYS[1:])
    assert not store.pending(), "that of another command is not tried"
    store.plan(KEYS)
    assert store.pending() == KEYS[:1] and store.fleets() == {"one": KEYS[1:]}
    assert {store.runs()[0][name] for name in ("validation", "curve", "predictions")} == {None}
    store.assign(lambda free: {"two": free})
    assert store.fleets()["two"] == KEYS[:1]


def test_a_finish_is_whole_or_not_at_all(tmp_path: Path):
    store = Store.create(tmp_path / "new", {})
    store.plan(KEYS)
    bad = RunRecord(status="finished", metric="accuracy", validation="no number")  # type: ignore[arg-type]
    with pytest.raises(StoreError):
        store.finish({KEYS[0]: RESULT, KEYS[1]: bad})
    assert store.pending() == KEYS


@pytest.mark.parametrize("kind", ["text", "empty", "truncated", "foreign", "format"])
def test_what_is_no_store_is_named_and_left_as_it_was(kind: str, tmp_path: Path):
    path = tmp_path / FILE
    if kind in ("truncated", "format"):
        store = Store.create(tmp_path, {})
        store.plan(KEYS)
        store.close()
        with sqlite3.connect(path) as connection:
            connection.execute(
                "UPDATE study SET value = '99' WHERE name = 'format'" if kind == "format" else "SELECT 1"
            )
            connection.execute("PRAGMA journal_mode=DELETE")
    if kind == "foreign":
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE mine (x)")
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    if kind in ("text", "empty"):
        path.write_bytes(b"not a database, but long enough to be one" * 30 if kind == "text" else b"")
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"untouched|no study"):
        Store.read(tmp_path)
    if kind != "empty":  # another process may be making it
        with pytest.raises(StoreError, match="untouched"):
            Store.create(tmp_path, {})
        assert path.read_bytes() == before


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM study WHERE name = 'options'",
        "UPDATE study SET value = '[1]' WHERE name = 'options'",
        "UPDATE runs SET k = 'few' WHERE position = 0",
        "UPDATE runs SET method = 'nonsense' WHERE position = 1",
    ],
)
def test_rows_that_say_what_no_study_says_are_a_damaged_store(damage: str, tmp_path: Path):
    """Before anything is trained: a result would reach no row, and its run would be trained again and again."""
    store = Store.create(tmp_path, {})
    store.plan(KEYS)
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute(damage)
    with pytest.raises(StoreError, match=r"damaged one .*untouched"):
        Store.create(tmp_path, store.options).pending()


def test_another_study_or_a_full_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    options = {"model": "x", "recipe": {"epochs": 3}, "frozen": False}
    late = Store.create(tmp_path / "a", {"model": "no command that planned a run"})
    Store.create(tmp_path / "a", options).plan(KEYS)
    with pytest.raises(StoreError, match="model=x, this command has model=no command"):
        late.plan(KEYS)
    assert late.options == options
    for other, expected in [
        ({"model": "y"}, "model=x, this command has model=y;"),
        ({"recipe": {}}, "epochs=3, this command has epochs=its default;"),
        ({"recipe": {"epochs": 3, "patience": 2}}, "patience=its default, this command has patience=2;"),
        ({"frozen": True}, "frozen=off, this command has frozen=on;"),
        (
            {"columns": {"stratify": True, "validation_rows": 1000}},
            "stratify=its default, this command has stratify=on;",
        ),
    ]:
        with pytest.raises(StoreError, match=expected):
            Store.create(tmp_path / "a", options | other)
    Store.create(
        tmp_path / "a", options | {"columns": {"stratify": False, "validation_rows": 1000, "validation": None}}
    )  # the defaults
    (tmp_path / "b").mkdir()
    for name in ("b", "./b", tmp_path / "b"):  # one folder
        Store.create("c", {"model": str(name)}).plan(KEYS)
    Store.create("c", {"model": "b"})
    (tmp_path / "b" / "thesis.tex").touch()
    with pytest.raises(StoreError, match="not empty, and holds no study"):
        Store.create(tmp_path / "b", {})
    with pytest.raises(StoreError, match="no such study"):
        Store.read(tmp_path / "d")


def test_many_writers_do_not_clash(tmp_path: Path):
    def write(number: int) -> None:
        store = Store.create(tmp_path / "new", {"model": "m"})
        store.plan(KEYS)
        store.assign(lambda free: {f"fleet{number}": free} if free else {})
        store.finish({KEYS[number]: RESULT})

    with ThreadPoolExecutor(len(KEYS)) as pool:
        list(pool.map(write, range(len(KEYS))))
    store = Store.read(tmp_path / "new")
    assert not store.pending() and len(store.fleets()) == 1


@pytest.mark.parametrize("name", ["../../out", "/tmp/out", "a/b", "..", ".", "", ".hidden", "a\nb", "-rf"])
def test_a_fleet_names_no_path_outside_the_study(name: str, tmp_path: Path):
    store = Store.create(tmp_path, {})
    store.plan(KEYS)
    store.assign(lambda free: {name: free})
    with pytest.raises(StoreError, match="is not the name of a fleet"):
        store.fleets()


@pytest.mark.parametrize(
    ("column", "value"),
    [("curve", "5"), ("predictions", '"x"'), ("gates", '{"a": 1}'), ("recipe", "[]"), ("labels", "{"), ("examples", "1"), ("identity", '{"base": 1}'), ("parameters", '{"head": "x"}')],
)  # fmt: skip
def test_a_wrong_value_in_a_store_is_one_line(column: str, value: str, tmp_path: Path):
    store = Store.create(tmp_path, {})
    store.plan(KEYS)
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute(f"UPDATE runs SET {column} = ? WHERE position = 0", (value,))
    with pytest.raises(StoreError, match="damaged one"):
        store.runs()


def test_more_epochs_plan_every_run_again(tmp_path: Path):
    def record(epochs: int) -> RunRecord:
        return replace(RESULT, recipe={"epochs": epochs})

    store = Store.create(tmp_path, {"model": "m", "recipe": {"epochs": 3}})
    store.plan(KEYS[:2])
    store.finish({KEYS[0]: record(3)})
    longer = Store.create(tmp_path, {"model": "m", "recipe": {"epochs": 5}})
    assert longer.plan(KEYS) == 1 and longer.pending() == KEYS and longer.options["recipe"] == {"epochs": 5}
    with pytest.raises(StoreError, match="epochs=5, this command has epochs=3"):
        store.finish({KEYS[1]: record(3)})  # by a command that was at work meanwhile
    longer.finish({KEYS[0]: record(5)})
    assert longer.plan(KEYS) == 0 and longer.pending() == KEYS[1:]
    shorter = Store.create(tmp_path, {"model": "m", "recipe": {"epochs": 4}})
    with pytest.raises(StoreError, match="holds runs of 5 epochs; got --epochs 4, expected as many or more"):
        shorter.plan(KEYS)
    with pytest.raises(StoreError, match="epochs=5, this command has epochs=its default"):
        Store.create(tmp_path, {"model": "m"})


def test_more_epochs_train_no_baseline_again_and_fewer_than_a_run_has_are_refused(tmp_path: Path):
    """Also where the number of epochs was each method's default."""
    baseline = replace(KEYS[0], method="tfidf", lr=None)
    store = Store.create(tmp_path, {"recipe": {}})
    store.plan([baseline, KEYS[1]])
    store.finish({baseline: RESULT, KEYS[1]: replace(RESULT, recipe={"epochs": 5})})
    with pytest.raises(StoreError, match="holds runs of 5 epochs; got --epochs 4"):
        Store.create(tmp_path, {"recipe": {"epochs": 4}}).plan([])
    longer = Store.create(tmp_path, {"recipe": {"epochs": 6}})
    assert longer.plan([]) == 1 and longer.pending() == [KEYS[1]]


def test_a_later_plan_stands_behind_an_earlier_one(tmp_path: Path):
    store = Store.create(tmp_path, {})
    for part in (KEYS[:2], KEYS[1:4], KEYS[4:]):
        store.plan(part)
    assert store.pending() == KEYS


def test_runs_of_one_task_have_one_set_of_examples(tmp_path: Path):
    """Whatever else is planned between; where all of them have failed, the examples may change."""
    other = replace(KEYS[0], task="b")
    store = Store.create(tmp_path, {})
    store.plan(KEYS, {"a": "sha256 1"})
    store.finish(dict.fromkeys(KEYS, replace(RESULT, status="failed: why")))
    store.plan(KEYS, {"a": "sha256 2"})
    store.finish({KEYS[0]: RESULT})
    store.plan([other], {"b": "sha256 3"})
    with pytest.raises(StoreError, match="its runs of a were trained on other examples: sha256 2; got sha256 1;"):
        store.plan(KEYS, {"a": "sha256 1"})
    assert store.dataset_identities() == {"a": "sha256 2", "b": "sha256 3"}


def test_runs_of_one_study_have_one_base(tmp_path: Path):
    store = Store.create(tmp_path, {})
    store.plan(KEYS)
    assert store.base_identity() is None
    store.finish({KEYS[0]: replace(RESULT, identity={"base": "a", "tokenizer": "b"})})
    assert store.base_identity() == {"base": "a", "tokenizer": "b"}
    with pytest.raises(StoreError, match="other runs have another base or tokenizer"):
        store.finish({KEYS[1]: replace(RESULT, identity={"base": "x", "tokenizer": "b"})})
