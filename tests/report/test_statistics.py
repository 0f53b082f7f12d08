"""Variances, exact tests, intervals and corrections against what is known of them; what may be called real, and what never."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from unipelt.report.claims import claims
from unipelt.report.comparison import compare, headline
from unipelt.report.samples import BEST_CONSTANT, Difference, Sample, difference, make_sample, own_metric
from unipelt.report.statistics import (
    BOTH,
    EXAMPLES,
    NO_INTERVAL,
    SEEDS,
    Estimate,
    estimate,
    exact_p,
    half_width,
    holm,
    own_estimate,
    tail,
)
from unipelt.tasks.metrics import METRICS

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import false_claims

FAST = [name for name, metric in METRICS.items() if metric.batched]


def made(metric: str, answers: dict[str, list[np.ndarray]], targets: np.ndarray) -> Sample:
    """Runs with these predictions, a list of seeds a method."""
    values = {m: {s: METRICS[metric](p, targets) for s, p in enumerate(of)} for m, of in answers.items()}
    rows = [(m, s, p.tolist(), targets.tolist()) for m, of in answers.items() for s, p in enumerate(of)]
    return make_sample("task", metric, values, rows)


def drawn(
    metric: str, seeds: int = 1, examples: int = 80, skill: tuple[float, ...] = (0.8, 0.7), luck: int = 0
) -> Sample:
    """Methods a, b, … with about this skill."""
    chance = np.random.default_rng(luck)
    if METRICS[metric].of == "numbers":
        targets = chance.normal(size=examples)
        answers = {
            m: [targets + chance.normal(size=examples) / s for _ in range(seeds)] for m, s in zip("abcde", skill)
        }
    else:
        targets = chance.integers(0, 2 if metric == "f1" else 3, examples)
        wrong = (targets + 1) % (2 if metric == "f1" else 3)
        answers = {m: [np.where(chance.random(examples) < s, targets, wrong) for _ in range(seeds)] for m, s in zip("abcde", skill)}  # fmt: skip
    return made(metric, answers, targets)


@given(st.integers(50, 399), st.floats(0.7, 0.95), st.integers(1, 3))
def test_one_example_is_never_a_difference(examples: int, accuracy: float, seeds: int):
    """McNemar's exact p of one discordant example is 1, and the interval holds 0; whatever the rounding of the metric."""
    targets = np.arange(examples) % 2
    one = np.where(np.arange(examples) < accuracy * examples, targets, 1 - targets)
    other = one.copy()
    other[-1] = 1 - other[-1]
    found = compare([made("accuracy", {"one": [one] * seeds, "other": [other] * seeds}, targets)], ["one", "other"])
    gap = found.others[0].difference
    assert gap.p == 1 and gap.low <= 0 <= gap.high and not found.others[0].real


@given(st.integers(0, 40), st.integers(0, 40))
def test_one_seed_of_accuracy_has_mcnemars_exact_p(ours: int, theirs: int):
    targets = np.zeros(200)
    one, other = np.zeros((2, 200))
    other[:ours], one[ours : ours + theirs] = 1, 1
    found = difference(made("accuracy", {"one": [one], "other": [other]}, targets), "one", "other")
    expected = stats.binomtest(ours, ours + theirs).pvalue if ours + theirs else 1.0
    assert exact_p([found.exchanged], found.value) == pytest.approx(expected)
    assert estimate([found]).p >= expected - 1e-9


