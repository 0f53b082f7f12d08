"""Reads data sets and splits them. Knows no model and no task: neither torch nor transformers."""

from unipelt.data.builtin import causal_texts, load_docstrings
from unipelt.data.columns import choose_columns
from unipelt.data.examples import Columns, Dataset, Examples
from unipelt.data.glue import GLUE, load_glue
from unipelt.data.load import Source, find
from unipelt.data.readers import read_table
from unipelt.data.splits import Splits, split
from unipelt.data.tables import Dialect, Table
from unipelt.data.writers import table_bytes

__all__ = [
    "GLUE", "Columns", "Dataset", "Dialect", "Examples", "Source", "Splits", "Table", "causal_texts", "choose_columns", "find",
    "load_docstrings", "load_glue", "read_table", "split", "table_bytes",
]  # fmt: skip
