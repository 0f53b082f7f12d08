"""The generated table of architectures is what running tiny models gives."""

import os
from hashlib import sha256

import census
import pytest
import shrink

import unipelt
from unipelt.errors import SiteError
from unipelt.inject.architectures import CENSUS, rows_from_json

SAMPLE = ("bloom", "cohere", "gpt_oss", "granitemoeshared", "nomic_bert", "t5", "xmod")


@pytest.mark.parametrize("name", SAMPLE)
def test_a_row_of_the_table_is_found_again(name: str):
    assert census.row_of(name, shrink.double(shrink.build(name))) == CENSUS[name].rows


@pytest.mark.slow
@pytest.mark.skipif("UNIPELT_WHOLE_CENSUS" not in os.environ, reason="takes half an hour: set UNIPELT_WHOLE_CENSUS=1")
@pytest.mark.parametrize("name", sorted(CENSUS))
def test_the_whole_table_is_found_again(name: str):
    found, known = census.census(name), CENSUS[name]
    refused = {method for method, reason in found.get("takes", {}).items() if reason != "yes"}
    assert (rows_from_json(found["rows"]) if "rows" in found else ()) == known.rows
    assert refused == set(known.refuses or {})


HELD_OUT = tuple(name for name in shrink.types() if int(sha256(name.encode()).hexdigest(), 16) % 8 == 0)
"""types that nobody has chosen: by a rule that was written down before any of them was tried"""


@pytest.mark.slow
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
            assert "full fine-tuning needs no row" in str(error) and "stacks=" in str(error)
            refused[name] = str(error)
    assert len(works) >= 0.8 * (len(works) + len(refused)), refused
