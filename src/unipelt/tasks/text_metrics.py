"""Metrics of generated text: ROUGE, BLEU and chrF as their authors' packages compute them, exact match, loss.

ROUGE: rouge-score without stemming (with it, ROUGE-L of one and the same text is several points higher), on English letters
and digits; of rougeLsum each sentence is a line. BLEU, chrF: sacrebleu with its defaults (13a tokens). All in 0 to 100.
"""

import math
import re
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from unipelt.errors import UserError

Texts = Sequence[str]
ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def _package(name: str) -> Any:
    """A module of a package that not everyone has. Raises UserError where it is not installed."""
    try:
        return import_module(name)
    except ImportError:
        package = name.split(".")[0].replace("_", "-")
        raise UserError(f"--metric: {package} is not installed; expected: pip install 'unipelt[generation]'") from None


def _rouge(name: str) -> Callable[[Texts, Texts], float]:
    def function(predictions: Texts, targets: Texts) -> float:
        scorer = _package("rouge_score.rouge_scorer").RougeScorer([name], use_stemmer=False)
        lines = sentences if name == "rougeLsum" else str
        values = [scorer.score(lines(target), lines(text))[name].fmeasure for text, target in zip(predictions, targets)]
        return 100.0 * math.fsum(values) / len(values)

    function.__doc__ = f"Mean F-measure of {name}, 0 to 100.          Lin 2004"
    return function


def sentences(text: str) -> str:
    """The text with a line for each sentence: rougeLsum compares lines."""
    return re.sub(r"(?<=[.!?])\s+", "\n", text.strip())


def bleu(predictions: Texts, targets: Texts) -> float:
    """Corpus BLEU, 0 to 100.          Papineni et al. 2002; Post 2018, arXiv:1804.08771"""
    return _package("sacrebleu").corpus_bleu(list(predictions), [list(targets)]).score


def chrf(predictions: Texts, targets: Texts) -> float:
    """chrF2 of characters, 0 to 100.          Popović 2015"""
    return _package("sacrebleu").corpus_chrf(list(predictions), [list(targets)]).score


def exact_match(predictions: Texts, targets: Texts) -> float:
    """Share of predictions that equal their targets; white space at both ends does not count."""
    return sum(prediction.strip() == target.strip() for prediction, target in zip(predictions, targets)) / len(targets)


def loss(predictions: Sequence[float], targets: Sequence[float]) -> float:
    """Nats per learned token, Σ losses / Σ tokens: an example's prediction is the sum of its tokens' losses, its target is
    their number."""
    return math.fsum(predictions) / math.fsum(targets)


def perplexity(predictions: Sequence[float], targets: Sequence[float]) -> float:
    """exp(loss)."""
    return math.exp(min(loss(predictions, targets), 700.0))  # larger values overflow float64


TEXT_METRICS: dict[str, Callable[[Texts, Texts], float]] = {
    **{name: _rouge(name) for name in ROUGE},
    "bleu": bleu,
    "chrf": chrf,
}
