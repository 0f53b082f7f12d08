"""The store of a study: one SQLite file, one record per run. A kill at any moment loses no finished run. Imports no torch."""

import json
import os
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unipelt.errors import StoreError
from unipelt.study.schema import (
    COLUMNS,
    FORMAT,
    KEYS,
    TABLES,
    VALUES,
    check_file,
    sqlite_errors,
    to_key,
    to_python,
    to_values,
)
from unipelt.train.records import BASELINES, DONE, PLANNED, RunKey, RunRecord
from unipelt.train.run_folder import first_difference

FILE = "study.sqlite"
EFFICIENCY = "efficiency.json"  # what methods cost, beside the store
COMPARISON = "data"  # name of the option that stores the file of a comparison; no other study has it
REFERENCE = "answer"  # name, among the inputs of stored examples, of the reference text
OPTIONS, IDENTITIES = "options", "identities"
"""names in the table `study`: the options of the study, and by task the identity of its examples"""
FLEET = re.compile(r"[\w=+][\w.=+-]*")  # name of a fleet, which is also a folder name


class Store:
    """The runs of one study. Several processes may read and write it at once."""

    def __init__(self, path: Path, connection: sqlite3.Connection, requested: dict[str, Any] | None = None):
        self.path, self._connection, self._requested = path, connection, requested

    @classmethod
    def create(cls, folder: str | os.PathLike, options: dict[str, Any]) -> "Store":
        """Open the store of a folder for writing, or create it. options: those that all its runs share.

        Raises StoreError if the folder holds something else, or a store whose runs have other options.
        """
        path = Path(folder) / FILE
        existing_names = [p.name.removeprefix(".") for p in path.parent.iterdir()] if path.parent.is_dir() else []
        if not path.exists() and any(not name.startswith((FILE, EFFICIENCY)) for name in existing_names):
            raise StoreError(f"--out {folder}: not empty, and holds no study; expected a new folder, or one of a study")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"--out {folder}: cannot be created ({error.strerror}); use another folder") from None
        if path.exists():
            check_file(path, begun=True)
        with sqlite_errors(path):
            connection = sqlite3.connect(path, timeout=60.0, isolation_level=None)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("BEGIN IMMEDIATE")
            if not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
                for statement in TABLES.strip().split(";\n"):
                    connection.execute(statement)
                for name, value in (("format", FORMAT), (OPTIONS, options)):
                    connection.execute("INSERT INTO study VALUES (?, ?)", (name, json.dumps(value)))
            connection.execute("COMMIT")
        store = cls(path, connection, options)
        try:
            with sqlite_errors(path):
                store._check_options(more_epochs=True)
        except StoreError:
            store.close()
            raise
        return store

    @classmethod
    def read(cls, folder: str | os.PathLike) -> "Store":
        """Open the store of a folder, or a store file, for reading. Raises StoreError if there is none."""
        path = Path(folder)
        path = path / FILE if path.is_dir() else path
        check_file(path)
        with sqlite_errors(path):
            return cls(path, sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=60.0))

    @property
    def options(self) -> dict[str, Any]:
        """The options that all runs share: model, epochs, and so on."""
        with sqlite_errors(self.path):
            options = self._stored(OPTIONS)
            if not isinstance(options, dict) or not all(
                isinstance(options.get(n, {}), dict) for n in ("recipe", "columns")
            ):
                raise ValueError("the table study holds no options")
            return options

    def base_identity(self) -> dict[str, str] | None:
        """Fingerprints of base and tokenizer of the finished runs; None before the first."""
        with sqlite_errors(self.path):
            row = self._connection.execute("SELECT identity FROM runs WHERE identity NOT NULL LIMIT 1").fetchone()
            return to_python("identity", row[0]) if row else None

    def plan(self, keys: Iterable[RunKey], identities: dict[str, str] | None = None) -> int:
        """Add new runs, in order. Plan failed runs again, except while their fleet is unfinished. If more epochs are asked for,
        plan all runs but baselines again.

        identities: of each task's examples (`Dataset.identity`).

        Returns the number of finished runs that are planned again. Raises StoreError, and adds nothing, if the stored runs of a
        task used other examples (unless all of them failed), or if a run has more epochs.
        """
        clear_results = ", ".join(f"{name} = NULL" for name in (*VALUES, "fleet") if name != "status")
        with sqlite_errors(self.path), self._writing() as connection:
            begun = self._check_options(more_epochs=True)
            rows = connection.execute("SELECT task FROM runs GROUP BY task HAVING max(status NOT LIKE 'failed%')")
            started = {task for (task,) in rows}
            self.check_datasets({task: identity for task, identity in (identities or {}).items() if task in started})
            repeated = self._runs_with_fewer_epochs() if begun else []
            if repeated or not begun or (self._requested or {}).get("recipe", {}).get("epochs") is not None:
                self._store(OPTIONS, self._requested)
            repeated_finished = sum(status in DONE for _, status in repeated)
            for run_id, _ in repeated:
                connection.execute(f"UPDATE runs SET status = ?, {clear_results} WHERE id = ?", (PLANNED, run_id))
            self._store(IDENTITIES, (self._stored(IDENTITIES) or {}) | (identities or {}))
            next_position = connection.execute("SELECT coalesce(max(position), -1) + 1 FROM runs").fetchone()[0]
            for position, key in enumerate(keys, start=next_position):
                connection.execute(
                    f"UPDATE runs SET status = ?, {clear_results} WHERE id = ? AND status LIKE 'failed%'"
                    " AND fleet NOT IN (SELECT fleet FROM runs WHERE status = ? AND fleet NOT NULL)",
                    (PLANNED, key.id, PLANNED),
                )
                values = [str(key.k) if name == "k" else getattr(key, name) for name in KEYS]
                connection.execute(
                    f"INSERT OR IGNORE INTO runs (id, position, status, {', '.join(KEYS)}) VALUES (?, ?, ?, {', '.join('?' * len(KEYS))})",
                    (key.id, position, PLANNED, *values),
                )
        return repeated_finished

    def _runs_with_fewer_epochs(self) -> list[tuple[str, str]]:
        """(id, status) of every run but baselines if more epochs are asked for than the study has; else an empty list."""
        epochs, current = (options.get("recipe", {}).get("epochs") for options in (self._requested or {}, self.options))
        if epochs is None or epochs == current:
            return []
        placeholders = ", ".join("?" * len(BASELINES))  # which have no epochs
        rows = self._connection.execute(
            f"SELECT id, status, recipe FROM runs WHERE method NOT IN ({placeholders})", BASELINES
        ).fetchall()
        longest = max((to_python("recipe", recipe).get("epochs", 0) for *_, recipe in rows if recipe), default=0)
        if max(longest, current or 0) > epochs:
            raise StoreError(
                f"--out {self.path.parent}: holds runs of {max(longest, current or 0)} epochs; got --epochs {epochs}, expected"
                " as many or more"
            )
        return [(run_id, status) for run_id, status, _ in rows]

    def _check_options(self, more_epochs: bool = False) -> bool:
        """Return whether there are runs. more_epochs: ignore their number of epochs if one is asked for.

        Raises StoreError if the runs have other options than those asked for.
        """
        begun = self._connection.execute("SELECT 1 FROM runs").fetchone() is not None
        requested = json.loads(json.dumps(self._requested or {}))
        but = "epochs" if more_epochs and requested.get("recipe", {}).get("epochs") is not None else ""
        if begun and (difference := first_difference(self.options, requested, but=but)):
            folder = self.path.parent
            raise StoreError(
                f"--out {folder}: holds a study with {difference}; use another folder, or the same options"
            )
        return begun

    def dataset_identities(self) -> dict[str, str]:
        """By task: the identity of its examples."""
        return self.noted(IDENTITIES) or {}

    def check_datasets(self, identities: dict[str, str]) -> None:
        """Raise StoreError if stored runs of one of these tasks used other examples."""
        stored = self.dataset_identities()
        for task, identity in identities.items():
            if (expected := stored.get(task, identity)) != identity:
                raise StoreError(
                    f"--out {self.path.parent}: its runs of {task} were trained on other examples: {expected}; got {identity}; "
                    "restore those examples, or use another folder"
                )

    def assign(self, group: Callable[[list[RunKey]], dict[str, list[RunKey]]]) -> None:
        """Assign a fleet to each run without one. group: returns the runs of each fleet by its name."""
        with sqlite_errors(self.path), self._writing() as connection:
            free = self._keys("fleet", "WHERE fleet IS NULL")
            for fleet, keys in group([key for key, _ in free]).items():
                connection.executemany("UPDATE runs SET fleet = ? WHERE id = ?", [(fleet, key.id) for key in keys])

    def fleets(self) -> dict[str, list[RunKey]]:
        """Every fleet with its runs, in the order of the plan; runs without a fleet are left out."""
        with sqlite_errors(self.path):
            fleets: dict[str, list[RunKey]] = {}
            for key, name in self._keys("fleet", "WHERE fleet NOT NULL"):
                if not FLEET.fullmatch(name):  # it is a folder name, which must not point outside the study's folder
                    raise ValueError(f"{name[:80]!r} is not the name of a fleet")
                fleets.setdefault(name, []).append(key)
            return fleets

    def finish(self, records: dict[RunKey, RunRecord]) -> None:
        """Write the results of some runs, all or none. Finished runs stay unchanged.

        Raises StoreError if another command has changed the study's options, or if other runs had another base.
        """
        names = ", ".join(f"{name} = ?" for name in VALUES)
        with sqlite_errors(self.path), self._writing() as connection:
            self._check_options()
            identity = self.base_identity()
            for key, record in records.items():
                if identity is not None and record.identity not in (None, identity):
                    raise StoreError(
                        f"--out {self.path.parent}: other runs have another base or tokenizer than {key.method}; restore"
                        " the base, or use another folder"
                    )
                connection.execute(
                    f"UPDATE runs SET {names} WHERE id = ? AND status = ?", (*to_values(record), key.id, PLANNED)
                )

    def note(self, name: str, value: Any) -> None:
        """Store a further value as JSON, such as a set of examples by its fingerprint; it replaces an earlier one."""
        with sqlite_errors(self.path), self._writing():
            self._store(name, value)

    def noted(self, name: str) -> Any:
        """The value stored by `note` under this name, or None."""
        with sqlite_errors(self.path):
            return self._stored(name)

    def pending(self) -> list[RunKey]:
        """The runs that are planned and not finished."""
        return [key for key, status in self.statuses() if status == PLANNED]

    def statuses(self) -> list[tuple[RunKey, str]]:
        """Every run with its status, in the order of the plan."""
        with sqlite_errors(self.path):
            return self._keys("status")

    def runs(self, columns: Iterable[str] = COLUMNS, ids: Iterable[str] | None = None) -> list[dict[str, Any]]:
        """Every run as a dictionary, in the order of the plan; JSON fields are parsed, missing values are None.

        ids: only these runs, in this order. columns: may contain `id`.
        """
        columns = list(columns)
        select = f"SELECT {', '.join(columns)} FROM runs"
        with sqlite_errors(self.path):
            if ids is None:
                rows = self._connection.execute(f"{select} ORDER BY position").fetchall()
            else:
                fetched_rows = (
                    self._connection.execute(f"{select} WHERE id = ?", (run_id,)).fetchone() for run_id in ids
                )
                rows = [row for row in fetched_rows if row]
            return [{name: to_python(name, value) for name, value in zip(columns, row)} for row in rows]

    def close(self) -> None:
        self._connection.close()

    def _store(self, name: str, value: Any) -> None:
        """Put a value into the table `study`, inside a transaction."""
        self._connection.execute("INSERT OR REPLACE INTO study VALUES (?, ?)", (name, json.dumps(value)))

    def _stored(self, name: str) -> Any:
        """A value of the table `study`; None where it has none."""
        row = self._connection.execute("SELECT value FROM study WHERE name = ?", (name,)).fetchone()
        return json.loads(row[0]) if row else None

    def _keys(self, column: str, which: str = "") -> list[tuple[RunKey, str]]:
        """Runs with the value of a column, in the order of the plan."""
        rows = self._connection.execute(f"SELECT id, {column}, {', '.join(KEYS)} FROM runs {which} ORDER BY position")
        keys = []
        for run_id, value, *values in rows.fetchall():
            key = to_key(dict(zip(KEYS, values)))
            if key.id != run_id:  # else its results would never be stored, and it would be trained again and again
                raise ValueError(f"run {run_id!r} is not the one that its columns name")
            keys.append((key, value))
        return keys

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
        except BaseException:
            if self._connection.in_transaction:  # SQLite has already rolled back, as after a full disk
                self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")
