"""MultiMixtureState methods on one person's own rows: which runs are trained together, and the checkpoint of each method's best."""

import shutil
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from unipelt.errors import CheckpointError
from unipelt.study.plan import Setting
from unipelt.study.store import DONE, Cell, Store
from unipelt.train.records import FULL, Result, write_outcome
from unipelt.train.train_run import keep, outcome_of


def in_rounds(free: Iterable[Cell], mix_methods: bool = False) -> dict[str, list[Cell]]:
    """A fleet for each seed and method, or for each seed; a whole model alone."""
    fleets: dict[str, list[Cell]] = {}
    for cell in free:
        full = cell.method.strip() == FULL
        method = "" if mix_methods and not full else cell.method
        fleets.setdefault(_name(cell.seed, method, cell.lr if full else ""), []).append(cell)
    return fleets


class CheckpointSaver:
    """Keeps, of each method and rate, the checkpoint of the seed with the best validation metric."""

    def __init__(self, store: Store, setting: Setting):
        self.store, self.setting, self.folder = store, setting, store.path.parent / "runs"
        self.best: dict[str, float] = {}

    def __call__(self, model: Any, run: int, cell: Cell, finished: Result) -> None:
        for row in self.store.runs(
            ["method", "lr", "status", "validation"]
        ):  # another process may have ended some meanwhile
            if row["status"] in DONE:
                other = _name(row["method"], row["lr"])
                self.best[other] = max(row["validation"], self.best.get(other, row["validation"]))
        name = _name(cell.method, cell.lr)
        if finished.validation is None or finished.validation < self.best.get(name, finished.validation):
            return
        self.best[name] = finished.validation
        request = self.setting.request(cell)
        outcome = outcome_of(request, finished)
        keep(model, request, outcome, self.folder / name, run)
        write_outcome(self.folder / name, outcome)

    def put(self, method: str, lr: float, place: Path) -> None:
        """Copy the checkpoint of a method and rate to a place of its own, whole; what is there stays until the copy is.

        Raises CheckpointError where it cannot be copied.
        """
        try:
            with TemporaryDirectory(prefix=f".{place.name}.", dir=place.parent) as beside:
                new = shutil.copytree(self.folder / _name(method, lr), Path(beside) / "new")
                if place.exists():
                    place.rename(Path(beside) / "old")
                new.rename(place)
        except OSError as error:
            raise CheckpointError(
                f"{place}: cannot copy the checkpoint ({error.strerror or error}); the same command tries again"
            ) from None


def _name(*parts: Any) -> str:
    return sha256(repr(parts).encode()).hexdigest()[:12]
