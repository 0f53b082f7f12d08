"""A small study: a file of a few dozen rows, a tiny base, two methods, seeds and learning rates."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli.conftest import SMALL, base_of, replaced, reviews, run, tiny_base, unlabelled  # noqa: F401
from cli.test_kills import child  # noqa: F401

from unipelt.study.store import Store

METHODS = (SMALL["lora"], SMALL["unipelt-apl"])
NOT_OURS = {"seconds", "predicting", "versions"}  # what an undisturbed study has otherwise


@pytest.fixture(scope="session")
def words(tiny_base: str, reviews: Path) -> Callable[..., list[str]]:  # noqa: F811
    """The words of a study; an option in `more` replaces the one here."""

    def make(out: Path, *more: Any) -> list[str]:
        given = [
            "study", "grid", "--model", tiny_base, "--data", reviews, "--k", 16, 24, "--methods", *METHODS, "--seeds", 2,
            "--lr", 3e-3, 1e-2, "--epochs", 4, "--evaluate-every", 1, "--batch-size", 8, "--patience", 2, "--runs-at-once", 3,
            "--precision", "fp32", "--device", "cpu", "--out", out,
        ]  # fmt: skip
        return replaced(given, more)

    return make


@pytest.fixture(scope="session")
def undisturbed(words, tmp_path_factory: pytest.TempPathFactory, child) -> Path:  # noqa: F811
    out = tmp_path_factory.mktemp("study")
    log = out.parent / "log"
    assert child(words(out), log) == 0, log.read_text()
    assert "16 of 16 runs done" in log.read_text()
    return out


def results(out: Path) -> list[dict[str, Any]]:
    """Every row of a store, but for what a machine does otherwise each time."""
    return [{name: value for name, value in row.items() if name not in NOT_OURS} for row in Store.read(out).runs()]
