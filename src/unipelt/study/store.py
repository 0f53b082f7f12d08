"""The store of a study: one SQLite file, one row per run. A kill at any moment loses no finished run. Imports no torch."""

import json
import os
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_type_hints

from unipelt.errors import StoreError
from unipelt.train.json_types import check_fields
from unipelt.train.records import BASELINES, RunKey, RunRecord, other_option
from unipelt.train.records import DONE as DONE

FILE, FORMAT = "study.sqlite", 3
EFFICIENCY = "efficiency.json"  # what methods cost, beside the store
COMPARISON = "data"  # the fact that a comparison on one file has and no other study: that file
PLANNED = "planned"
ANSWER = "answer"  # among the inputs of kept examples: the right answer, of generated text
NOTE = "note "  # before the name of what a report needs besides, in the table `study`
ROWS = "rows of "  # before a task's name, in the table `study`: the identity of its examples
FLEET = re.compile(r"[\w=+][\w.=+-]*")  # a fleet's name, which is a folder's


KEYS = tuple(f.name for f in fields(RunKey))
NOT_STORED = ("config", "description", "format")  # of a record: a study's facts and keys say it
VALUES = tuple(f.name for f in fields(RunRecord) if f.name not in NOT_STORED)
COLUMNS = (*KEYS, *VALUES, "fleet")
TYPES = {"seed": "INTEGER", "lr": "REAL", "validation": "REAL", "test": "REAL", "majority": "REAL", "complete": "INTEGER",
          "steps": "INTEGER", "seconds": "REAL", "predicting": "REAL", "temperature": "REAL", "width": "INTEGER"}  # fmt: skip
_TEXT = {"status", "metric", "device", "fleet"}
_KINDS = get_type_hints(RunRecord) | get_type_hints(RunKey) | {"lr": float}
_JSON = {name for name in VALUES if name not in TYPES and name not in _TEXT}
_TABLES = f"""
CREATE TABLE study (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE examples (fingerprint TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE runs (id TEXT PRIMARY KEY, place INTEGER NOT NULL,
 {", ".join(f"{name} {TYPES.get(name, 'TEXT')}" for name in COLUMNS)}) STRICT;
"""


