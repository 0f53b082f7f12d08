"""Several methods on one's own examples: which runs are trained together, and the checkpoint of each method's best seed."""

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from unipelt.checkpoint.disk import CARD, folder_lock, remove_unfinished, write_whole
from unipelt.checkpoint.json_types import fits
from unipelt.data import Examples
from unipelt.data.splits import summarise
from unipelt.errors import CheckpointError, DataError
from unipelt.study.engine import dataset_identities
from unipelt.study.plan import StudyConfig, file_name, fleet_name
from unipelt.study.store import COMPARISON, REFERENCE, Store
from unipelt.tasks.metrics import METRICS
from unipelt.train.baselines import offered, usual_baselines
from unipelt.train.records import RunKey, RunRecord
from unipelt.train.run_folder import WEEK, locked_folder, read_record, write_record
from unipelt.train.runs import FinishedRun
from unipelt.train.setup import DatasetCache
from unipelt.train.train_run import save_checkpoint, train_run

SHARES = (4, 2)  # of the training examples of a learning curve: one in so many
MIN_EXAMPLES = 20  # training examples of its runs
FOLDS, FEW = 5, 2_000  # of a cross-validation, and the most examples for which it is the default
MINUTES = "minutes"  # name of the last time budget among the notes of a store
WRITTEN = "copied.json"  # in the folder `runs`: name and hash of each file that was copied elsewhere


def group_by_seed(keys: Iterable[RunKey], folds: int = 0) -> dict[str, list[RunKey]]:
    """One fleet per method and seed, or all folds of one cross-validation; full fine-tuning alone; all seeds of a baseline,
    which read the same texts."""
    fleets: dict[tuple, list[RunKey]] = {}
    for key in keys:
        seed = None if key.baseline else key.seed // max(1, folds)
        fleets.setdefault((seed, key.method, (key.lr, key.seed) if key.full else None), []).append(key)
    return {fleet_name(fleet): fleet for fleet in fleets.values()}


def with_baselines(plan: list[RunKey], study: StudyConfig, cache: DatasetCache) -> tuple[list[RunKey], list[str]]:
    """These runs with the baselines that their task has in front, one per seed; and why it does not have the others, which
    are left out of these runs too."""
    task = cache.task(study.config(plan[0]))
    names, notes = offered(dict.fromkeys([*usual_baselines(task), *(key.method for key in plan if key.baseline)]), task)
    firsts = {(key.task, key.k, key.seed): key for key in plan}
    baselines = [replace(key, method=name, lr=None) for name in names for key in firsts.values()]
    return [*baselines, *(key for key in plan if not key.baseline)], notes


def usual_folds(study: StudyConfig, first: RunKey, cache: DatasetCache) -> tuple[int, str]:
    """Default number of folds: FOLDS for up to FEW examples without a validation or test set, else 0; and why small data has
    none."""
    dataset = cache.dataset(study.config(first))
    if cache.task(study.config(first)).generates_text:  # each fold writes its texts token by token
        return 0, ""
    if first.k != "all" or dataset.test is not None or dataset.validation is not None or len(dataset.train) > FEW:
        return 0, ""
    try:
        cache.splits(replace(study, folds=FOLDS).config(first))
    except DataError as error:
        return 0, f"no cross-validation: {error}"
    return FOLDS, ""


def refit(study: StudyConfig, method: str, lr: float | None, task: str, folder: Path, **how: Any) -> None:
    """Train a method without a test set, on all but its validation examples; a finished run is only read, and one that another
    process trains is waited for."""
    key = RunKey(task=task, k="all", method=method, seed=0, lr=lr)
    train_run(replace(study.config(key), folds=1), folder, wait=True, **how)


