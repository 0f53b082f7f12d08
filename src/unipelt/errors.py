"""Errors for mistakes of a user. A message says what was given, what was expected, and what to do."""

import difflib
import re
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what the user gave. The command line prints it as one line; `--debug` shows the traceback."""


class SpecError(UserError):
    """A mixture that is misspelt, or whose changes are not compatible with their sites."""


class SiteError(UserError):
    """A base model that lacks what a change needs."""


class DataError(UserError):
    """A file, column, example or label that cannot be used."""


class CheckpointError(UserError):
    """A folder that is not the checkpoint it should be."""


class StoreError(UserError):
    """A study's store that cannot be read or written."""


def did_you_mean(word: object, known: Iterable[str], most: int = 3) -> str:
    """`did you mean 'a' or 'b'?` for a misspelt word, else the whole list of known words."""
    known = sorted(known)
    plain = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(str(word).casefold(), plain, n=most, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(repr(plain[name]) for name in close) + "?"
    return "known: " + ", ".join(known)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device's or the machine's memory ran out; for the latter torch has no type."""
    match = isinstance(error, RuntimeError) and re.search("out of memory|can't allocate memory", str(error))
    return isinstance(error, MemoryError) or bool(match)
