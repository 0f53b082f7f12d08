"""Intervals, corrections and ranks against what is known of them."""

import numpy as np
import pytest
from scipy import stats

from unipelt.report.bootstrap import DRAWS, counts, resampled
from unipelt.report.claims import claims
from unipelt.report.significance import (
    Gap,
    Sample,
    against_best,
    average_difference,
    average_ranks,
    critical_difference,
    difference,
    estimate,
    holm,
    sample,
)
from unipelt.tasks.metrics import METRICS


def drawn(metric: str, runs: int = 3, rows: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Predictions `[run, row]`, the first of them constant, and targets; ties among both."""
    chance = np.random.default_rng(0)
    if metric in ("spearman", "pearson"):
        targets = chance.random(rows).round(1)
        predictions = chance.random((runs, rows)).round(1) + targets
    else:
        targets = chance.integers(0, 2 if metric == "f1" else 3, rows).astype(float)
        predictions = chance.integers(0, 2 if metric == "f1" else 3, (runs, rows)).astype(float)
    predictions[0] = 1.0
    return predictions, targets


@pytest.mark.parametrize("metric", ["accuracy", "f1", "macro_f1", "matthews", "spearman", "pearson"])
def test_a_resample_is_the_metric_on_its_rows(metric: str):
    predictions, targets = drawn(metric)
    weights = counts("law", len(targets), draws=25)
    found = resampled(metric, predictions, targets, weights)
    assert found is not None
    for draw, times in enumerate(weights.T.astype(int)):
        for run, values in enumerate(predictions):
            expected = METRICS[metric](np.repeat(values, times).tolist(), np.repeat(targets, times).tolist())
            assert found[run, draw] == pytest.approx(expected, abs=1e-6)


def test_a_run_that_diverged_has_no_correlation():
    predictions, targets = drawn("spearman")
    predictions[1, 4] = float("nan")
    found = resampled("spearman", predictions, targets, counts("law", len(targets), draws=5))
    assert found is not None and not found[1].any() and found[2].all()


def test_resamples_hold_every_row_as_often_as_chance_says():
    weights = counts("law", 50)
    assert (weights.sum(axis=0) == 50).all() and abs(weights.mean(axis=1) - 1).max() < 0.12
    assert weights.var() == pytest.approx(1 - 1 / 50, rel=0.05)


def rows_of(metric: str, methods: dict[str, np.ndarray], targets: np.ndarray) -> Sample:
    """One seed of some methods, with predictions."""
    values = {method: {0: METRICS[metric](list(p), list(targets))} for method, p in methods.items()}
    rows = [
        {"method": m, "seed": 0, "predictions": p.tolist(), "targets": targets.tolist()} for m, p in methods.items()
    ]
    return sample("100/task", metric, values, rows)


def test_the_interval_over_rows_agrees_with_scipy():
    chance = np.random.default_rng(1)
    targets = chance.integers(0, 2, 400).astype(float)
    one, other = (np.where(chance.random(400) < p, targets, 1 - targets) for p in (0.8, 0.7))
    found = average_difference([rows_of("accuracy", {"one": one, "other": other}, targets)], [("one", "other")])
    gaps = (one == targets).astype(float) - (other == targets)
    peer = stats.bootstrap((gaps,), np.mean, n_resamples=4000, method="percentile", rng=2).confidence_interval
    assert found.low == pytest.approx(peer.low, abs=0.01) and found.high == pytest.approx(peer.high, abs=0.01)
    assert found.low < found.value < found.high
    assert found.p == pytest.approx(stats.ttest_1samp(gaps, 0).pvalue, abs=0.01)


def seeds(**methods: list[float]) -> Sample:
    return Sample("100/task", {method: dict(enumerate(values)) for method, values in methods.items()})


@pytest.mark.parametrize("gaps", [[0.05, 0.04, 0.02, 0.07, 0.01], [0.01, 0.03], [0.02, 0.05, -0.01]])
def test_without_predictions_the_interval_is_the_paired_t_test(gaps: list[float]):
    one = [0.6 + gap for gap in gaps]
    found = average_difference([seeds(one=one, other=[0.6] * len(gaps))], [("one", "other")])
    peer = stats.ttest_1samp(gaps, 0)
    low, high = peer.confidence_interval()
    assert (found.low, found.high) == (pytest.approx(low, rel=1e-3), pytest.approx(high, rel=1e-3))
    assert found.p == pytest.approx(peer.pvalue, abs=2e-3)


@pytest.mark.parametrize("noise", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("freedom", [1, 2, 4])
def test_rows_and_seeds_are_convolved(noise: float, freedom: int):
    """Beside the exact mixture of Student's distributions around each resample; and A − B mirrors B − A."""
    moves = np.random.default_rng(7).normal(0, noise, DRAWS)
    found, turned = (estimate([Gap(sign * 2.0, sign * moves, 1.0, freedom)]) for sign in (1, -1))
    below = [stats.t.cdf(edge - 2.0 - moves, freedom).mean() for edge in (found.low, found.high)]
    assert below == [pytest.approx(0.025, abs=1.5e-3), pytest.approx(0.975, abs=1.5e-3)]
    assert (turned.low, turned.high) == (pytest.approx(-found.high), pytest.approx(-found.low))


@pytest.mark.parametrize("with_rows", [True, False])
def test_the_interval_covers_what_it_should(with_rows: bool):
    """A true difference of 0.05 between two methods: 95 of 100 intervals hold it, a little more with rows and seeds together."""
    chance, held, trials, rows = np.random.default_rng(3), 0, 200, 120
    weights = counts("coverage", rows)
    for _ in range(trials):
        targets = np.ones(rows)
        skill = {method: mean + chance.normal(0, 0.03, 5) for method, mean in (("one", 0.75), ("other", 0.70))}
        right = {m: (chance.random((5, rows)) < s[:, None]).astype(float) for m, s in skill.items()}
        values = {m: dict(enumerate(r.mean(axis=1))) for m, r in right.items()}
        moves = {}
        if with_rows:
            for method, r in right.items():
                found = resampled("accuracy", r, targets, weights)
                assert found is not None
                moves |= {(method, s): found[s] - r[s].mean() for s in range(5)}
        one = estimate([difference(Sample("trial", values, moves), "one", "other")])
        assert one.low is not None and one.high is not None
        held += one.low <= 0.05 <= one.high
    assert 0.9 * trials <= held


def test_ties_decide_nothing():
    same = [0.7, 0.72, 0.71]
    all_equal = seeds(**dict.fromkeys(("full", "adapter", "prefix", "lora", "unipelt-apl"), same))
    assert [claim.verdict for claim in claims([all_equal] * 3)] == ["not decided"] * 3
    compared = against_best([all_equal], list(all_equal.values))
    assert not any(compared.real(method) for method in compared.to_best)
    assert {found.p for found in compared.to_best.values()} == {1.0}


def surely(**means: float) -> Sample:
    return seeds(**{method.replace("_", "-"): [mean, mean + 0.001, mean - 0.001] for method, mean in means.items()})


def test_claims_are_judged_by_their_intervals():
    above = surely(unipelt_apl=0.8, full=0.7, adapter=0.6, prefix=0.5, lora=0.75)
    assert [c.verdict for c in claims([above] * 2)] == ["yes", "yes", "yes"]
    assert claims([above])[0].number.value == pytest.approx(0.05)  # over lora, its best part
    below = surely(unipelt_apl=0.4, full=0.7, adapter=0.6, prefix=0.5, lora=0.75)
    assert [c.verdict for c in claims([below])] == ["no", "no", "no"]
    assert [c.verdict for c in claims([above, below])][2] == "no"  # the worst on one task is the worst once
    assert [c.verdict for c in claims([])] == ["not decided"] * 3
    without = surely(unipelt_apl=0.8, full=0.7, adapter=0.6)
    first, second, third = claims([without])
    assert (first.verdict, first.number) == (
        "not decided",
        None,
    ) and "needs unipelt-apl, adapter, prefix, lora" in first.why
    assert (second.verdict, third.verdict) == ("yes", "yes")


def renamed(of: Sample, **options: str) -> Sample:
    return Sample(of.name, {f"{m}({options[m[:4]]})" if m[:4] in options else m: v for m, v in of.values.items()})


def test_the_options_of_a_preset_do_not_matter_where_it_has_one_set_of_them():
    above = surely(unipelt_apl=0.8, full=0.7, adapter=0.6, prefix=0.5, lora=0.75)
    found = claims([renamed(above, unip="r=4", lora="r=4, alpha=1")] * 2)
    assert [claim.verdict for claim in found] == ["yes", "yes", "yes"] and found[0].number.value == pytest.approx(0.05)
    assert all(claim.why.startswith("unipelt-apl(r=4) over ") for claim in found)
    both = [renamed(above, lora="r=4"), renamed(above, lora="r=16")]
    first, *others = claims(both)
    assert (
        first.verdict == "not decided"
        and first.why == "lora occurs with several sets of options: lora(r=4), lora(r=16)"
    )
    assert [claim.verdict for claim in others] == ["yes", "yes"]
    beside_variants = Sample("x", above.values | renamed(above, lora="r=4", unip="r=4").values)
    assert [claim.number for claim in claims([beside_variants])[:2]] == [claim.number for claim in claims([above])[:2]]


def test_one_seed_without_predictions_decides_nothing():
    lone = seeds(**{"unipelt-apl": [0.9], "full": [0.1]})
    found = claims([lone])[1]
    assert found.verdict == "not decided" and found.number.value == pytest.approx(0.8) and "no interval" in found.why


def test_only_seeds_that_both_have_are_compared():
    of = Sample("x", {"one": {0: 0.5, 1: 0.9, 2: 0.6}, "other": {0: 0.4, 2: 0.4}})
    assert difference(of, "one", "other").value == pytest.approx(0.15)


def test_runs_on_other_test_rows_are_resampled_apart():
    chance = np.random.default_rng(5)
    rows = []
    for seed in (0, 1):
        targets = chance.integers(0, 2, 80)
        rows += [{"method": m, "seed": seed, "targets": targets.tolist(), "predictions": (targets ^ (chance.random(80) < 0.3)).tolist()} for m in ("a", "b")]  # fmt: skip
    values = {m: {0: 0.7, 1: 0.7} for m in ("a", "b")}
    of = sample("x", "accuracy", values, rows)
    assert len(of.moves) == 4
    assert abs(np.corrcoef(of.moves["a", 0], of.moves["a", 1])[0, 1]) < 0.1


def test_holm():
    assert holm([0.01, 0.04, None, 0.03]) == [pytest.approx(0.03), pytest.approx(0.06), None, pytest.approx(0.06)]
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_ranks_and_their_critical_difference():
    """Demšar 2006, table 5: q for 5 % and 2 to 10 methods."""
    for methods, q in ((2, 1.960), (4, 2.569), (10, 3.164)):
        assert critical_difference(methods, 14) == pytest.approx(
            q * (methods * (methods + 1) / (6 * 14)) ** 0.5, rel=1e-3
        )
    ranks = average_ranks([seeds(a=[0.9], b=[0.5], c=[0.5]), seeds(a=[0.1], b=[0.2], c=[0.0])], ["a", "b", "c"])
    assert ranks == {"a": 1.5, "b": 1.75, "c": 2.75}
