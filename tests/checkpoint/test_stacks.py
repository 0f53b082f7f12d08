"""A checkpoint keeps the rows of its base: what was found by running the base is not sought again."""

import json

import pytest
import tiny
import torch
from laws.lawbook import result
from values import rewrite

import unipelt
from unipelt import Stack
from unipelt.errors import CheckpointError
from unipelt.inject import discover


def unknown(seed: int = 0):
    """A base of a type that the table lacks."""
    model = tiny.build("llama", seed=seed)
    model.config.model_type = "llamb"
    return model


def test_loading_never_runs_the_base(tmp_path, monkeypatch: pytest.MonkeyPatch):
    model = unipelt.attach(unknown(), "unipelt-apl")
    given = tiny.inputs("llama", model)
    with torch.no_grad():
        expected = result(model(**given))
    unipelt.save(model, tmp_path)
    monkeypatch.setattr(discover, "discover", lambda model: pytest.fail("the base was run"))
    loaded = unipelt.load(unknown(), tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(result(loaded(**given)), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "stacks",
    [
        "llama", [3], [{}], [{"name": "decoder"}], [{"unheard_of": 1}], {"name": "decoder"},
        *[[{"attention": value}] for value in (None, [], 1, {"module": 1})],
    ],
    ids=str,
)  # fmt: skip
def test_rows_that_are_none_are_refused(tmp_path, stacks):
    unipelt.save(unipelt.attach(tiny.build("llama"), "lora"), tmp_path)

    def change(said: dict) -> dict:
        first = said["stacks"][0]
        wrong = [first | one if isinstance(one, dict) and "attention" in one else one for one in stacks]
        return said | {"stacks": wrong if isinstance(stacks, list) else stacks}

    rewrite(tmp_path, change=change)
    with pytest.raises(CheckpointError, match="stacks"):
        unipelt.load(tiny.build("llama"), tmp_path)


def test_rows_are_the_same_after_json():
    from unipelt.inject.architectures import ARCHITECTURES, entries_from_json, entries_to_json

    for rows in ARCHITECTURES.values():
        assert entries_from_json(json.loads(json.dumps(entries_to_json(rows)))) == rows
        assert all(isinstance(row, Stack) for row in rows)
