"""How the files of a folder are found, read and written: whole, or not at all. Knows no torch."""

import json
import os
import re
import secrets
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from threading import get_ident
from typing import Any

from unipelt.errors import CheckpointError, UserError

try:
    import fcntl
except ImportError:  # Windows: nothing to lock a folder with
    fcntl = None  # type: ignore[assignment]

WAIT = 60.0
"""seconds to wait for another writer of the same folder"""
LARGEST_JSON = 2**26
"""bytes of the longest JSON that is read"""
NEW = "new"
"""suffix of a file that is being written"""
TENSORS, CARD = "unipelt.safetensors", "README.md"
"""the files of our own folder"""
BASELINE, ARRAYS = "baseline.json", "baseline.safetensors"
"""the files of a baseline's folder"""
ADAPTER_CONFIG = "adapter_config.json"
"""a file of peft's and AdapterHub's folders"""
TOKENIZER = "tokenizer_config.json"
"""a file of a folder that has a tokenizer of its own, because tokens were added to the base's"""
TOKENIZERS = (
    TOKENIZER, "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "vocab.txt",
    "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip

_HELD: set[tuple[int, int, int]] = set()  # device and inode of folders, and the threads that have them locked


def resolve(
    folder: str | os.PathLike,
    files: tuple[str, ...] = (TENSORS, CARD, ADAPTER_CONFIG, BASELINE, ARRAYS, *TOKENIZERS),
) -> Path:
    """The local folder of a path, or of a Hub repository such as `owner/name`, of which only `files` are downloaded.

    Raises CheckpointError where there is neither.
    """
    path = Path(folder)
    if path.is_dir() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(folder)):
        if not path.is_dir():
            raise CheckpointError(f"{folder}: no such folder")
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(folder), allow_patterns=list(files)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{folder}: neither a folder nor a repository on the Hub ({reason})") from None


def read_file(path: Path, limit: int | None = None) -> bytes:
    """The bytes of a regular file. Raises OSError for any other, and for one of more than `limit` bytes."""
    refuse_special(path)
    with open(path, "rb") as file:
        data = file.read() if limit is None else file.read(limit + 1)
    if limit is not None and len(data) > limit:
        raise OSError(f"{path.name} is larger than {limit:,} bytes")
    return data


def refuse_special(path: Path) -> None:
    """Raise OSError for what is not a regular file: a pipe, once opened, would be waited for."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(f"{path.name} is not a regular file")


def read_json(path: Path, expected: str) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError where the file is missing, damaged or holds no object."""
    try:
        data = json.loads(read_file(path, LARGEST_JSON).decode())
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent}: no {path.name} in it; expected {expected}") from None
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged or not readable ({error})") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: a {type(data).__name__}, expected an object")
    return data


def refuse_existing(path: Path, option: str, overwrite: bool) -> None:
    """Raise UserError where a file that a command would write is there already, and its user did not ask for it to go."""
    if os.path.lexists(path) and not overwrite:
        raise UserError(f"{option} {path}: exists already; expected a new file, or --overwrite to replace it")


def write_whole(folder: Path, files: dict[str, bytes]) -> None:
    """Write files into a folder, each under a name of its own first, then each in its place, in this order.

    Each file is either the old one or the new one, whatever stops the process. Several files are written under a lock of
    the folder. A symbolic link is replaced, never followed. Raises CheckpointError where a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with folder_lock(folder, WAIT) if len(files) > 1 else nullcontext(False) as alone:
            if alone:
                remove_unfinished(folder, files)
            _write(folder, files)
    except BlockingIOError:
        raise CheckpointError(
            f"{folder}: another process has been writing to it for {WAIT:.0f} s; wait for its end, or take another folder"
        ) from None
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot write ({error.strerror or error}); what was there before is untouched"
        ) from None


@contextmanager
def folder_lock(folder: Path, wait: float = 0.0, nested: bool = True) -> Iterator[bool]:
    """Keep other writers out of a folder, of this process and of others.

    The lock is the operating system's, on the folder itself: it leaves no file and ends with its process. Yields False
    where the system, or the file system, has no such locks. wait: seconds. nested: a thread that holds the lock already may
    enter again. Raises BlockingIOError where another still holds the lock then.
    """
    status = folder.stat()
    lock_key, end = (status.st_dev, status.st_ino, get_ident()), time.monotonic() + wait
    if lock_key in _HELD:
        if not nested:
            raise BlockingIOError
        yield True
        return
    handle = None
    try:
        if fcntl is not None:
            with suppress(PermissionError):
                handle = os.open(folder, os.O_RDONLY)
        locked = handle is not None and _wait_for_lock(handle, end)
        _HELD.add(lock_key)
        yield locked
    finally:
        _HELD.discard(lock_key)
        if handle is not None:
            os.close(handle)


def _wait_for_lock(handle: int, end: float) -> bool:
    """Lock an open folder; False where its file system locks no folders. Raises BlockingIOError at this time."""
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                raise
            time.sleep(0.02)
        except OSError:
            return False


def _write(folder: Path, files: dict[str, bytes]) -> None:
    new: dict[str, Path] = {}
    try:
        for name, data in files.items():
            new[name] = folder / f".{name}.{secrets.token_hex(6)}.{NEW}"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
            with os.fdopen(os.open(new[name], flags, 0o666), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for name, path in new.items():
            os.replace(path, folder / name)
    finally:  # also where Ctrl-C came
        for path in new.values():
            with suppress(OSError):
                path.unlink()


def remove_unfinished(folder: Path, names: Iterable[str]) -> None:
    """Remove what writers of these files left when they were killed. Only under the folder's lock."""
    for name in names:
        for path in folder.glob(f".{name}.*.{NEW}"):
            if re.fullmatch(rf"\.{re.escape(name)}\.[0-9a-f]{{12}}\.{NEW}", path.name):
                with suppress(OSError):
                    path.unlink()
