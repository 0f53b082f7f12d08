"""The generated table of architectures is what running tiny models gives."""

import os
from hashlib import sha256
from pathlib import Path

import census
import pytest
import shrink

import unipelt
from unipelt.errors import SiteError
from unipelt.inject.architectures import CENSUS

LEAST = {"lora": 215, "adapter": 215, "parallel-adapter": 215, "unipelt-apl": 185}
"""how many types take a method, at the least"""
SAMPLE = ("bloom", "cohere", "gpt_oss", "granitemoeshared", "mpnet", "nomic_bert", "t5", "xmod")


@pytest.mark.parametrize("name", SAMPLE)
def test_a_row_of_the_table_is_found_again(name: str):
    assert census.row_of(name, shrink.double(shrink.build(name))) == CENSUS[name].entries


WHOLE = pytest.mark.skipif(
    "UNIPELT_WHOLE_CENSUS" not in os.environ, reason="runs for minutes: set UNIPELT_WHOLE_CENSUS=1"
)


@pytest.mark.slow
@WHOLE
def test_the_whole_table_is_found_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Every type is run again, but those that `make census` has run with the same code and whose results it kept."""
    results = {name: census.kept(name) for name in shrink.types()}
    written = census.TABLE.read_text(encoding="utf-8")
    monkeypatch.setattr(census, "TABLE", tmp_path / "table.json")
    census.write(results)
    assert census.TABLE.read_text(encoding="utf-8") == written
    assert census.page(results) == census.PAGE.read_text(encoding="utf-8")
    for method, least in LEAST.items():
        assert sum(found.get("takes", {}).get(method) == "yes" for found in results.values()) >= least


HELD_OUT = tuple(name for name in shrink.types() if int(sha256(name.encode()).hexdigest(), 16) % 8 == 0)
"""types that nobody has chosen: by a rule that was written down before any of them was tried"""


@pytest.mark.slow
@WHOLE
def test_types_that_nobody_has_chosen_work_or_are_refused_with_a_reason():
    """Without any row: at least four in five take a change that trains; what is refused names a module, and what still works."""
    works, refused = [], {}
    for name in HELD_OUT:
        try:
            model = shrink.double(shrink.build(name))
        except Exception:  # of which there is no tiny model
            continue
        paths = {path for path, _ in model.base_model.named_modules() if path}
        model.config.model_type = model.base_model.config.model_type = "held-out"
        try:
            unipelt.attach(model, "lora(r=2)", head="frozen")
            output = census.discovery_output(model.base_model(**shrink.inputs(model)))
            output.square().sum().backward()
            works.append(name)
        except SiteError as error:
            assert any(path in str(error) for path in paths), f"{name} names no module: {error}"
            assert "full fine-tuning needs no entry" in str(error) and "stacks=" in str(error)
            refused[name] = str(error)
    assert len(works) >= 0.8 * (len(works) + len(refused)), refused
