"""Several methods on one's own examples: which runs are trained together, and the checkpoint of each method's best seed."""

import shutil
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from unipelt.errors import CheckpointError
from unipelt.study.plan import file_name, fleet_name
from unipelt.study.store import Store
from unipelt.train.records import RunKey, write_record
from unipelt.train.runs import FinishedRun
from unipelt.train.train_run import save_checkpoint


def in_rounds(free: Iterable[RunKey]) -> dict[str, list[RunKey]]:
    """One fleet per seed and method; full fine-tuning alone."""
    fleets: dict[tuple, list[RunKey]] = {}
    for key in free:
        fleets.setdefault((key.seed, key.method, key.lr if key.full else None), []).append(key)
    return {fleet_name(keys): keys for keys in fleets.values()}


class CheckpointSaver:
    """Saves, for each method and rate, the checkpoint of the seed with the best validation metric."""

    def __init__(self, store: Store):
        self.store, self.folder = store, store.path.parent / "runs"

    def __call__(self, run: FinishedRun) -> None:
        key, mine = run.key, run.record.validation
        others = [  # another process may have finished some meanwhile
            row["validation"]
            for row in self.store.runs(["method", "lr", "validation"])
            if (row["method"], row["lr"]) == (key.method, key.lr) and row["validation"] is not None
        ]
        if mine is None or any(mine < other for other in others):
            return
        save_checkpoint(run, self.folder_of(key.method, key.lr))
        write_record(self.folder_of(key.method, key.lr), run.record)

    def folder_of(self, method: str, lr: float | None) -> Path:
        """Where the checkpoint of a method and rate is: `runs/lora-0.003`."""
        name = f"{file_name(method)}-{lr:g}"
        exact = file_name(method) == method and float(f"{lr:g}") == lr
        return self.folder / (name if exact else f"{name}-{sha256(repr((method, lr)).encode()).hexdigest()[:6]}")

    def put(self, method: str, lr: float, place: Path) -> None:
        """Copy the checkpoint of a method and rate to a folder; what is there stays until the copy is complete.

        Raises CheckpointError where it cannot be copied.
        """
        try:
            with TemporaryDirectory(prefix=f".{place.name}.", dir=place.parent) as beside:
                new = shutil.copytree(self.folder_of(method, lr), Path(beside) / "new")
                if place.exists():
                    place.rename(Path(beside) / "old")
                new.rename(place)
        except OSError as error:
            raise CheckpointError(
                f"{place}: cannot copy the checkpoint ({error.strerror or error}); the same command tries again"
            ) from None
