"""Fleets as Ray tasks on any cluster; this process alone writes the store, and workers share no disk."""

import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch

from unipelt.errors import DataError, UserError
from unipelt.study.engine import WAIT, claimed_fleets, dataset_identities, train_fleet
from unipelt.study.plan import StudyConfig
from unipelt.study.store import Store
from unipelt.train.records import FAILED, RunKey, RunRecord
from unipelt.train.setup import DatasetCache

DEATHS = 3  # of a fleet's workers, until it is the fleet that kills them: too large for a machine's memory, most likely
Log = Callable[[str], None]
OBJECTS = 100 * 2**20  # bytes of Ray's shared memory on this machine: results are small


class Cluster:
    """Ray's workers, until the block ends: those of RAY_ADDRESS where that is set, else processes of this machine alone.

    gpus: the share of a GPU that a fleet has; on a cluster without GPUs a fleet has one CPU.
    """

    def __init__(self, device: str = "auto", gpus: float = 1.0):
        if not 0 < gpus <= 1:
            raise UserError(f"--gpus-per-fleet {gpus}: expected a number above 0 and at most 1")
        if device not in ("auto", "cpu", "cuda"):
            raise UserError(f"--device {device}: expected auto, cpu or cuda; Ray gives each fleet its own GPU")
        # before Ray is imported: nothing is told to its makers, and a worker without a GPU warns of nothing
        os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0")
        try:
            import ray.exceptions  # a folder called ray would be a package too
        except ImportError:
            raise UserError("--engine ray needs Ray: pip install 'unipelt[ray]', or --engine local") from None
        self.ray: Any = ray
        self.requested_device, self.gpus = device, gpus

    def __enter__(self) -> "Cluster":
        address = os.environ.get("RAY_ADDRESS", "")
        if address.startswith("ray://"):
            raise UserError(
                f"RAY_ADDRESS={address}: Ray's client gets no results as they come; expected HOST:PORT or auto"
            )
        settings = {} if address else {"include_dashboard": False, "object_store_memory": OBJECTS}
        try:
            host, _, port = address.rpartition(":")
            if host and port.isdecimal():  # Ray itself would ask for minutes
                socket.create_connection((host, int(port)), timeout=10).close()
            self.ray.init(address or "local", log_to_driver=False, logging_level="ERROR", **settings)
        except (OSError, OverflowError, RuntimeError, ValueError) as error:
            option = f"RAY_ADDRESS={address}" if address else "--engine ray"
            raise UserError(f"{option}: no cluster ({error}); see `ray status`, or take --engine local") from None
        gpus = self.ray.cluster_resources().get("GPU", 0) if self.requested_device != "cpu" else 0
        if self.requested_device == "cuda" and not gpus:
            self.ray.shutdown()
            raise UserError("--device cuda: the cluster has no GPU; expected auto or cpu")
        self.device = torch.device("cuda" if gpus else "cpu")
        """what fleets train on"""
        return self

    def __exit__(self, *_: object) -> None:
        self.ray.shutdown()

    def run_study(self, store: Store, study: StudyConfig, *, log: Log = print, on_work: Log | None = None) -> None:
        """Train every fleet of a store that is not done, until none is left; wait for fleets of other processes.

        on_work: called with a line about what is at work, now and then.
        """
        for claimed in claimed_fleets(store, log=log, at_once=True):
            self._train([keys for _, keys in claimed], store, study, log, on_work)

    def _train(
        self, fleets: list[list[RunKey]], store: Store, study: StudyConfig, log: Log, on_work: Log | None
    ) -> None:
        """Train fleets, as many at once as the cluster holds; one whose worker dies is begun again."""
        share = {"num_gpus": self.gpus} if self.device.type == "cuda" else {"num_cpus": 1}
        task = self.ray.remote(num_returns="streaming", max_retries=0, **share)(train)

        def begin(keys: list[RunKey]) -> Any:
            todo = set(store.pending()) & set(keys)
            return task.remote(
                keys, todo, study, self.device.type, store.dataset_identities(), self.gpus, store.base_identity()
            )

        working, deaths = {begin(keys): keys for keys in fleets}, Counter[RunKey]()
        while working:
            if on_work is not None:
                on_work(f"{len(working)} fleets on Ray")
            for result_stream in self.ray.wait([*working], timeout=WAIT)[0]:
                keys = working[result_stream]
                try:
                    store.finish(dict([self.ray.get(next(result_stream))]))
                    continue
                except StopIteration:
                    pass
                except self.ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                except self.ray.exceptions.RayError as error:
                    deaths[keys[0]] += 1
                    if deaths[keys[0]] < DEATHS:
                        log(f"a worker died with {len(keys)} runs of {keys[0].method}; they are begun again")
                        working[begin(keys)] = keys
                    else:
                        why = f"its worker died {DEATHS} times ({type(error).__name__})"
                        record = RunRecord(status=f"{FAILED}{why}; try a smaller --runs-at-once, with another --out")
                        store.finish(dict.fromkeys(set(store.pending()) & set(keys), record))
                del working[result_stream]


def train(
    keys: list[RunKey],
    todo: set[RunKey],
    study: StudyConfig,
    device: str,
    identities: dict[str, str],
    share: float,
    identity: dict[str, str] | None = None,
) -> Iterator[tuple[RunKey, RunRecord]]:
    """Train a fleet in a worker and yield its results. If it is started again it yields the same, because all its runs are trained again.

    identities: of the examples of each task of the study. share: of a GPU that is the fleet's.

    Raises DataError where this machine has other examples, or none: this is not counted as a run's failure.
    """
    for name, identity_here in dataset_identities(keys, study, _cache()).items():
        if (expected := identities.get(name, identity_here)) != identity_here:
            host = socket.gethostname()
            raise DataError(
                f"{host}: its examples of {name} are {identity_here}, and the study's are {expected}; put the same files there"
            )
    for run in train_fleet(keys, todo, study, torch.device(device), _cache(), share=share, identity=identity):
        yield run.key, run.record


@cache
def _cache() -> DatasetCache:
    """A worker's, for all its fleets."""
    return DatasetCache()
