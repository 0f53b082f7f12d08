"""Laws of the choice of a learning rate."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unipelt.report.study import Run, choose_rates
from unipelt.train.records import RunRecord


def run(
    seed: int, lr: float, validation: float | None = 0.5, status: str = "finished", metric: str = "accuracy", method: str = "lora",
    test: float = 0.1,
) -> Run:  # fmt: skip
    record = RunRecord(status=status, metric=metric, validation=validation, test=test)
    return Run(task="rte", k=100, method=method, seed=seed, lr=lr, record=record)


def rate(runs: list[Run]) -> float | None:
    found = {run.lr for run in choose_rates(runs)}
    assert len(found) < 2
    return found.pop() if found else None


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([run(0, 1e-3, 0.6), run(0, 3e-3, 0.7)], 3e-3),
        ([run(0, 1e-3, 0.6), run(1, 1e-3, 0.6), run(0, 3e-3, 0.9), run(1, 3e-3, 0.2)], 1e-3),  # the mean over seeds
        ([run(0, 1e-3, 0.6), run(1, 1e-3, 0.6), run(0, 3e-3, 0.9), run(1, 3e-3, status="planned")], 1e-3),  # every seed first
        ([run(0, 1e-3, 0.6), run(1, 1e-3, 0.6), run(0, 3e-3, 0.9), run(1, 3e-3, status="failed: no")], 1e-3),
        ([run(0, 1e-3, 0.6), run(1, 3e-3, 0.7)], 3e-3),  # no rate has every seed
        ([run(0, 3e-3, 0.5), run(0, 1e-3, 0.5)], 1e-3),  # a tie
        ([run(0, 1e-3, 0.2, metric="rmse"), run(0, 3e-3, 0.1, metric="rmse")], 3e-3),  # of an error the least
        ([run(0, 1e-3, None), run(0, 3e-3, 0.1)], 3e-3),
        ([run(0, 1e-3, None)], 1e-3),
        ([run(0, 1e-3, 0.4, "stopped early")], 1e-3),
        ([run(0, 1e-3, status="planned"), run(0, 3e-3, status="failed: no")], None),
        ([], None),
    ],
)  # fmt: skip
def test_the_rate(runs: list[Run], expected: float | None):
    assert rate(runs) == expected
    assert all(run.record.status in ("finished", "stopped early") for run in choose_rates(runs))


drawn_runs = st.lists(
    st.tuples(st.sampled_from(["lora", "adapter"]), st.integers(0, 3), st.sampled_from([1e-4, 1e-3]), st.floats(0, 1), st.booleans()),
    max_size=16, unique_by=lambda drawn: drawn[:3],
)  # fmt: skip


@given(drawn_runs, st.randoms())
def test_order_and_test_metrics_have_no_say(drawn, chance: random.Random):
    runs = [run(s, lr, validation, "finished" if ok else "planned", method=m) for m, s, lr, validation, ok in drawn]
    keys = {run.key for run in choose_rates(runs)}
    shuffled = [replace(run, record=replace(run.record, test=chance.random())) for run in runs]
    chance.shuffle(shuffled)
    assert {run.key for run in choose_rates(shuffled)} == keys
    assert len({key.method for key in keys}) == len({(key.method, key.lr) for key in keys})