@pytest.mark.parametrize("metric", FAST)
def test_few_differing_examples_are_all_exchanged(metric: str):
    """The distribution of exchanges is that of calling the metric on every exchange, and is symmetric."""
    of = drawn(metric, seeds=2)
    targets, first = of.runs["a", 0].targets, [of.runs["a", seed].predictions for seed in (0, 1)]
    second = [np.where(np.arange(len(targets)) < 4, np.roll(one, 1), one) for one in first]
    few = made(metric, {"a": first, "b": second}, targets)
    values, chances = difference(few, "a", "b").exchanged
    expected = []
    for swap in range(16):
        mask = np.array([swap >> i & 1 for i in range(4)] + [0] * (len(targets) - 4), dtype=bool)
        sides = [[np.where(mask, q, p), np.where(mask, p, q)] for p, q in zip(first, second)]
        expected.append(np.mean([METRICS[metric](p, targets) - METRICS[metric](q, targets) for p, q in sides]))
    for edge in {round(abs(value), 9) for value in expected}:
        share = np.mean(np.abs(expected) >= edge - 1e-9)
        assert chances[np.abs(values) >= edge - 1e-9].sum() == pytest.approx(share)
    assert chances.sum() == pytest.approx(1) and (values * chances).sum() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("metric", FAST)
def test_the_variance_over_test_examples_is_the_bootstraps(metric: str):
    of, chance = drawn(metric, examples=300), np.random.default_rng(1)
    (a, b), samples = [of.runs[m, 0].predictions for m in "ab"], chance.integers(0, 300, (2000, 300))
    gaps = of.metric.sampled(np.stack([a, b]), of.runs["a", 0].targets, samples)
    found = difference(of, "a", "b")
    assert found.examples_variance**0.5 == pytest.approx((gaps[0] - gaps[1]).std(), rel=0.2)
    if metric == "accuracy":  # up to 100 examples, exactly the paired t test's
        small = drawn(metric, examples=90)
        right = [small.runs[m, 0].predictions == small.runs["a", 0].targets for m in "ab"]
        gaps = right[0].astype(float) - right[1]
        assert difference(small, "a", "b").examples_variance == pytest.approx(gaps.var(ddof=1) / 90)


@pytest.mark.parametrize("freedom", [1, 2, 4])
@pytest.mark.parametrize("training", [0.0, 0.001, 1.0, 1000.0])
def test_the_tail_is_that_of_two_students_together(training: float, freedom: int):
    luck = np.random.default_rng(0)
    sums = luck.standard_t(59, 400_000) + training**0.5 * luck.standard_t(freedom, 400_000)
    for share in (0.5, 0.05):
        edge = float(np.quantile(np.abs(sums), 1 - share))
        assert tail(edge, 1.0, 60, training, freedom) == pytest.approx(share, rel=0.03)
    edge = half_width(0.05, 1.0, 60, training, freedom)
    assert tail(edge, 1.0, 60, training, freedom) == pytest.approx(0.05, rel=1e-3)
    alone = half_width(0.05, 0.0, 60, 1.0, freedom)
    assert alone == pytest.approx(stats.t.isf(0.025, freedom), rel=1e-4)


@pytest.mark.parametrize("metric", FAST)
def test_one_seed_is_never_real_and_the_other_way_round_is_the_mirror_image(metric: str):
    of = drawn(metric, seeds=1, skill=(0.99, 0.2), examples=200)
    assert not any(line.real for line in compare([of], ["a", "b"]).lines)
    there, back = (estimate([difference(of, *pair)]) for pair in (("a", "b"), ("b", "a")))
    assert there.covers == EXAMPLES and there.p < 0.01
    assert (back.value, back.low, back.high, back.p) == pytest.approx((-there.value, -there.high, -there.low, there.p))
    several = compare([drawn(metric, seeds=3, skill=(0.99, 0.2), examples=200)], ["a", "b"])
    assert [line.verdict for line in several.others] == ["real"] and several.others[0].difference.covers == BOTH
    assert several.reference == "a" and several.others[0].difference.value < 0, (
        "a gap below 0 is worse, also of an error"
    )


