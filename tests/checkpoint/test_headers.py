"""The header of a safetensors file that says other things than are true: each reader refuses it with one line."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

import unipelt
from unipelt.checkpoint.disk import TENSORS
from unipelt.checkpoint.header import tensors_header
from unipelt.checkpoint.safe import read_tensors
from unipelt.errors import CheckpointError


def entries(header: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry for name, entry in header.items() if name != "__metadata__"]


def longer(header: dict[str, Any]) -> None:
    """The last tensor ends behind the end of the file."""
    last = max(entries(header), key=lambda entry: entry["data_offsets"][1])
    last["data_offsets"][1] += 4
    last["shape"] = [(last["data_offsets"][1] - last["data_offsets"][0]) // 4]


def overlapping(header: dict[str, Any]) -> None:
    """Two tensors of one size are the same bytes."""
    one, other = (e for e in entries(header) if e["shape"] == [4, 32])
    other["data_offsets"] = [*one["data_offsets"]]


def first(header: dict[str, Any], key: str, value: Any) -> None:
    entries(header)[0][key] = value


DAMAGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "longer than the file": longer,
    "overlapping": overlapping,
    "a shape of more values": lambda header: first(header, "shape", [1000, 1000]),
    "a shape of fewer values": lambda header: first(header, "shape", [1]),
    "a shape whose size overflows": lambda header: first(header, "shape", [2**40, 2**40]),
    "a negative shape": lambda header: first(header, "shape", [-1, -128]),
    "an unknown type": lambda header: first(header, "dtype", "F33"),
    "another type": lambda header: first(header, "dtype", "F64"),
    "ends before its start": lambda header: first(header, "data_offsets", [128, 0]),
    "a shape that is a text": lambda header: first(header, "shape", "4"),
    "no place": lambda header: entries(header)[0].pop("data_offsets"),
    "a name that stands twice": lambda header: None,  # in the text of the header, below
    "cut off in the header": lambda header: None,
    "cut off in the values": lambda header: None,
}


def damaged(data: bytes, damage: str) -> bytes:
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    DAMAGES[damage](header)
    text = json.dumps(header)
    if damage == "a name that stands twice":
        name, entry = next(item for item in header.items() if item[0] != "__metadata__")
        text = f"{{{json.dumps(name)}: {json.dumps(entry)}, {text[1:]}"
    text += " " * (-len(text) % 8)
    made = struct.pack("<Q", len(text)) + text.encode() + data[8 + length :]
    return made[:40] if damage == "cut off in the header" else made[:-4] if damage == "cut off in the values" else made


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unipelt.save(
        unipelt.attach(tiny.build("bert"), "adapter(bottleneck=4)"), tmp_path_factory.mktemp("runs") / "whole"
    )


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_header_that_lies_is_refused_by_every_reader(damage: str, whole: Path, tmp_path: Path):
    (tmp_path / TENSORS).write_bytes(damaged((whole / TENSORS).read_bytes(), damage))
    assert tensors_header(whole / TENSORS)
    for read in (
        lambda: unipelt.load(tiny.build("bert"), tmp_path),
        lambda: read_tensors(tmp_path, TENSORS, "none"),
        lambda: tensors_header(tmp_path / TENSORS),
    ):
        with pytest.raises(CheckpointError) as caught:
            read()
        assert "\n" not in str(caught.value) and TENSORS in str(caught.value)
