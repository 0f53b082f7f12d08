"""Fleets as Ray tasks on any cluster; this process alone writes the store, and workers share no disk."""

import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import cache
from queue import SimpleQueue
from threading import Thread
from time import sleep
from typing import Any

import torch

from unipelt.errors import DataError, UserError
from unipelt.study.engine import WAIT, failed, identities, train_fleet
from unipelt.study.plan import Setting
from unipelt.study.store import Cell, Result, Store
from unipelt.train.lock import Busy, alone_in
from unipelt.train.runner import DatasetCache

DEATHS = 3  # of a fleet's workers, until it is the fleet that kills them: too large for a machine's memory, most likely
OBJECTS = 100 * 2**20  # bytes of Ray's shared memory on this machine: results are small


class Cluster:
    """Ray's workers, until the block ends: those of RAY_ADDRESS where that is set, else processes of this machine alone.

    gpus: the share of a GPU that a fleet has; on a cluster without GPUs a fleet has one CPU.
    """

    def __init__(self, device: str = "auto", gpus: float = 1.0):
        if not 0 < gpus <= 1:
            raise UserError(f"--gpus-per-fleet {gpus}: expected above 0, to 1")
        if device not in ("auto", "cpu", "cuda"):
            raise UserError(f"--device {device}: expected auto, cpu or cuda; Ray gives each fleet its own GPU")
        # before Ray is imported: nothing is told to its makers, and a worker without a GPU warns of nothing
        os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0")
        try:
            import ray.exceptions  # a folder called ray would be a package too
        except ImportError:
            raise UserError("--engine ray needs Ray: pip install 'unipelt[ray]', or --engine here") from None
        self.ray: Any = ray
        self.asked, self.gpus = device, gpus

    def __enter__(self) -> "Cluster":
        address = os.environ.get("RAY_ADDRESS", "")
        if address.startswith("ray://"):
            raise UserError(
                f"RAY_ADDRESS={address}: Ray's client gets no results as they come; expected HOST:PORT or auto"
            )
        own = {} if address else {"include_dashboard": False, "object_store_memory": OBJECTS}
        try:
            host, _, port = address.rpartition(":")
            if host and port.isdecimal():  # Ray itself would ask for minutes
                socket.create_connection((host, int(port)), timeout=10).close()
            self.ray.init(address or "local", log_to_driver=False, logging_level="ERROR", **own)
        except (OSError, OverflowError, RuntimeError, ValueError) as error:
            where = f"RAY_ADDRESS={address}" if address else "--engine ray"
            raise UserError(f"{where}: no cluster ({error}); see `ray status`, or take --engine here") from None
        gpus = self.ray.cluster_resources().get("GPU", 0) if self.asked != "cpu" else 0
        if self.asked == "cuda" and not gpus:
            self.ray.shutdown()
            raise UserError("--device cuda: the cluster has no GPU; expected auto or cpu")
        self.device = torch.device("cuda" if gpus else "cpu")
        """what fleets train on"""
        return self

    def __exit__(self, *_: Any) -> None:
        self.ray.shutdown()

    def run_study(
        self, store: Store, setting: Setting, *, tell: Callable[[str], None] = print, watch: Any = None
    ) -> None:
        """Train every fleet of a store that is not done, until none is left; fleets of other processes are waited for."""
        waited = False
        while pending := set(store.pending()):
            with ExitStack() as claims:
                claimed: list[list[Cell]] = []
                for fleet, cells in store.fleets().items():
                    if not pending.isdisjoint(cells):
                        with suppress(Busy):
                            claims.enter_context(alone_in(store.path.parent / "fleets" / fleet))
                            claimed.append(cells)
                pending = set(store.pending())  # another process may have ended one before it was claimed
                self._train([cells for cells in claimed if not pending.isdisjoint(cells)], store, setting, tell, watch)
            if not claimed:
                if not waited:
                    tell(f"{len(pending)} runs are being trained by another process; waiting for it")
                waited = True
                sleep(WAIT)

    def _train(self, fleets: list[list[Cell]], store: Store, setting: Setting, tell: Any, watch: Any) -> None:
        """Train fleets, all at once as far as the cluster goes; one whose worker dies is begun anew."""
        share = {"num_gpus": self.gpus} if self.device.type == "cuda" else {"num_cpus": 1}
        task = self.ray.remote(num_returns="streaming", max_retries=0, **share)(train)

        def begin(cells: list[Cell]) -> Any:
            todo = set(store.pending()) & set(cells)
            return task.remote(cells, todo, setting, self.device.type, store.rows(), self.gpus)

        working, deaths = {begin(cells): cells for cells in fleets}, Counter[Cell]()
        while working:
            if watch is not None:
                watch.show(f"{len(working)} fleets on Ray")
            for one in self.ray.wait([*working], timeout=WAIT)[0]:
                cells = working[one]
                try:
                    store.finish(self.ray.get(next(one)))
                    continue
                except StopIteration:
                    pass
                except self.ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                except self.ray.exceptions.RayError as error:
                    deaths[cells[0]] += 1
                    if deaths[cells[0]] < DEATHS:
                        tell(f"a worker died with {len(cells)} runs of {cells[0].method}; they are begun anew")
                        working[begin(cells)] = cells
                    else:
                        said = failed(
                            f"its worker died {DEATHS} times ({type(error).__name__}); lower --width, with another --out"
                        )
                        store.finish(dict.fromkeys(set(store.pending()) & set(cells), said))
                del working[one]


def train(
    cells: list[Cell], todo: set[Cell], setting: Setting, device: str, rows: dict[str, str], share: float
) -> Iterator[dict[Cell, Result]]:
    """A fleet in a worker: results as they come. Begun anew it gives the same ones, for all its runs are trained again.

    rows: what the study's are, by task; share: of a GPU that is the fleet's. Raises DataError where this machine has others, or
    none: that is no run's failure.
    """
    arrived: SimpleQueue[dict[Cell, Result] | BaseException | None] = SimpleQueue()
    for name, mine in identities(cells, setting, _corpus()).items():
        if (expected := rows.get(name, mine)) != mine:
            where = socket.gethostname()
            raise DataError(f"{where}: its rows of {name} are {mine}, and the study's {expected}; give it the same")

    def work() -> None:
        try:
            train_fleet(arrived.put, cells, todo, setting, torch.device(device), _corpus(), share=share)
            arrived.put(None)
        except BaseException as error:
            arrived.put(error)

    Thread(target=work, daemon=True).start()
    while (found := arrived.get()) is not None:
        if isinstance(found, BaseException):
            raise found
        yield found


@cache
def _corpus() -> DatasetCache:
    """A worker's, for all its fleets."""
    return DatasetCache()