@pytest.mark.parametrize("metric", FAST)
def test_a_methods_own_interval_stays_within_the_metric(metric: str):
    low, high = METRICS[metric].low, METRICS[metric].high
    for seeds in (1, 2):
        for skill in (0.05, 0.6, 0.995):
            of = drawn(metric, seeds, 50, (skill, skill))
            found = own_estimate(own_metric(of, "a"), of.metric)
            assert low <= found.low <= found.value <= found.high <= high
    of = made("accuracy", {"a": [np.zeros(60)]}, np.zeros(60))
    assert own_estimate(own_metric(of, "a"), of.metric).low < 0.97, "sixty right answers do not show that all are"
    of = drawn("accuracy", 1, 90)
    peer = stats.binomtest(round(90 * of.values["a"][0]), 90).proportion_ci(method="wilson")
    found = own_estimate(own_metric(of, "a"), of.metric)
    assert (found.low, found.high) == (pytest.approx(peer.low, abs=4e-3), pytest.approx(peer.high, abs=4e-3))


@pytest.mark.parametrize("gaps", [[0.05, 0.04, 0.02, 0.07, 0.01], [0.01, 0.03]])
def test_without_predictions_the_interval_is_the_paired_t_test_and_nothing_is_judged(gaps: list[float]):
    of = seeds(one=[0.6 + gap for gap in gaps], other=[0.6] * len(gaps))
    found, peer = estimate([difference(of, "one", "other")]), stats.ttest_1samp(gaps, 0)
    low, high = peer.confidence_interval()
    assert (found.low, found.high, found.p) == (pytest.approx(low, rel=1e-3), pytest.approx(high, rel=1e-3), pytest.approx(peer.pvalue))  # fmt: skip
    assert found.covers == SEEDS and compare([of], ["one", "other"]).others[0].verdict == "not judged: no predictions"
    equal = seeds(one=[0.7] * 3, other=[0.6] * 3)
    assert estimate([difference(equal, "one", "other")]).covers == NO_INTERVAL, (
        "three equal gaps do not show a variance of 0"
    )


def seeds(**methods: list[float]) -> Sample:
    values = {method.replace("_", "-"): dict(enumerate(of)) for method, of in methods.items()}
    return Sample("task", METRICS["accuracy"], values)


def test_methods_that_are_alike_are_equal():
    of = drawn("accuracy", seeds=3)
    same = Sample(of.task, of.metric, dict.fromkeys("ab", of.values["a"]), {(m, s): of.runs["a", s] for m in "ab" for s in range(3)})  # fmt: skip
    found = compare([same], ["a", "b"])
    assert [
        (line.verdict, line.difference.value, line.difference.low, line.difference.high, line.difference.p)
        for line in found.others
    ] == [("equal", 0, 0, 0, 1)]
    assert found.summary == "a and b share the best test result"


def test_only_seeds_that_both_have_are_compared():
    of = Sample(
        "x", METRICS["accuracy"], {"one": {0: 0.5, 1: 0.9, 2: 0.6}, "other": {0: 0.4, 2: 0.4}, "third": {3: 0.1}}
    )
    assert difference(of, "one", "other").value == pytest.approx(0.15) and difference(of, "one", "other").seeds == 2
    lone = {line.method: line for line in compare([of], ["one", "other", "third"], "one").lines}["third"]
    assert lone.verdict == "no seed in common" and not lone.real
    errors = Sample("x", METRICS["rmse"], {"one": {0: 0.5}, "other": {1: 0.25}})
    assert difference(errors, "one", "other").value == -0.25, "below 0 is worse, also where no seed is shared"


def test_seeds_with_other_test_examples_are_independent_in_them():
    same, chance = drawn("accuracy", seeds=2, examples=100), np.random.default_rng(5)
    rows = []
    for seed in (0, 1):
        order = chance.permutation(100)
        rows += [
            (m, seed, same.runs[m, 0].predictions[order].tolist(), same.runs[m, 0].targets[order].tolist())
            for m in "ab"
        ]
    apart = make_sample("x", "accuracy", {m: {0: of[0], 1: of[0]} for m, of in same.values.items()}, rows)
    together = made("accuracy", {m: [same.runs[m, 0].predictions] * 2 for m in "ab"}, same.runs["a", 0].targets)
    assert difference(apart, "a", "b").examples_variance == pytest.approx(
        difference(together, "a", "b").examples_variance / 2
    )
    assert difference(apart, "a", "b").exchanged is None, "no two of them are the same example"


