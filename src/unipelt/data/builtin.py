"""The built-in tasks, from the docstrings that every Python has: real text without a network.

`docstrings`: to which area of the standard library does a docstring belong? `docstring-summaries`, for generation: from a
function to the first sentence of its docstring. Source files are read and parsed, never imported, so the examples depend on the
Python version alone. Areas leave out what some builds ship apart (tkinter, idlelib, distutils, lib2to3).
"""

import ast
import hashlib
import platform
import re
import sysconfig
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from unipelt.data.examples import Columns
from unipelt.data.load import BUILT_IN, SUMMARIES, Source
from unipelt.data.tables import Table
from unipelt.errors import DataError

AREAS: dict[str, str] = {  # modules that a version lacks are passed over
    "text": "argparse cmd codecs configparser csv difflib encodings fileinput formatter getopt gettext html json locale "
    "optparse plistlib pprint re reprlib shlex string stringprep textwrap tomllib xml",
    "files": "_compression _pyio bz2 chunk dbm filecmp fnmatch genericpath glob gzip io linecache lzma ntpath os "
    "nturl2path pathlib posixpath shelve shutil sqlite3 stat tarfile tempfile zipapp zipfile",
    "network": "cgi ftplib http imaplib ipaddress netrc nntplib poplib smtplib socket socketserver ssl telnetlib urllib "
    "webbrowser wsgiref xmlrpc",
    "mail": "base64 email mailbox mailcap mimetypes quopri uu",
    "concurrency": "_threading_local asynchat asyncio asyncore concurrent multiprocessing queue sched selectors signal "
    "subprocess threading",
    "data": "_collections_abc _pydatetime _pydecimal _strptime bisect calendar collections colorsys copy dataclasses "
    "datetime enum fractions graphlib hashlib heapq hmac numbers random secrets statistics uuid weakref zoneinfo",
    "language": "_py_abc _sitebuiltins _weakrefset abc ast codeop contextlib copyreg ctypes dis functools importlib "
    "inspect keyword modulefinder opcode operator pickle pickletools pkgutil runpy site symtable sysconfig token "
    "tokenize types typing warnings zipimport",
    "validation": "bdb cProfile code compileall doctest ensurepip faulthandler logging pdb profile pstats py_compile "
    "pyclbr pydoc tabnanny timeit trace traceback tracemalloc unittest venv",
}
LONGEST = 60  # words of a docstring that are kept: about 80 tokens, so that an example fits a short batch
SHORTEST = 4  # words of letters: below that, nothing tells the area
INSTRUCTION = "Say in one sentence what this Python function does.\n\n"
SUMMARY = 4, 30  # fewest and most words of a summary
LARGEST = 900  # characters of a function: some 250 tokens, so that an example fits a batch on a CPU
MOST_TESTS = 300  # test examples with summaries: each is answered, which takes a CPU about a second
ABBREVIATION = re.compile(r"\b(e\.g|i\.e|etc|vs|cf)\.$", re.IGNORECASE)
ALIKE = 0.5  # Jaccard similarity from which two examples count as one
TEST_SHARE = 5  # every fifth example, by hash


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Texts, each with its answer, and how many were left out on the way."""

    train: tuple[tuple[str, str | int], ...]
    test: tuple[tuple[str, str | int], ...]
    near_duplicates: int
    """pairs left out of test because a train pair is like them"""

    def source(self, name: str, columns: Columns, description: str, kind: str, classes: tuple[str, ...] = ()) -> Source:
        """A data set with these pairs; validation examples are taken from train. description: of the pairs, in words."""
        assert columns.label is not None
        tables = {
            part: Table(
                name=f"{name}, {part}",
                columns=dict(zip((columns.text, columns.label), map(list, zip(*pairs)))),
                classes={columns.label: classes} if classes else {},
            )
            for part, pairs in {"train": self.train, "test": self.test}.items()
        }
        source = f"{description} ({self.near_duplicates} near-duplicates of train left out of test)"
        return Source(name=name, tables=tables, columns=columns, where=source, kind=kind, labels=classes)


def load_docstrings() -> Source:
    """The built-in classification task."""
    description = f"docstrings of Python {platform.python_version()}'s standard library"
    columns = Columns(text="text", label="area")
    return docstring_examples().source(BUILT_IN, columns, description, "classification", tuple(AREAS))


def load_docstring_summaries() -> Source:
    """The built-in generation task."""
    description = f"functions of Python {platform.python_version()}'s standard library and their docstrings"
    columns = Columns(text="source", label="target")
    return docstring_summaries().source(SUMMARIES, columns, description, "generation")


def causal_texts() -> tuple[list[str], list[str]]:
    """(train, held-out): the same docstrings as plain texts, for a language model."""
    examples = docstring_examples()
    return [text for text, _ in examples.train], [text for text, _ in examples.test]


@cache
def docstring_examples(library: Path | None = None) -> Pairs:
    """Docstrings with the index of their area; no test example is within ALIKE of one of train."""
    areas_of: dict[str, set[int]] = defaultdict(set)
    text_of: dict[str, str] = {}
    for index, modules in enumerate(AREAS.values()):
        trees = syntax_trees(library, modules.split())
        for docstring in (text for tree in trees for text in _docstrings(tree)):
            text = clean(docstring)
            key = " ".join(words(text))
            areas_of[key].add(index)
            text_of.setdefault(key, text)
    # A text that two areas share has no one answer.
    pairs = {
        key: (text_of[key], min(areas))
        for key, areas in areas_of.items()
        if len(areas) == 1 and _letters(key) >= SHORTEST
    }
    train, held_out, alike = hash_split(pairs)
    test = tuple(pairs[key] for key in held_out if key not in alike)
    return Pairs(train=tuple(pairs[key] for key in train), test=test, near_duplicates=len(alike))


@cache
def docstring_summaries(library: Path | None = None) -> Pairs:
    """Functions with their summaries, split by a hash of each function's own words; no test function is like one of train."""
    pairs: dict[str, tuple[str, str]] = {}
    trees = syntax_trees(library, sorted(module for modules in AREAS.values() for module in modules.split()))
    for source, summary in (pair for tree in trees for pair in _summarised(tree)):
        pairs.setdefault(" ".join(words(source)), (INSTRUCTION + source, summary))
    train, held_out, alike = hash_split(pairs)
    test = [key for key in _different(held_out) if key not in alike][:MOST_TESTS]
    return Pairs(
        train=tuple(pairs[key] for key in _different(train)), test=tuple(pairs[key] for key in test), near_duplicates=len(alike)
    )  # fmt: skip


