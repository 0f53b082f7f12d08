"""The built-in task `docstring-summaries`: from a function of the standard library to the first sentence of its docstring.

Real text that every Python has, for generation. Source files are read and parsed, never imported, so the examples depend
on the Python version alone.
"""

import ast
import platform
import re
import sysconfig
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from unipelt.data.builtin import AREAS, Pairs, ShingleIndex, hash_split, syntax_trees, words
from unipelt.data.examples import Columns
from unipelt.data.load import SUMMARIES, Source
from unipelt.errors import DataError

INSTRUCTION = "Say in one sentence what this Python function does.\n\n"
SHORTEST, LONGEST = 4, 30  # words of a summary
TEST = 300  # test examples: each is answered, which takes a CPU about a second
LARGEST = 900  # characters of a function: some 250 tokens, so that an example fits a batch on a CPU
ABBREVIATION = re.compile(r"\b(e\.g|i\.e|etc|vs|cf)\.$", re.IGNORECASE)


def load_docstring_summaries() -> Source:
    """The built-in generation task."""
    what = f"functions of Python {platform.python_version()}'s standard library and their docstrings"
    columns = Columns(text="source", label="target")
    return docstring_summaries().source(SUMMARIES, columns, what, "generation")


@cache
def docstring_summaries(library: Path | None = None) -> Pairs:
    """Functions with their summaries, split by a hash of each function's own words; no test function is like one of train."""
    library = library or Path(sysconfig.get_path("stdlib"))
    pairs: dict[str, tuple[str, str]] = {}
    modules = sorted(module for modules in AREAS.values() for module in modules.split())
    trees = (tree for module in modules for tree in syntax_trees(library, module))
    for source, summary in (pair for tree in trees for pair in _pairs(ast.walk(tree))):
        pairs.setdefault(" ".join(words(source)), (INSTRUCTION + source, summary))
    if not pairs:
        raise DataError(f"{library} holds no standard library with source files; give --data instead of {SUMMARIES}")
    train, held_out, alike = hash_split(pairs)
    test = [key for key in _different(held_out) if key not in alike][:TEST]
    return Pairs(
        train=tuple(pairs[key] for key in _different(train)), test=tuple(pairs[key] for key in test), near_duplicates=len(alike)
    )  # fmt: skip


def first_sentence(docstring: str) -> str:
    """The first sentence of the first paragraph, on one line, with its full stop."""
    paragraph = " ".join(docstring.strip().split("\n\n")[0].split())
    for end in re.finditer(r"[.!?](?=\s+[A-Z(\"'`]|$)", paragraph):
        if not ABBREVIATION.search(paragraph[: end.end()]):
            return paragraph[: end.end()]
    return paragraph.rstrip(" :;,") + "."


def _different(keys: list[str]) -> list[str]:
    """The keys without those that are near-duplicates of an earlier one."""
    kept, known = [], ShingleIndex()
    for key in keys:
        if key not in known:
            kept.append(key)
            known.add(key)
    return kept


def _pairs(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, str]]:
    """Pairs of a function without its docstring, and the first sentence of the docstring; without functions that do nothing."""
    for node in nodes:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        docstring = ast.get_docstring(node)
        body = node.body[1:]
        if not docstring or not body or all(isinstance(one, ast.Pass | ast.Raise | ast.Expr) for one in body):
            continue
        summary = first_sentence(docstring)
        node.body = body
        source = ast.unparse(node)
        prose = not summary.startswith(">>>") and "->" not in summary  # neither an example nor a signature
        if prose and SHORTEST <= len(words(summary)) <= LONGEST and len(source) <= LARGEST:
            yield source, summary