def test_the_largest_class_is_compared_like_a_method():
    targets = np.array([0] * 60 + [1] * 40)
    of = made("accuracy", {"a": [np.zeros(100, int)] * 2, "b": [targets] * 2}, targets)
    assert of.best_constant == {0: 0.6, 1: 0.6} and difference(of, "a", BEST_CONSTANT).value == 0
    assert of.best_constant_score == pytest.approx(0.6) and estimate([difference(of, "b", BEST_CONSTANT)]).low > 0
    of_f1 = made("f1", {"a": [targets] * 2, "always": [np.ones(100, int)] * 2}, targets)
    assert of_f1.best_constant == {0: pytest.approx(4 / 7), 1: pytest.approx(4 / 7)}, "always the second class"
    assert difference(of_f1, "always", BEST_CONSTANT).value == 0
    assert drawn("rmse").best_constant_score is None and drawn("spearman").best_constant == {}


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "mae"])
def test_one_test_example_gives_no_interval(metric: str):
    one = made(metric, {"a": [np.array([1])] * 2, "b": [np.array([0])] * 2}, np.array([1]))
    assert difference(one, "a", "b").examples_variance is None and estimate([difference(one, "a", "b")]).covers != BOTH


def test_large_numbers_are_not_counted_one_by_one():
    """Prices: every prediction in float32 is a whole number."""
    targets = np.arange(60) * 1e6 + 2e7
    of = made("mae", {"a": [targets + 1e6] * 2, "b": [targets + 3e6] * 2}, targets)
    assert difference(of, "a", "b").exchanged is None and difference(of, "a", "b").value == pytest.approx(2e6)


def test_a_perfect_score_has_the_interval_of_its_examples():
    """Wilson's: with every one of n examples right, n / (n + 1.96²) to 1."""
    targets = np.arange(1000) % 2
    all_right = own_estimate(own_metric(made("accuracy", {"a": [targets] * 2}, targets), "a"), METRICS["accuracy"])
    assert all_right.low == pytest.approx(1000 / (1000 + 1.96**2), abs=1e-6) and all_right.high == 1
    of = made("accuracy", {"a": [targets] * 2, "b": [np.zeros(1000, int)] * 2}, targets)
    assert compare([of], "ab").reference_line.score == all_right, "in tables too"


def test_a_constant_baseline_is_judged_by_the_best_constant_answer():
    """Of which class it names, by the training examples of a seed, the other method knows nothing: what is well above all
    constant answers is above it, and what is as good as the best of them is not, by whatever classes it named."""
    chance, targets = np.random.default_rng(0), np.repeat([0, 1, 2], [300, 150, 50])
    constant = [np.full(500, 1), np.full(500, 2)]
    good = [np.where(chance.random(500) < 0.9, targets, (targets + 1) % 3) for _ in range(2)]
    gap = compare(
        [made("accuracy", {"probe": good, "constant": constant}, targets)], ["probe", "constant"], "probe"
    ).lines[1]
    assert gap.real and gap.difference is not None and gap.difference.value < gap.difference.high < 0  # type: ignore[operator]
    unnamed = compare(
        [made("accuracy", {"probe": good, "tfidf": constant}, targets)], ["probe", "tfidf"], "probe"
    ).lines[1]
    assert not unnamed.real, "of any other method two seeds that differ say little"
    for turned in (["probe", "constant"], ["constant", "probe"]):
        alike = made("accuracy", {"probe": [np.zeros(500, int)] * 2, "constant": constant}, targets)
        assert not compare([alike], turned, turned[0]).lines[1].real
        assert (
            compare([made("accuracy", {"probe": good, "constant": constant}, targets)], turned, turned[0]).lines[1].real
        )
        half = np.where(np.arange(500) % 2, targets, (targets + 1) % 3)  # the best constant answer is better than that
        poor = compare([made("accuracy", {"probe": [half] * 2, "constant": constant}, targets)], turned, turned[0])
        assert not poor.lines[1].real, "that a third answer is better than the probe says nothing of these two"
        of = made("macro_f1", {"probe": good, "constant": constant}, targets)
        plain = estimate([difference(of, turned[1], turned[0])])
        assert compare([of], turned, turned[0]).lines[1].difference == plain, "for accuracy alone"


