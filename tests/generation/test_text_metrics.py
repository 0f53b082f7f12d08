"""Metrics of generated text, each against an independent calculation."""

import math

import pytest

from unipelt.tasks.metrics import METRICS
from unipelt.tasks.text_metrics import TEXT_METRICS, exact_match, sentences

pytest.importorskip("rouge_score")
pytest.importorskip("sacrebleu")

TARGETS = ["The cat sat on the mat. It was warm.", "Return the number of words.", "a b c d e f"]


@pytest.mark.parametrize("name", TEXT_METRICS)
def test_a_metric_is_100_for_the_target_0_for_other_words_and_between_for_some(name: str):
    metric = METRICS[name]
    assert metric(TARGETS, TARGETS) == pytest.approx(100.0)
    assert metric(["", "", ""], TARGETS) == pytest.approx(0.0, abs=1e-6)
    some = metric(["The cat sat on a mat. It was.", "Return a number of words.", "a b c x e f"], TARGETS)
    assert metric.low < some < metric.high == 100.0


def test_rouge_is_the_mean_f_measure_of_shared_words_without_stemming():
    def f(shared: int, found: int, right: int) -> float:
        return 200 * shared / (found + right)

    found, right = ["the cats sat down", "one"], ["the cat sat here now", "two"]
    assert METRICS["rouge1"](found, right) == pytest.approx(f(2, 4, 5) / 2)  # cats is not cat
    assert METRICS["rouge2"](found, right) == 0.0
    assert METRICS["rougeL"](["b a c"], ["a b c"]) == pytest.approx(f(2, 3, 3))


def test_rouge_lsum_compares_sentences_in_any_order():
    right, found = "One two three. Four five six.", "Four five six. One two three."
    assert sentences(right).split("\n") == ["One two three.", "Four five six."]
    assert METRICS["rougeLsum"]([found], [right]) == pytest.approx(100.0)
    assert METRICS["rougeL"]([found], [right]) == pytest.approx(50.0)


def test_bleu_is_the_geometric_mean_of_clipped_precisions_over_the_corpus():
    found, right = ["a b c d x", "e f g h"], ["a b c d e", "e f g h"]
    precisions = [8 / 9, 6 / 7, 4 / 5, 2 / 3]  # n-grams of both, together
    assert METRICS["bleu"](found, right) == pytest.approx(100 * math.prod(precisions) ** 0.25)
    short = METRICS["bleu"](["a b c d"], ["a b c d e f"])
    assert short == pytest.approx(100 * math.exp(1 - 6 / 4))  # too short: the brevity penalty


def test_exact_match_and_perplexity():
    assert exact_match([" a\n", "b", "C"], ["a", "b", "c"]) == pytest.approx(2 / 3)
    losses, tokens = [2.0, 1.0], [1, 5]  # a long answer counts as often as it has tokens
    assert METRICS["loss"](losses, tokens) == pytest.approx(0.5)
    assert METRICS["perplexity"](losses, tokens) == pytest.approx(math.exp(0.5))
    assert METRICS["loss"].better(0.4, 0.5) and METRICS["rougeL"].better(50, 40)
