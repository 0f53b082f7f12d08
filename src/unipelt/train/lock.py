"""One training at a time in a folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from unipelt.errors import CheckpointError

try:
    import fcntl
except ImportError:  # Windows: nothing to lock a folder with
    fcntl = None  # type: ignore[assignment]


class Busy(CheckpointError):
    """Another training is at work in a folder."""


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make a folder and keep other trainings out of it until the block ends; if it stays empty, it goes again.

    The lock is the operating system's, on the folder itself: it leaves no file, and ends with its process, however that ends.
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
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