def test_texts_and_lists_are_compared_too():
    """A metric without a batch form, over texts; predictions of unequal length; a metric that is not known here."""
    targets = [f"a text of {i % 7} words" for i in range(60)]
    wrong = [text if i % 3 else "another" for i, text in enumerate(targets)]
    worse = [text if i % 3 == 1 else "another" for i, text in enumerate(targets)]
    rows = [(m, s, said, targets) for m, said in (("a", wrong), ("b", worse)) for s in (0, 1)]
    values = {"a": {0: 2 / 3, 1: 2 / 3}, "b": {0: 1 / 3, 1: 1 / 3}}
    found = compare([make_sample("x", "exact_match", values, rows)], ["a", "b"])
    assert found.others[0].verdict == "real"
    ragged = [("a", 0, [[1], [0, 1], [1]], [[1], [0, 1], [0]])]
    assert make_sample("x", "accuracy", {"a": {0: 2 / 3}}, ragged).runs["a", 0].predictions.dtype == object
    huge = [(m, s, [1e4 * (s + 1)] * 4, [10.0] * 4) for m in "ab" for s in (0, 1)]  # sums of losses, and tokens
    beyond = {m: {0: 1e304, 1: 1e300} for m in "ab"} | {"b": {0: 1e10, 1: 1e20}}
    assert (
        compare([make_sample("x", "perplexity", beyond, huge)], ["a", "b"]).others[0].verdict.startswith("not judged")
    )
    unknown = compare([make_sample("x", "of a plug-in", values, rows)], ["a", "b"])
    assert unknown.others[0].difference.covers == NO_INTERVAL


def test_claims_are_judged_by_their_intervals_and_never_from_one_seed():
    names = dict(zip("abcde", ("unipelt-apl", "full", "adapter", "prefix", "lora")))

    def named(skill: tuple[float, ...], seeds: int = 3, luck: int = 0) -> Sample:
        of = drawn("accuracy", seeds, 400, skill, luck)
        return Sample(of.task, of.metric, {names[m]: v for m, v in of.values.items()}, {(names[m], s): v for (m, s), v in of.runs.items() if m in names})  # fmt: skip

    above, below = named((0.95, 0.7, 0.6, 0.5, 0.75)), named((0.3, 0.7, 0.6, 0.5, 0.75), luck=1)

    def verdicts(*samples: Sample) -> list[str]:
        return [claim.verdict for claim in claims(samples) if claim.text.startswith("unipelt-apl")]

    assert verdicts(above, above) == ["yes", "yes", "yes"] and verdicts(below) == ["no", "no", "no"]
    assert verdicts(above, below)[2] == "no", "the worst on one task is the worst once"
    assert verdicts(named((0.95, 0.7, 0.6, 0.5, 0.75), 1)) == ["not decided"] * 3
    assert claims([]) == []
    assert claims([replace(above, task="EdinburghNLP/xsum")])[-1].between.endswith(
        "prefix, the lowest other, on EdinburghNLP/xsum, the least sure task"
    )
    best_part = estimate([difference(above, "unipelt-apl", "lora")])
    assert claims([above])[0].number == best_part.times(100), "lora is the best part"
    less = Sample("x", above.metric, {m: v for m, v in above.values.items() if m not in ("prefix", "lora")}, above.runs)
    assert [claim.verdict for claim in claims([less])] == ["yes", "yes"], "without the parts two claims are left"
    twice = Sample("x", above.metric, above.values | {"lora(r=4)": above.values["lora"], "lora(r=16)": above.values["lora"]}, above.runs)  # fmt: skip
    del twice.values["lora"]
    assert len(claims([twice])) == 2, "which of the two sets of options is meant is not known"


