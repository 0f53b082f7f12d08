"""Data sets, their examples and the low-resource protocol. Knows no model: neither torch nor transformers."""

from unipelt.data.builtin import causal_texts, load_docstrings
from unipelt.data.files import load_file
from unipelt.data.glue import GLUE, load_glue
from unipelt.data.load import load
from unipelt.data.protocol import Splits, split
from unipelt.data.task import Columns, Dataset, Examples, Task, class_counts

__all__ = [
    "GLUE",
    "Columns",
    "Dataset",
    "Examples",
    "Splits",
    "Task",
    "causal_texts",
    "class_counts",
    "load",
    "load_docstrings",
    "load_file",
    "load_glue",
    "split",
]
