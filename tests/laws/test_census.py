"""The generated table of architectures is what running tiny models gives."""

import os

import census
import pytest
import shrink

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