def answers_wrong_in(*wrong: int) -> Sample:
    """A mixture with as many wrong answers, one number a seed, beside a method without any."""
    mixture, right = [(np.arange(200) < n).astype(int) for n in wrong], np.zeros(200, int)
    return made("accuracy", {"unipelt-apl": mixture, "lora": [right] * len(wrong)}, right)


def test_the_worst_on_one_of_several_tasks_is_judged_as_one_of_several():
    """A p of 0.03 is enough for one task, not for the lower of two; the number that is shown is that task's."""
    best = made("accuracy", {"unipelt-apl": [np.zeros(200, int)] * 3, "lora": [(np.arange(200) < n).astype(int) for n in (60, 61, 62)]}, np.zeros(200, int))  # fmt: skip
    worst = replace(answers_wrong_in(14, 20, 26), task="other")
    assert [claims([of])[-1].verdict for of in (best, worst)] == ["yes", "no"]
    for tasks in ([best, worst], [worst, best]):
        both = claims(tasks)[-1]
        assert both.verdict == "not decided" and both.number.value == pytest.approx(-10)
        assert both.between.endswith("on other, the least sure task")


def test_the_best_of_other_methods_has_the_least_error():
    of = Sample("x", METRICS["rmse"], {"mam": {0: 0.4}, "lora": {0: 0.3}, "full": {0: 0.5}})
    (claim,) = [one for one in claims([of]) if one.text == "mam is the best"]
    assert claim.number.value == pytest.approx(-0.1) and claim.between.startswith("mam and lora")


def test_every_pair_counts_where_test_results_choose_the_best():
    of = drawn("accuracy", 3, 200, (0.8, 0.79, 0.78, 0.6))
    free, given_one = compare([of], "abcd"), compare([of], "abcd", compare([of], "abcd").reference)
    for line in free.others:
        other = next(one for one in given_one.lines if one.method == line.method)
        assert line.difference == other.difference and line.corrected_p >= other.corrected_p
    first = min(free.others, key=lambda line: line.difference.p)
    assert first.corrected_p == pytest.approx(6 * first.difference.p) and first.corrected_p < 1


def test_an_average_over_tasks_has_the_variances_of_a_mean():
    """Of k independent numbers: their sum over k². The freedom is that of the tasks together, and a part that one task lacks is
    not known."""
    one = Difference(0.02, 4e-4, 60, 300, 9e-4, 3)
    other = Difference(0.06, 1e-4, 80, 400, 4e-4, 5)
    found = estimate([one, other])
    given = (5e-4 / 4, 60, 13e-4 / 4, 13e-4**2 / (9e-4**2 / 2 + 4e-4**2 / 4))
    half = half_width(0.05, *given)
    assert (found.value, found.low, found.high) == pytest.approx((0.04, 0.04 - half, 0.04 + half))
    assert (found.p, found.seeds, found.covers) == (pytest.approx(tail(0.04, *given)), 3, BOTH)
    assert estimate([one, replace(other, examples_variance=None)]).covers == SEEDS
    assert estimate([one, replace(other, training_variance=None, seeds=1)]).covers == EXAMPLES


def better_in(examples: int) -> Difference:
    """Two runs of 200 test examples, of which the first alone has this many right that the other has not."""
    return difference(
        made("accuracy", {"a": [np.zeros(200)], "b": [np.arange(200) < examples]}, np.zeros(200)), "a", "b"
    )