class Store:
    """The runs of one study. Several processes may read and write it at once."""

    def __init__(self, path: Path, connection: sqlite3.Connection, asked: dict[str, Any] | None = None):
        self.path, self._connection, self._asked = path, connection, asked

    @classmethod
    def create(cls, folder: str | os.PathLike, facts: dict[str, Any]) -> "Store":
        """Open a folder's store for writing, made where there is none; facts: what all its runs share, and so those of the
        first command that plans any.

        Raises StoreError where the folder holds something else, or a store whose runs have other facts.
        """
        path = Path(folder) / FILE
        there = [p.name.removeprefix(".") for p in path.parent.iterdir()] if path.parent.is_dir() else []
        if not path.exists() and any(not name.startswith((FILE, EFFICIENCY)) for name in there):
            raise StoreError(f"--out {folder}: not empty, and holds no study; expected a new folder, or one of a study")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"--out {folder}: cannot be made ({error.strerror}); take another folder") from None
        if path.exists():
            _check(path, begun=True)
        with _said(path):
            connection = sqlite3.connect(path, timeout=60.0, isolation_level=None)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("BEGIN IMMEDIATE")
            if not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
                for statement in _TABLES.strip().split(";\n"):
                    connection.execute(statement)
                connection.execute("INSERT INTO study VALUES ('format', ?)", (str(FORMAT),))
                connection.execute("INSERT INTO study VALUES ('facts', ?)", (json.dumps(facts, sort_keys=True),))
            connection.execute("COMMIT")
        store = cls(path, connection, facts)
        try:
            with _said(path):
                store._agree(more_epochs=True)
        except StoreError:
            store.close()
            raise
        return store

    @classmethod
    def read(cls, place: str | os.PathLike) -> "Store":
        """Open a store, or the store of a folder, for reading. Raises StoreError where there is none."""
        path = Path(place)
        path = path / FILE if path.is_dir() else path
        _check(path)
        with _said(path):
            return cls(path, sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=60.0))

    @property
    def facts(self) -> dict[str, Any]:
        """What all runs share: model, epochs, and so on."""
        with _said(self.path):
            found = self._connection.execute("SELECT value FROM study WHERE name = 'facts'").fetchone()
            facts = json.loads(found[0]) if found else None
            if not isinstance(facts, dict) or not all(
                isinstance(facts.get(n, {}), dict) for n in ("recipe", "columns")
            ):
                raise ValueError("what its runs share is not there")
            return facts

    def identity(self) -> dict[str, str] | None:
        """Fingerprints of the base and the tokenizer of its finished runs; None before the first."""
        with _said(self.path):
            return self._identity()

    def _identity(self) -> dict[str, str] | None:
        found = self._connection.execute("SELECT identity FROM runs WHERE identity NOT NULL LIMIT 1").fetchone()
        return _value("identity", found[0]) if found else None

    @property
    def minutes(self) -> float:
        """The largest time budget that was given so far; 0: none."""
        with _said(self.path):
            found = self._connection.execute("SELECT value FROM study WHERE name = 'minutes'").fetchone()
            return float(found[0]) if found else 0.0

    def plan(self, keys: Iterable[RunKey], rows: dict[str, str] | None = None, minutes: float = 0.0) -> int:
        """Add the runs that are not there yet, in order, and plan failed ones again; but not while their fleet has runs to
        do, for it is trained as it was planned. Where more epochs are asked for, plan every run again.

        rows: identity of each task's examples (`Dataset.identity`). minutes: the time budget, kept for later commands.

        Returns how many finished runs are planned again. Raises StoreError, and adds none, where a task has runs on other
        examples (one of which every run has failed may change), or a run has more epochs.
        """
        nothing = ", ".join(f"{name} = NULL" for name in (*VALUES, "fleet") if name != "status")
        with _said(self.path), self._writing() as connection:
            begun = self._agree(more_epochs=True)
            found = connection.execute("SELECT task FROM runs GROUP BY task HAVING max(status NOT LIKE 'failed%')")
            started = {task for (task,) in found}
            self.check({task: said for task, said in (rows or {}).items() if task in started})
            again = self._shorter() if begun else []
            if again or not begun or (self._asked or {}).get("recipe", {}).get("epochs") is not None:
                facts = json.dumps(self._asked, sort_keys=True)
                connection.execute("UPDATE study SET value = ? WHERE name = 'facts'", (facts,))
            done = sum(status in DONE for _, status in again)
            for one, _ in again:
                connection.execute(f"UPDATE runs SET status = ?, {nothing} WHERE id = ?", (PLANNED, one))
            said = [(ROWS + task, text) for task, text in (rows or {}).items()]
            if minutes > 0:
                said.append(("minutes", str(minutes)))
            connection.executemany("INSERT OR REPLACE INTO study VALUES (?, ?)", said)
            first = connection.execute("SELECT coalesce(max(place), -1) + 1 FROM runs").fetchone()[0]
            for place, key in enumerate(keys, start=first):
                connection.execute(
                    f"UPDATE runs SET status = ?, {nothing} WHERE id = ? AND status LIKE 'failed%'"
                    " AND fleet NOT IN (SELECT fleet FROM runs WHERE status = ? AND fleet NOT NULL)",
                    (PLANNED, key.id, PLANNED),
                )
                values = [str(key.k) if name == "k" else getattr(key, name) for name in KEYS]
                connection.execute(
                    f"INSERT OR IGNORE INTO runs (id, place, status, {', '.join(KEYS)}) VALUES (?, ?, ?, {', '.join('?' * len(KEYS))})",
                    (key.id, place, PLANNED, *values),
                )
        return done

    def _shorter(self) -> list[tuple[str, str]]:
        """(id, status) of every run where more epochs are asked for than the study has; else none."""
        asked, held = (given.get("recipe", {}).get("epochs") for given in (self._asked or {}, self.facts))
        if asked is None or asked == held:
            return []
        kept = ", ".join("?" * len(BASELINES))  # which have no epochs
        found = self._connection.execute(
            f"SELECT id, status, recipe FROM runs WHERE method NOT IN ({kept})", BASELINES
        ).fetchall()
        longest = max((_value("recipe", recipe).get("epochs", 0) for *_, recipe in found if recipe), default=0)
        if max(longest, held or 0) > asked:
            raise StoreError(
                f"--out {self.path.parent}: holds runs of {max(longest, held or 0)} epochs; got --epochs {asked}, expected"
                " as many or more"
            )
        return [(one, status) for one, status, _ in found]

    def _agree(self, more_epochs: bool = False) -> bool:
        """Whether there are runs. more_epochs: their number of epochs may be another where one is asked for.

        Raises StoreError where they have other facts than were asked for.
        """
        begun = self._connection.execute("SELECT 1 FROM runs").fetchone() is not None
        asked = json.loads(json.dumps(self._asked or {}))
        but = "epochs" if more_epochs and asked.get("recipe", {}).get("epochs") is not None else ""
        if begun and (other := other_option(self.facts, asked, but=but)):
            folder = self.path.parent
            raise StoreError(f"--out {folder}: holds a study with {other}; take another folder, or the same options")
        return begun

    def rows(self) -> dict[str, str]:
        """By task, what the rows of its runs are."""
        with _said(self.path):
            found = self._connection.execute("SELECT name, value FROM study").fetchall()
        return {name.removeprefix(ROWS): value for name, value in found if name.startswith(ROWS)}

    def check(self, rows: dict[str, str]) -> None:
        """Raises StoreError where the store has runs of one of these tasks on other rows."""
        held = self.rows()
        for task, said in rows.items():
            if (expected := held.get(task, said)) != said:
                raise StoreError(
                    f"--out {self.path.parent}: its runs of {task} were trained on other examples: {expected}, and not {said}; "
                    "restore those examples, or use another folder"
                )

    def assign(self, group: Callable[[list[RunKey]], dict[str, list[RunKey]]]) -> None:
        """Give each run that has no fleet yet one: what `group` makes of them, by the fleet's name. Others keep theirs."""
        with _said(self.path), self._writing() as connection:
            free = self._keys("WHERE fleet IS NULL")
            for fleet, keys in group([key for key, _ in free]).items():
                connection.executemany("UPDATE runs SET fleet = ? WHERE id = ?", [(fleet, key.id) for key in keys])

    def fleets(self) -> dict[str, list[RunKey]]:
        """Every fleet with all its runs, in the order of the plan; without runs that a process has just planned."""
        with _said(self.path):
            fleets: dict[str, list[RunKey]] = {}
            found = self._connection.execute(
                f"SELECT fleet, {', '.join(KEYS)} FROM runs WHERE fleet NOT NULL ORDER BY place"
            )
            for name, *values in found.fetchall():
                if not FLEET.fullmatch(name):  # it names a folder, which must not be outside the study's own
                    raise ValueError(f"{name[:80]!r} is not the name of a fleet")
                fleets.setdefault(name, []).append(_key(dict(zip(KEYS, values))))
            return fleets

    def finish(self, records: dict[RunKey, RunRecord]) -> None:
        """Write the results of some runs, all or none. A run that is done already stays unchanged.

        Raises StoreError where another command has meanwhile changed the study's options, or other runs had another base.
        """
        names = ", ".join(f"{name} = ?" for name in VALUES)
        with _said(self.path), self._writing() as connection:
            self._agree()
            identity = self._identity()
            for key, record in records.items():
                values = asdict(record)
                if identity is not None and record.identity not in (None, identity):
                    raise StoreError(
                        f"--out {self.path.parent}: other runs have another base or tokenizer than {key.method}; put back"
                        " what was there, or take another folder"
                    )
                row = [
                    None if values[n] is None else json.dumps(values[n]) if n in _JSON else int(values[n]) if n == "complete" else values[n]
                    for n in VALUES
                ]  # fmt: skip
                connection.execute(f"UPDATE runs SET {names} WHERE id = ? AND status = ?", (*row, key.id, PLANNED))

    def keep_examples(self, fingerprint: str, inputs: dict[str, list[Any]], names: list[str]) -> None:
        """Keep the texts of a set of examples, and where each stands, by the set's fingerprint, as `rows` of a record has it."""
        text = json.dumps({"inputs": inputs, "names": names})
        with _said(self.path), self._writing() as connection:
            connection.execute("INSERT OR IGNORE INTO examples VALUES (?, ?)", (fingerprint, text))

    def examples(self, fingerprint: str) -> tuple[dict[str, list[Any]], list[str]] | None:
        """The inputs by name, and where each example stands; None where the texts of this set were not kept."""
        with _said(self.path):
            found = self._connection.execute(
                "SELECT value FROM examples WHERE fingerprint = ?", (fingerprint,)
            ).fetchone()
            if found is None:
                return None
            held = json.loads(found[0])
            return held["inputs"], held["names"]

    def note(self, name: str, value: Any) -> None:
        """Keep something else that a report needs, as JSON, in place of an earlier value."""
        with _said(self.path), self._writing() as connection:
            connection.execute("INSERT OR REPLACE INTO study VALUES (?, ?)", (NOTE + name, json.dumps(value)))

    def noted(self, name: str) -> Any:
        """What was kept under this name; None where nothing was."""
        with _said(self.path):
            found = self._connection.execute("SELECT value FROM study WHERE name = ?", (NOTE + name,)).fetchone()
            return json.loads(found[0]) if found else None

    def pending(self) -> list[RunKey]:
        """The runs that are planned and not done."""
        return [key for key, status in self.statuses() if status == PLANNED]

    def statuses(self) -> list[tuple[RunKey, str]]:
        """Every run with its status, in the order of the plan."""
        with _said(self.path):
            return self._keys()

    def runs(self, columns: Iterable[str] = COLUMNS, ids: Iterable[str] | None = None) -> list[dict[str, Any]]:
        """Every run as a dictionary, in the order of the plan; JSON fields are read, what is not there yet is None.

        ids: these runs alone, in this order; `id` is a column too.
        """
        columns = list(columns)
        select = f"SELECT {', '.join(columns)} FROM runs"
        with _said(self.path):
            if ids is None:
                found = self._connection.execute(f"{select} ORDER BY place").fetchall()
            else:
                each = (self._connection.execute(f"{select} WHERE id = ?", (one,)).fetchone() for one in ids)
                found = [row for row in each if row]
            return [{name: _value(name, value) for name, value in zip(columns, row)} for row in found]

    def close(self) -> None:
        self._connection.close()

    def _keys(self, which: str = "") -> list[tuple[RunKey, str]]:
        found = self._connection.execute(f"SELECT id, status, {', '.join(KEYS)} FROM runs {which} ORDER BY place")
        keys = []
        for one, status, *values in found.fetchall():
            keys.append((_key(dict(zip(KEYS, values))), status))
            if keys[-1][0].id != one:  # what is written for it would reach no row, and it would be trained for ever
                raise ValueError(f"run {one!r} is not the one that its columns name")
        return keys

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
        except BaseException:
            if self._connection.in_transaction:  # a full disk has ended it
                self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")


