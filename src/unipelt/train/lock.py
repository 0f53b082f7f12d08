"""A lock per folder: one process at a time writes in it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from unipelt.errors import CheckpointError

try:
    import fcntl
except ImportError:  # Windows cannot lock a folder
    fcntl = None  # type: ignore[assignment]


class Busy(CheckpointError):
    """Another process has the lock of a folder."""


@contextmanager
def alone_in(folder: Path, wait: bool = False) -> Iterator[None]:
    """Make a folder and lock it until the block ends; a folder that was made and stays empty is removed again.

    The lock is the operating system's, on the folder itself: it leaves no file, and ends with its process. wait: for
    another process's lock to end.

    Raises Busy where another process has the lock, CheckpointError where the folder cannot be made.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    held = None
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise CheckpointError(f"--out {folder}: is a file; expected a folder") from None
        except OSError as error:
            raise CheckpointError(
                f"--out {folder}: cannot write ({error.strerror}); what was there before is untouched"
            ) from None
        try:
            if fcntl is not None:
                held = os.open(folder, os.O_RDONLY)
                fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise Busy(
                f"--out {folder}: another training is at work in it; wait for its end, or take another folder"
            ) from None
        except OSError:
            pass  # a file system that locks no folders
        yield
    finally:
        if held is not None:
            os.close(held)
        for path in made:
            with suppress(OSError):  # not empty: something was written
                path.rmdir()
