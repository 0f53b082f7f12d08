"""`unipelt train --ensemble N`: runs on the same examples, which predict together by the mean of their probabilities."""

import csv
import json
import math
from pathlib import Path
from statistics import fmean

import pytest
import torch

from unipelt.data import Columns
from unipelt.tasks.classification import Classification
from unipelt.tasks.multi_label import MultiLabel
from unipelt.tasks.regression import Regression
from unipelt.tasks.token_classification import TokenClassification
from unipelt.train.predictor import Predictor

COLUMNS = Columns(text="text", label="label")


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


@pytest.mark.parametrize("kind", [Classification, MultiLabel, TokenClassification])
def test_the_average_is_that_of_probabilities(kind):
    """Not of logits: two runs that are sure of the opposite leave no class surer than the doubt of both."""
    task = kind(name="words", metric=kind.metrics(("a", "b"))[0], columns=COLUMNS, labels=("a", "b"))
    one, other = torch.tensor([[9.0, 0.0, 5.0], [1.0, 2.0, 5.0]]), torch.tensor([[-3.0, 0.0, 5.0], [1.0, 2.0, 5.0]])
    if kind is TokenClassification:
        one, other = one[:, None], other[:, None]
    probability = torch.sigmoid if kind is MultiLabel else lambda logits: logits.softmax(dim=-1)
    expected = (probability(one[..., :2].double()) + probability(other[..., :2].double())) / 2
    torch.testing.assert_close(probability(task.average([one, other])), expected)


def test_numbers_are_averaged():
    task = Regression(name="stars", metric="spearman", columns=COLUMNS)
    assert task.average([torch.tensor([[1.0], [4.0]]), torch.tensor([[2.0], [6.0]])]).tolist() == [[1.5], [5.0]]


def test_runs_predict_together_what_they_say_on_average(run, train_words, unlabelled: Path, tmp_path: Path):
    out = tmp_path / "runs"
    said = run(*train_words(out, "lora"), "--ensemble", 3, "--seed", 4)
    assert said.code == 0, said.err
    assert "mean of 3 runs' predictions" in said.out and said.err.count(": finished, validation accuracy") == 3
    members = [out / f"seed-{seed}" for seed in (4, 5, 6)]
    records = [json.loads((folder / "run.json").read_text()) for folder in (out, *members)]
    assert records[0]["members"] == [folder.name for folder in members]
    assert len({json.dumps(record["examples"]) for record in records}) == 1, "no run may see another's test examples"
    first = [Predictor.load(str(folder)) for folder in members]
    together = Predictor.load(str(out), ensembles=True)
    examples = first[0].read(str(unlabelled), text=None, pair=None)
    encoded = together.task.encode(together.tokenizer, examples, together.max_length)
    each = torch.stack([one.logits(encoded).softmax(dim=-1) for one in first])
    assert each.std(dim=0).max() > 1e-3, "the runs are one run"
    torch.testing.assert_close(together.logits(encoded).softmax(dim=-1).float(), each.mean(dim=0), rtol=1e-4, atol=1e-5)

    rows = table(run("predict", out, "--data", unlabelled, "--proba").out)
    assert len(rows) == 9 and all(
        math.isclose(float(row["p(yes)"]) + float(row["p(no)"]), 1, abs_tol=1e-5) for row in rows
    )
    hits = [one == right for one, right in zip(records[0]["predictions"], records[0]["targets"])]
    assert records[0]["test"] == pytest.approx(fmean(hits))

    again = run(*train_words(out, "lora"), "--ensemble", 3, "--seed", 4)
    assert again.code == 0 and "already finished, nothing trained" in again.err
    assert (
        f"--out {out}: holds an ensemble of 3 runs" in run(*train_words(out, "lora"), "--ensemble", 2, "--seed", 4).line
    )
    assert f"--out {out}: holds an ensemble of 3 runs" in run(*train_words(out, "lora"), "--seed", 4).line
    refused = run("export", out, "--merged", tmp_path / "merged").line
    assert f"an ensemble of 3 runs, and one is expected; name it, such as {members[0]}" in refused
    assert run("export", members[0], "--peft", tmp_path / "peft").code == 0, "each is a run by itself"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--ensemble", 0], "--ensemble 0: expected 2 to 64 runs"),
        (["--ensemble", 2, "--method", "full"], "--ensemble 2: full tunes the base itself"),
        (
            ["--ensemble", 2, "--kind", "generation"],
            "--ensemble: texts cannot be averaged; leave --ensemble out and train one run",
        ),
    ],
)
def test_what_has_no_mean_is_refused_before_anything_is_trained(more, expected: str, run, train_words, tmp_path: Path):
    out = tmp_path / "runs"
    method = "full" if "full" in more else "lora"
    more = more[:2] if method == "full" else more
    assert expected in run(*train_words(out, method), *more).line
    assert not list(out.glob("*/*"))