def _key(values: dict[str, Any]) -> RunKey:
    return RunKey(**{**values, "k": _value("k", values["k"])})


def _value(name: str, value: Any) -> Any:
    """A column's value as Python has it. Raises ValueError for one of another type."""
    if name == "k":
        value = int(value) if value.isdecimal() else value
    elif name == "complete" and value is not None:
        value = bool(value)
    elif name in _JSON and value is not None:
        value = json.loads(value)
    if value is not None and name in _KINDS:
        check_fields({name: value}, _KINDS)
    return value


def _check(path: Path, begun: bool = False) -> None:
    """Raises StoreError where the file is not a store of this version; it is only read. begun: one without tables is lawful,
    for another process may be making it."""
    if not path.is_file():
        raise StoreError(f"{path}: no such study; expected the folder that `unipelt study … --out` wrote")
    with _said(path):
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=60.0)
        try:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if begun and not tables:
                return
            if not {"study", "runs"} <= tables:
                raise StoreError(f"{path}: a database, but not of a study; it is left untouched")
            found = connection.execute("SELECT value FROM study WHERE name = 'format'").fetchone()
        finally:
            connection.close()
    if found is None or found[0] != str(FORMAT):
        raise StoreError(
            f"{path}: of format {found[0] if found else 'unknown'}, this version reads format {FORMAT}; it is left untouched"
        )


@contextmanager
def _said(path: Path) -> Iterator[None]:
    """What SQLite finds wrong, as one line."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise StoreError(f"{path}: {error}; stored runs are kept; run the same command again to continue") from None
    except (sqlite3.DatabaseError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise StoreError(f"{path}: not a study, or a damaged one ({error}); it is left untouched") from None
