"""Laws of the choice of a learning rate."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unipelt.study.choose import choose


def row(seed: int, lr: float, validation: float | None = 0.5, status: str = "finished", **more):
    return {
        "task": "rte",
        "k": 100,
        "method": "lora",
        "seed": seed,
        "lr": lr,
        "validation": validation,
        "test": 0.1,
        "status": status,
        "metric": "accuracy",
    } | more


def rate(rows) -> float | None:
    found = {row["lr"] for row in choose(rows)}
    assert len(found) < 2
    return found.pop() if found else None


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row(0, 1e-3, 0.6), row(0, 3e-3, 0.7)], 3e-3),
        ([row(0, 1e-3, 0.6), row(1, 1e-3, 0.6), row(0, 3e-3, 0.9), row(1, 3e-3, 0.2)], 1e-3),  # the mean over seeds
        ([row(0, 1e-3, 0.6), row(1, 1e-3, 0.6), row(0, 3e-3, 0.9), row(1, 3e-3, status="planned")], 1e-3),  # every seed first
        ([row(0, 1e-3, 0.6), row(1, 1e-3, 0.6), row(0, 3e-3, 0.9), row(1, 3e-3, status="failed: no")], 1e-3),
        ([row(0, 1e-3, 0.6), row(1, 3e-3, 0.7)], 3e-3),  # no rate has every seed
        ([row(0, 3e-3, 0.5), row(0, 1e-3, 0.5)], 1e-3),  # a tie
        ([row(0, 1e-3, 0.2, metric="rmse"), row(0, 3e-3, 0.1, metric="rmse")], 3e-3),  # of an error the least
        ([row(0, 1e-3, None), row(0, 3e-3, 0.1)], 3e-3),
        ([row(0, 1e-3, None)], 1e-3),
        ([row(0, 1e-3, 0.4, "stopped early")], 1e-3),
        ([row(0, 1e-3, status="planned"), row(0, 3e-3, status="failed: no")], None),
        ([], None),
    ],
)  # fmt: skip
def test_the_rate(rows, expected):
    assert rate(rows) == expected
    assert all(row["status"] in ("finished", "stopped early") for row in choose(rows))


runs = st.lists(
    st.tuples(st.sampled_from(["lora", "adapter"]), st.integers(0, 3), st.sampled_from([1e-4, 1e-3]), st.floats(0, 1), st.booleans()),
    max_size=16, unique_by=lambda drawn: drawn[:3],
)  # fmt: skip


@given(runs, st.randoms())
def test_order_and_test_metrics_have_no_say(drawn, chance: random.Random):
    rows = [row(s, lr, validation, "finished" if ok else "planned", method=m) for m, s, lr, validation, ok in drawn]
    keys = {(r["method"], r["seed"], r["lr"]) for r in choose(rows)}
    shuffled = [r | {"test": chance.random()} for r in rows]
    chance.shuffle(shuffled)
    assert {(r["method"], r["seed"], r["lr"]) for r in choose(shuffled)} == keys
    assert len({method for method, *_ in keys}) == len({(method, lr) for method, _, lr in keys})