def test_the_interval_holds_0_where_the_exact_test_says_chance():
    """McNemar's p of five to none is 2 / 2⁵, where the variance of the examples alone says 0.03."""
    found, sure = estimate([better_in(5)]), estimate([better_in(6)])
    assert (found.p, found.low) == (pytest.approx(2 / 2**5), 0) and found.high > found.value
    assert (sure.p, sure.low > 0) == (pytest.approx(2 / 2**6), True)


def test_the_examples_of_several_tasks_are_exchanged_together():
    tasks = [better_in(3), better_in(4)]
    assert exact_p([task.exchanged for task in tasks], sum(task.value for task in tasks) / 2) == pytest.approx(2 / 2**7)


def test_a_methods_own_interval_is_in_the_unit_of_its_metric():
    """An error in cents has a hundred times the interval; a correlation r is judged as the share (r + 1) / 2."""
    error, share = Difference(0.4, 4e-4, 100, 300), Difference(0.8, 4e-4, 100, 300)
    cents = own_estimate(Difference(40.0, 4.0, 100, 300), METRICS["rmse"])
    plain = own_estimate(error, METRICS["rmse"])
    assert (cents.low, cents.high) == pytest.approx((100 * plain.low, 100 * plain.high)) and plain.low > 0.3
    correlation = own_estimate(Difference(0.6, 16e-4, 100, 300), METRICS["matthews"])
    of_share = own_estimate(share, METRICS["accuracy"])
    assert (correlation.low, correlation.high) == pytest.approx((2 * of_share.low - 1, 2 * of_share.high - 1))
    assert of_share.low == pytest.approx(0.758, abs=2e-3) and of_share.high == pytest.approx(0.837, abs=2e-3)


def test_an_interval_turned_round_begins_at_its_end():
    found = Estimate(2.0, 1.0, 4.0).times(-100)
    assert (found.value, found.low, found.high) == (-200, -400, -100)


def test_holm():
    assert holm([0.01, 0.04, None, 0.03]) == [pytest.approx(0.03), pytest.approx(0.06), None, pytest.approx(0.06)]
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([0.01], 6) == [pytest.approx(0.06)]


@pytest.mark.parametrize("metric", false_claims.METRIC_NAMES)
def test_chance_is_rarely_called_real(metric: str):
    """The short form of benchmarks/false_claims.py; 5 % and two and a half standard errors."""
    case = false_claims.Case(metric, 50, 3, True, training=0.06)
    assert false_claims.called_real(case, 100) <= 0.05 + 2.5 * (0.05 * 0.95 / 100) ** 0.5


def test_chance_is_rarely_called_real_with_two_seeds_that_differ_much():
    """Where Welch's approximation calls one in ten real."""
    case = false_claims.Case("accuracy", 300, 2, True, training=0.06)
    assert false_claims.called_real(case, 400) <= 0.05 + 2.5 * (0.05 * 0.95 / 400) ** 0.5


def test_a_large_difference_is_found():
    case = false_claims.Case("accuracy", 300, 5, True, better=0.15)
    assert false_claims.called_real(case, 30) > 0.8


def test_the_seeds_of_a_comparison_are_those_that_two_methods_share():
    of = Sample("x", METRICS["accuracy"], {"a": {0: 0.5, 1: 0.6, 2: 0.6}, "b": {0: 0.4, 2: 0.4}, "c": {1: 0.4}})
    found = compare([of], ["a", "b", "c"])
    assert found.seeds_text == "1 to 2 seeds" and found.reference_line.score.seeds == 3
    assert headline({100: found}).endswith("(2 seeds)."), "the next method's"
    apart = Sample("x", METRICS["accuracy"], {"a": {0: 0.5}, "b": {1: 0.4}})
    expected = "it has no seed in common with the next method, so its lead is not judged."
    assert headline({100: compare([apart], "ab")}) == f"K = 100: a has the best test result; {expected}"
