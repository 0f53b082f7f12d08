"""The plan of one run: its steps, when it is evaluated, which evaluation counts, and when it ends."""

import math
from dataclasses import replace

import pytest
import torch

from train.fleets import plan
from unipelt.tasks.calibration import fit_temperature
from unipelt.train.records import RunRecord
from unipelt.train.runs import Plan, best_of, epoch_batches


def answers(one: Plan, right: int) -> torch.Tensor:
    """Logits for the validation examples that are right in this many."""
    targets = torch.tensor(one.validation.targets)
    said = torch.where(torch.arange(len(targets)) < right, targets, (targets + 1) % 3)
    return torch.nn.functional.one_hot(said, 3) * 2.0


def evaluated(one: Plan, right: list[int]) -> tuple[RunRecord, list[bool], list[str]]:
    """The record after an evaluation for each of these numbers of right answers, an epoch of loss 2.0 before each; whether each
    was the best, and the status after it."""
    record, best, statuses = replace(one.initial_record, curve=[]), [], []
    for epoch, number in enumerate(right):
        record.losses += 2.0 * (one.ends[epoch] - record.steps)
        record.steps = one.ends[epoch]
        best.append(one.evaluate(record, answers(one, number), None))
        statuses.append(record.status)
    return record, best, statuses


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("accuracy", [0.5, 0.7, 0.7, 0.6], 1), ("rmse", [0.5, 0.3, 0.3, 0.4], 1), ("accuracy", [math.nan, 0.0, math.nan], 1),
        ("rmse", [math.nan] * 2, -1), ("accuracy", [], -1),
    ],
)  # fmt: skip
def test_the_first_of_the_best_evaluations_counts(metric: str, values: list[float], best: int):
    assert best_of([{metric: value} for value in values], metric) == best


def test_a_run_ends_after_as_many_evaluations_without_a_better_one():
    one = plan(patience=2, epochs=9)
    record, best, statuses = evaluated(one, [5, 9, 9, 8])
    assert best == [True, True, False, False] and statuses == ["running"] * 3 + ["stopped early"]
    assert record.validation == 9 / 17 and record.validation_metrics == {"epoch": 2, "accuracy": 9 / 17} | {
        name: record.curve[1][name] for name in ("macro_f1", "matthews")
    }
    assert [entry["train_loss"] for entry in record.curve] == [2.0] * 4, "the mean over the steps since the last one"
    of_best = fit_temperature(answers(one, 9).numpy(), torch.tensor(one.validation.targets).numpy())
    assert (
        record.temperature
        == of_best
        != fit_temperature(answers(one, 8).numpy(), torch.tensor(one.validation.targets).numpy())
    )
    assert evaluated(plan(patience=0, epochs=9), [9, 8, 8, 8, 8])[2] == ["running"] * 5
    assert evaluated(plan(patience=2, epochs=3), [9, 8, 8])[2][-1] == "finished", "all its epochs"


def test_a_run_that_failed_has_no_result():
    one = plan(patience=0)
    record, *_ = evaluated(one, [9])
    failed = one.result(replace(record, status="failed: why"), answers(one, 9), None, {})
    assert (failed.validation, failed.validation_metrics, failed.temperature, failed.test) == (None,) * 4
    done = one.result(replace(record, status="finished"), answers(one, 8), None, {})
    assert (done.validation, done.test) == (9 / 17, 8 / 17)


def test_a_run_is_evaluated_every_few_epochs_and_at_its_end():
    one = plan(train=20, batch_size=8, epochs=5, evaluate_every=2)
    assert (one.ends, one.steps) == ([3, 6, 9, 12, 15], 15)
    assert [step for step in range(16) if one.is_due(step)] == [6, 12, 15]
    assert [one.epochs_at(step) for step in (0, 2, 3, 14, 15)] == [0, 0, 1, 4, 5]


def test_a_warm_up_that_is_no_whole_number_of_steps_is_rounded_up():
    one = plan(train=20, batch_size=8, epochs=5, warmup=0.1, lr=1.0)  # 1.5 of 15 steps
    assert [one.rates(step, []) for step in range(4)] == pytest.approx([1 / 2, 1, 1, 12 / 13])


def test_accumulated_forwards_are_one_step():
    one = plan(train=20, batch_size=4, gradient_accumulation=2, epochs=2)
    assert one.ends == [3, 6] and [len(step) for step in one.epoch(0)] == [2, 2, 1]
    assert sorted(row for step in one.epoch(1) for batch in step for row in batch) == [*range(20)]


def test_batches_have_no_more_tokens_than_asked_for():
    one = plan(train=60, batch_tokens=40, epochs=3, gradient_accumulation=2)
    lengths = one.train.lengths()
    epochs = [[batch for step in one.epoch(epoch) for batch in step] for epoch in range(3)]
    for batches in epochs:
        assert sorted(row for batch in batches for row in batch) == [*range(60)]
        assert all(len(batch) * max(lengths[row] for row in batch) <= 40 for batch in batches)
    assert len(epochs[0]) <= 1.5 * sum(lengths) / 40, "no batch is far smaller than it may be"
    steps = [math.ceil(len(batches) / 2) for batches in epochs]
    assert one.ends == [sum(steps[: epoch + 1]) for epoch in range(3)]
    assert epoch_batches([3, 50, 3], 8, 0, 0, 40)[-1] != [], "a longer row is a batch of its own"
    assert [1] in epoch_batches([3, 50, 3], 8, 0, 0, 40)


def test_every_seed_and_every_epoch_has_an_order_of_its_own():
    one = plan(train=40, batch_size=2)
    other = replace(plan(seed=1, train=40, batch_size=2), train=one.train)
    together = [
        {frozenset(batch) for step in of.epoch(epoch) for batch in step} for of in (one, other) for epoch in (0, 1)
    ]
    assert all(a != b for index, a in enumerate(together) for b in together[:index]), (
        "also seed 0's second, seed 1's first"
    )