def learning_curve_keys(keys: Sequence[RunKey], study: StudyConfig, cache: DatasetCache) -> list[RunKey]:
    """The runs of a learning curve: each of these keys with a quarter and with half of its training examples. Sizes below 20
    examples, or without an example of some class, are left out.

    A run's examples are the first of those that it trains on with all of them, and its test examples are the same.
    """
    smaller_runs = []
    most_examples = min((len(cache.splits(study.config(key)).train) for key in keys), default=0)  # folds differ by one
    sizes = [most_examples // share for share in SHARES if most_examples // share >= MIN_EXAMPLES]
    for fewer in (replace(key, k=size) for key in keys for size in sizes):
        with suppress(DataError):
            cache.splits(study.config(fewer))
            smaller_runs.append(fewer)
    return smaller_runs


def open_store(
    folder: Path, study: StudyConfig, keys: list[RunKey], plan: list[RunKey], cache: DatasetCache, minutes: float = 0.0
) -> tuple[Store, int]:
    """Open the store of a comparison, plan these runs and store its test examples; returns it and the number of finished runs
    that train again."""
    store = Store.create(folder, {COMPARISON: plan[0].task, "k": plan[0].k, **study.options})
    for name, examples in test_sets(study, plan, cache).items():
        names = [examples.name_of(index) for index in range(len(examples))]
        store.note(name, {"inputs": examples.inputs, "names": names})
    store.note("examples", summarise(cache.splits(study.config(plan[0]))))
    again = add_runs(store, study, keys, plan, cache)
    if minutes > 0:
        store.note(MINUTES, minutes)
    return store, again


def add_runs(store: Store, study: StudyConfig, keys: list[RunKey], plan: list[RunKey], cache: DatasetCache) -> int:
    """Plan these runs of a comparison's plan and form their fleets; returns how many finished ones are trained again."""
    again = store.plan(keys, dataset_identities(plan, study, cache))
    store.assign(partial(group_by_seed, folds=study.folds))
    return again


def test_sets(study: StudyConfig, plan: Iterable[RunKey], cache: DatasetCache) -> dict[str, Examples]:
    """The different sets of test examples of these runs, by fingerprint; of generated text with the right answers beside them."""
    sets = {}
    for config in map(study.config, plan):
        examples = cache.splits(config).test
        if examples is not None and examples.fingerprint not in sets:
            references = {REFERENCE: list(examples.targets or ())} if cache.task(config).generates_text else {}
            sets[examples.fingerprint] = replace(examples, inputs=examples.inputs | references)
    return sets


class CheckpointSaver:
    """Saves, for each method and rate, the checkpoint of the seed with the best validation metric.

    study: the study's folder. Several processes may save at once.
    """

    def __init__(self, study: Path):
        self.folder = study / "runs"

    def __call__(self, run: FinishedRun) -> None:
        folder, record = self.folder_of(run.key.method, run.key.lr), run.record
        with locked_folder(folder, wait=True):
            saved = None
            with suppress(CheckpointError):  # a kill may have left files without a record
                saved = read_record(folder)
            if saved is not None and saved.done and saved.recipe == record.recipe and _better(saved, record):
                return
            save_checkpoint(run, folder)
            write_record(folder, record)

    def folder_of(self, method: str, lr: float | None) -> Path:
        """Where the checkpoint of a method and rate is: `runs/lora-0.003`; of a baseline, `runs/probe`."""
        if lr is None:
            return self.folder / file_name(method)
        name = f"{file_name(method)}-{lr:g}"
        exact = file_name(method) == method and float(f"{lr:g}") == lr
        return self.folder / (name if exact else f"{name}-{sha256(repr((method, lr)).encode()).hexdigest()[:6]}")

    def copy(self, method: str, lr: float | None, target: Path) -> list[str]:
        """Copy the checkpoint of a method and rate to a folder. Only files that an earlier copy wrote are replaced or
        removed; a file that already is the one to copy is not written again.

        Returns notes about files of others that stay.

        Raises CheckpointError where a file cannot be copied, or where one that must be replaced was changed meanwhile.
        """
        source, notes = self.folder_of(method, lr), []
        with folder_lock(source, WEEK), locked_folder(target, wait=True):  # a better seed may be saved meanwhile
            source_hashes = {name: digest for name, digest in _hashes(source).items() if digest}
            remove_unfinished(target, source_hashes)  # of a copy that was killed
            written, present = self._written(), _hashes(target)
            new = {name for name, digest in source_hashes.items() if present.get(name) != digest}
            # files of others, or changed since
            foreign = {name for name, digest in present.items() if [name, digest] not in written}
            for name in sorted(new & foreign):
                if name != CARD:
                    raise CheckpointError(
                        f"{target / name}: has changed since this command wrote it, so it is not replaced; move it elsewhere"
                    )
                new.discard(name)
                notes.append(f"{target / name}: was changed by hand and stays so")
            stale = present.keys() - source_hashes.keys() - foreign
            if others := sorted(foreign - source_hashes.keys()):
                notes.append(f"{target} also holds {', '.join(others[:5])}{' …' * (len(others) > 5)}, which stays")
            if new or stale:  # until all files are in place, what was written before counts as this command's too
                in_place = [[name, source_hashes[name]] for name in sorted(source_hashes.keys() - foreign)]
                write_whole(self.folder, {WRITTEN: json.dumps(written + in_place).encode()})
                write_whole(target, {name: (source / name).read_bytes() for name in sorted(new)})
                for name in stale:
                    (target / name).unlink()
                write_whole(self.folder, {WRITTEN: json.dumps(in_place).encode()})
        return notes

    def _written(self) -> list[list[str]]:
        """[name, hash] of each file that copies wrote."""
        try:
            pairs = json.loads((self.folder / WRITTEN).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return []
        return pairs if fits(pairs, list[list[str]]) else []


def _better(first: RunRecord, second: RunRecord) -> bool:
    """Whether the first record has the better validation metric."""
    if first.validation is None or second.validation is None:
        return second.validation is None
    return METRICS[second.metric].better(first.validation, second.validation)


def _hashes(folder: Path) -> dict[str, str]:
    """sha256 of the content of each visible file; empty for what is not a regular file."""
    hashes = {}
    for path in folder.iterdir():
        if path.is_symlink() or not path.is_file():
            hashes[path.name] = ""
        elif path.name[0] != ".":
            with open(path, "rb") as file:
                hashes[path.name] = file_digest(file, "sha256").hexdigest()
    return hashes
