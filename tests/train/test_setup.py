"""In which units a regression is trained."""

import pytest
import tiny

import unipelt
from unipelt.data import Examples, Task
from unipelt.train.setup import unit_of

TASK = Task(name="t", kind="regression", labels=(), metric="spearman", pair=False)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ([0.0, 2.5, 5.0], (0.0, 1.0)),
        ([200_000.0, 300_000.0], (250_000.0, 50_000.0)),
        ([1e-5, 3e-5], (2e-5, 1e-5)),
        ([7.0, 7.0], (7.0, 1.0)),
    ],
)
def test_targets_of_ordinary_size_stay_and_others_are_standardised(targets: list[float], expected: tuple[float, float]):
    rows = Examples(first=["a"] * len(targets), second=None, labels=targets)
    model = unipelt.attach(tiny.build("bert", num_labels=1), "lora")
    assert unit_of(model, TASK, rows) == pytest.approx(expected)
    frozen = unipelt.attach(tiny.build("bert", num_labels=1), "lora", head="frozen")
    assert unit_of(frozen, TASK, rows) == (0.0, 1.0), "a head that is not trained cannot be put back"