def hash_split(keys: Iterable[str]) -> tuple[list[str], list[str], set[str]]:
    """Keys in the order of their hashes: those that train, every fifth, which is held out, and those held out that are
    near-duplicates of one that trains. Raises DataError where there are no keys."""
    digest = {key: hashlib.sha256(key.encode()).digest() for key in keys}
    if not digest:
        raise DataError("this Python has no standard library with source files; give another --data")
    ordered = sorted(digest, key=digest.__getitem__)
    train = [key for key in ordered if digest[key][-1] % TEST_SHARE]
    held_out = [key for key in ordered if digest[key][-1] % TEST_SHARE == 0]
    known = ShingleIndex(train)
    return train, held_out, {key for key in held_out if key in known}


def clean(docstring: str) -> str:
    """The paragraphs before any doctest, on one line, without rules and bullets, up to LONGEST words."""
    prose = docstring.split(">>>")[0]
    tokens = re.sub(r"[-=~*_#^+]{3,}|^\s*[-*+]\s", " ", prose, flags=re.MULTILINE).split()
    return " ".join(tokens[:LONGEST])


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.casefold())


def shingles(text: str) -> frozenset[tuple[str, ...]]:
    """Every three words in a row."""
    text_words = words(text)
    return frozenset(tuple(text_words[start : start + 3]) for start in range(max(1, len(text_words) - 2)))


class ShingleIndex:
    """Texts by their shingles. A text is in it where it shares |A ∩ B| / |A ∪ B| ≥ ALIKE of its shingles with one of them."""

    def __init__(self, texts: Iterable[str] = ()):
        self.sizes: list[int] = []
        self.holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        text_shingles = shingles(text)
        for shingle in text_shingles:
            self.holders[shingle].append(len(self.sizes))
        self.sizes.append(len(text_shingles))

    def __contains__(self, text: str) -> bool:
        text_shingles = shingles(text)
        shared = Counter(index for shingle in text_shingles for index in self.holders.get(shingle, ()))
        return any(count >= ALIKE * (len(text_shingles) + self.sizes[index] - count) for index, count in shared.items())


def _different(keys: list[str]) -> list[str]:
    """The keys without those that are near-duplicates of an earlier one."""
    unique, known = [], ShingleIndex()
    for key in keys:
        if key not in known:
            unique.append(key)
            known.add(key)
    return unique


def syntax_trees(library: Path | None, modules: Iterable[str]) -> Iterator[ast.Module]:
    """The parsed files of modules and packages of the standard library, without their tests."""
    library = library or Path(sysconfig.get_path("stdlib"))
    packages = ((module, library / module) for module in modules)
    each = (sorted(path.rglob("*.py")) if path.is_dir() else [library / f"{name}.py"] for name, path in packages)
    for path in (path for files in each for path in files):
        if path.is_file() and not {"test", "tests"} & set(path.relative_to(library).parts):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in other people's sources
                tree = ast.parse(path.read_bytes())
            yield tree


def _docstrings(node: ast.AST) -> Iterator[str]:
    """Docstrings of a module and of every definition in it; only statements are searched, expressions hold none."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = ast.get_docstring(node)
        if docstring:
            yield docstring
    for block in ("body", "orelse", "handlers", "finalbody"):
        for child in getattr(node, block, ()):
            yield from _docstrings(child)


def _letters(key: str) -> int:
    return sum(word.isalpha() and len(word) > 1 for word in key.split())


def first_sentence(docstring: str) -> str:
    """The first sentence of the first paragraph, on one line, with its full stop."""
    paragraph = " ".join(docstring.strip().split("\n\n")[0].split())
    for end in re.finditer(r"[.!?](?=\s+[A-Z(\"'`]|$)", paragraph):
        if not ABBREVIATION.search(paragraph[: end.end()]):
            return paragraph[: end.end()]
    return paragraph.rstrip(" :;,") + "."


def _summarised(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Pairs of a function without its docstring, and the first sentence of the docstring; without functions that do nothing."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        docstring, body = ast.get_docstring(node), node.body[1:]
        if not docstring or not body or all(isinstance(child, ast.Pass | ast.Raise | ast.Expr) for child in body):
            continue
        summary = first_sentence(docstring)
        node.body = body
        source = ast.unparse(node)
        prose = not summary.startswith(">>>") and "->" not in summary  # neither an example nor a signature
        if prose and SUMMARY[0] <= len(words(summary)) <= SUMMARY[1] and len(source) <= LARGEST:
            yield source, summary
