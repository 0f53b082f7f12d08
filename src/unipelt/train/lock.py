"""A lock per folder: one process at a time writes in it."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import get_ident

from unipelt.checkpoint.disk import folder_lock
from unipelt.errors import CheckpointError

WEEK = 7 * 24 * 3600.0  # seconds
HELD: set[tuple[str, int]] = set()  # real paths of folders and the threads of this process that have them locked


class Busy(CheckpointError):
    """Another process has the lock of a folder."""


@contextmanager
def alone_in(folder: Path, wait: bool = False) -> Iterator[None]:
    """Make a folder and lock it until the block ends; a folder that was made and stays empty is removed again.

    What the block itself writes there is not kept out. The lock ends with its process. wait: for another process's lock
    to end.

    Raises Busy where another process has the lock, CheckpointError where the folder cannot be made.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    mine = os.path.realpath(folder), get_ident()
    busy = f"--out {folder}: another training is at work in it; wait for its end, or take another folder"
    if mine in HELD:
        raise Busy(busy)
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise CheckpointError(f"--out {folder}: is a file; expected a folder") from None
        except OSError as error:
            raise CheckpointError(
                f"--out {folder}: cannot write ({error.strerror}); what was there before is untouched"
            ) from None
        with ExitStack() as stack:
            try:
                stack.enter_context(folder_lock(folder, WEEK if wait else 0.0))
            except BlockingIOError:
                raise Busy(busy) from None
            HELD.add(mine)
            yield
    finally:
        HELD.discard(mine)
        for path in made:
            with suppress(OSError):  # not empty: something was written
                path.rmdir()
