"""Where a checkpoint's files are, and how they get there: whole, or not at all. Knows no torch."""

import os
import re
from contextlib import suppress
from pathlib import Path

from unipelt.checkpoint.description import CARD, CONFIG, FOREIGN, TENSORS
from unipelt.errors import CheckpointError


def resolve(folder: str | os.PathLike, files: tuple[str, ...] = (CONFIG, TENSORS, CARD, FOREIGN)) -> Path:
    """The local folder of a path, or of a hub repository id such as `owner/name`, of which only these files are taken."""
    path = Path(folder)
    if path.is_dir() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(folder)):
        if not path.is_dir():
            raise CheckpointError(f"{folder}: no such folder")
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(folder), allow_patterns=list(files)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{folder}: neither a folder nor a repository on the hub ({first})") from None


def write_whole(folder: Path, files: dict[str, bytes]) -> None:
    """Write all files beside their places, then put each in its place. Raises CheckpointError where there is no space."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            with open(folder / f".{name}.new", "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for name in files:
            os.replace(folder / f".{name}.new", folder / name)
    except OSError as error:
        for name in files:
            with suppress(OSError):
                (folder / f".{name}.new").unlink()
        raise CheckpointError(
            f"{folder}: cannot write ({error.strerror or error}); what was there before is untouched"
        ) from None


def settle(folder: Path, names: tuple[str, ...]) -> None:
    """Finish a save that was stopped between its first and its last replacement; before the first, the old files stay.

    names: as write_whole had them. The first file in its place says that all of them were written.
    """
    news = [folder / f".{name}.new" for name in names]
    if not news[0].exists():
        for name, new in zip(names, news):
            if new.exists():
                with suppress(OSError):  # a folder that cannot be written: its checksum will tell
                    os.replace(new, folder / name)
