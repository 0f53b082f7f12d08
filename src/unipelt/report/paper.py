"""The paper's own numbers, as printed.          Mao et al. 2022, arXiv:2110.07577, tables 1, 3 and 4"""

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any


@cache
def paper() -> dict[str, Any]:
    """See paper.toml."""
    return tomllib.loads(files("unipelt.report").joinpath("paper.toml").read_text(encoding="utf-8"))


def printed(k: int | str) -> dict[str, dict[str, float]]:
    """Test metric ×100 by method and task; nothing for a size that the paper has not, or has an average of alone."""
    return {method: dict(zip(paper()["tasks"], row)) for method, row in paper()["scores"].get(str(k), {}).items()}
