"""Laws of the baselines: they learn what can be learnt, over every kind of task, and come back from their folder as they were."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cli.conftest import base_of, run, tiny_base  # noqa: F401
from scipy.sparse import csr_matrix
from scipy.special import softmax
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss
from tasks.kinds import KINDS
from threadpoolctl import threadpool_info, threadpool_limits

from unipelt.checkpoint.disk import ARRAYS, BASELINE, write_whole
from unipelt.data import Examples
from unipelt.errors import CheckpointError, UserError
from unipelt.tasks.calibration import surprise
from unipelt.tasks.linear import STRENGTHS, coordinates, logistic, ridge
from unipelt.tasks.registry import TASKS
from unipelt.train import baselines
from unipelt.train.baselines import (
    ANSWERING,
    FEATURES,
    fit_baseline,
    frozen_base,
    load_predictor,
    train_baselines,
    usual_baselines,
)
from unipelt.train.records import BASELINES, SETFIT, RunConfig
from unipelt.train.setup import DatasetCache

CPU = torch.device("cpu")


def test_every_baseline_has_its_features():
    assert (*FEATURES, *ANSWERING) == BASELINES


@pytest.mark.parametrize("kind", KINDS)
def test_a_baseline_predicts_from_its_folder_as_it_did(kind: str, tiny_base: str, tmp_path: Path):  # noqa: F811
    """Of every kind of task: as many as it offers; the same logits after a save, and the test metric is theirs."""
    path, cache, offered = KINDS[kind].write(tmp_path / "data.jsonl"), DatasetCache(), []
    for name in (one for one in FEATURES if one != SETFIT):  # which test_contrastive.py has
        config = RunConfig(model=tiny_base, task=str(path), method=name, **KINDS[kind].options)
        task, test = cache.task(config), cache.splits(config).test
        if FEATURES[name].refuses(task):
            with pytest.raises(UserError, match=f"{name}: {kind} predicts no class or number of a whole text"):
                next(train_baselines([config], CPU, cache))
            continue
        offered.append(name)
        (finished,) = train_baselines([config], CPU, cache)
        assert finished.files is not None
        write_whole(tmp_path / name, finished.files)
        again = load_predictor(str(tmp_path / name))
        logits, encoded = again.outputs(test)
        fitted = fit_baseline(
            name, task, cache.splits(config).train.take(range(12)), again.features.frozen if name == "probe" else None
        )  # fewer examples than features
        write_whole(tmp_path / "few", fitted.files({}))
        assert np.array_equal(load_predictor(str(tmp_path / "few")).linear.weight, fitted.linear.weight)
        predictions = again.task.decide(logits, encoded)
        assert task.score(predictions, test.targets)[task.metric] == finished.record.test
        assert finished.record.parameters == {name: again.parameters}
        assert again.task.describe() == finished.record.description
        assert getattr(again.task, "temperature", None) == finished.record.temperature
    assert offered == (["probe"] if kind == "token-classification" else usual_baselines(task))
    assert set(KINDS) <= set(TASKS)


def test_the_probe_reads_what_the_head_reads(tiny_base: str, tmp_path: Path):  # noqa: F811
    """A head with the probe's weights gives the probe's logits."""
    from unipelt.inject.heads import output_of
    from unipelt.tasks.batches import Encoded
    from unipelt.train.forward import predict

    path, cache = KINDS["classification"].write(tmp_path / "data.jsonl"), DatasetCache()
    config = RunConfig(model=tiny_base, task=str(path), method="probe", pooling="mean")
    (finished,) = train_baselines([config], CPU, cache)
    assert finished.files is not None
    write_whole(tmp_path / "probe", finished.files)
    probe, test = load_predictor(str(tmp_path / "probe")), cache.splits(config).test
    model = probe.features.frozen.predictor.model  # type: ignore[attr-defined]
    head = output_of(model)
    assert head is not None
    with torch.no_grad():
        head.weight[0].copy_(torch.from_numpy(probe.linear.weight))
        head.bias[0].copy_(torch.from_numpy(probe.linear.bias))  # type: ignore[index]
    encoded: Encoded = probe.task.encode(probe.features.frozen.predictor.tokenizer, test, 128)  # type: ignore[attr-defined]
    (logits,) = predict(model, probe.features.frozen.predictor.tokenizer, [encoded])  # type: ignore[attr-defined]
    torch.testing.assert_close(logits.double(), probe.outputs(test)[0].double(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["tfidf", "probe"])
def test_of_a_pair_both_texts_and_their_difference_are_read(name: str, tiny_base: str):  # noqa: F811
    """Of two equal texts the difference is 0; the other way round, their parts change places."""
    texts = ["word1 word2", "word3 word4 word5", "word6 word1"]
    task = DatasetCache().task(RunConfig(task="docstrings"))
    frozen = frozen_base(RunConfig(model=tiny_base, task="docstrings"), task, CPU, 32) if name == "probe" else None
    kind = FEATURES[name].fit(Examples(inputs={"text": texts, "text_pair": texts}), frozen)
    dense = [np.asarray(found.todense() if name == "tfidf" else found) for found in (
        kind(Examples(inputs={"text": texts, "text_pair": texts})),
        kind(Examples(inputs={"text": texts, "text_pair": texts[::-1]})),
        kind(Examples(inputs={"text": texts[::-1], "text_pair": texts})),
    )]  # fmt: skip
    width = dense[0].shape[1] // (3 if name == "tfidf" else 4)
    one, other, difference = (dense[0][:, place * width : (place + 1) * width] for place in range(3))
    assert np.array_equal(one, other) and not difference.any() and one.any()
    assert np.allclose(dense[1][:, :width], dense[2][:, width : 2 * width]) and dense[1][0, 2 * width : 3 * width].any()
    one, other = dense[1][:, :width], dense[1][:, width : 2 * width]
    product = one * other if name == "probe" else (one * other).sum(axis=1, keepdims=True)  # of unit length: the cosine
    assert np.allclose(dense[1][:, 3 * width :], product) and product.any()
    assert np.allclose(dense[1][:, 2 * width : 3 * width], abs(one - other))


def test_a_folder_that_was_changed_is_refused(tiny_base: str, tmp_path: Path):  # noqa: F811
    path, cache = KINDS["classification"].write(tmp_path / "data.jsonl"), DatasetCache()
    config = RunConfig(model=tiny_base, task=str(path), method="tfidf")
    (finished,) = train_baselines([config], CPU, cache)
    assert finished.files is not None
    said = json.loads(finished.files[BASELINE])
    for changed, expected in (
        ({ARRAYS: finished.files[ARRAYS][:-1]}, "not the file that baseline.json names"),
        ({BASELINE: json.dumps(said | {"vocabulary": said["vocabulary"][1:]}).encode()}, "does not fit its weights"),
        (
            {BASELINE: json.dumps(said | {"vocabulary": 2 * said["vocabulary"][:1] + said["vocabulary"][2:]}).encode()},
            "does not fit",
        ),
        ({BASELINE: json.dumps(said | {"format": 0}).encode()}, "this version reads format"),
        ({BASELINE: json.dumps(said | {"task": {}}).encode()}, "task.kind is None"),
    ):
        write_whole(tmp_path / "run", finished.files | changed)
        with pytest.raises(CheckpointError, match=expected):
            load_predictor(str(tmp_path / "run"))


def test_a_probe_of_another_base_or_tokenizer_is_refused(tiny_base: str, tmp_path: Path):  # noqa: F811
    config, cache = (
        RunConfig(model=tiny_base, task=str(KINDS["classification"].write(tmp_path / "a.jsonl"))),
        DatasetCache(),
    )
    task, train = cache.task(config), cache.splits(config).train.take(range(9))
    files = fit_baseline("probe", task, train, frozen_base(config, task, CPU, 32)).files({})
    said = json.loads(files[BASELINE])
    for name in ("base", "tokenizer"):
        changed = {BASELINE: json.dumps(said | {"base": said["base"] | {name: "another"}}).encode()}
        write_whole(tmp_path / "run", files | changed)
        with pytest.raises(CheckpointError, match=rf"its {'weights' if name == 'base' else name} differ"):
            load_predictor(str(tmp_path / "run"))


def test_a_word_that_was_cut_off_has_no_state(tiny_base: str, tmp_path: Path):  # noqa: F811
    config = RunConfig(model=tiny_base, task=str(KINDS["token-classification"].write(tmp_path / "a.jsonl")))
    task, words = DatasetCache().task(config), ["word1", "word2", "word3"] * 7
    (states,) = frozen_base(config, task, CPU, 9)({"tokens": [words]})
    read = states.any(axis=1)
    assert len(states) == 21 and read.tolist() == sorted(read.tolist(), reverse=True) and 0 < read.sum() < 9


def test_so_many_examples_or_words_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(baselines, "MOST_EXAMPLES", 10)
    tags = [["O"] * count for count in (4, 6, 1)]
    for kind, targets, read in (("classification", [0] * 30, 10), ("token-classification", tags, 2)):
        task = DatasetCache().task(RunConfig(task=str(KINDS[kind].write(tmp_path / f"{kind}.jsonl"))))
        train = Examples(inputs={"text": ["a"] * len(targets)}, targets=targets)
        assert baselines._examples_read(task, train) == read
    assert baselines._examples_read(task, replace(train, targets=[["O"] * 20, ["O"]], inputs={"text": ["a"] * 2})) == 1


def test_linear_models_find_a_linear_truth():
    """On separable classes and exact numbers, whatever the scale of each feature; a class without examples is never named."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(200, 6)) * [1, 10, 1e-3, 1, 1, 100] + 5
    folds = (np.arange(200) % 5).tolist()
    truth = x @ [1, 0.1, 300, 0, 0, 0.01]
    found = ridge(x, truth, folds)
    assert np.corrcoef(found(x)[:, 0], truth)[0, 1] > 0.9999
    classes = np.digitize(truth, np.quantile(truth, [0.3, 0.6]))
    three = logistic(x, classes, 4, folds)
    assert (three(x).argmax(axis=1) == classes).mean() > 0.95 and (three(x).argmax(axis=1) < 3).all()
    rare = np.where(np.arange(200) < 4, 1, 0)
    assert logistic(np.zeros((200, 0)), rare, 2, folds)(np.zeros((1, 0))).argmax() == 0
    few = logistic(np.where(rare[:, None] == 1, 1.0, 0.0) + 0 * x, rare, 2, folds, balanced=True)
    assert few(np.where(rare[:, None] == 1, 1.0, 0.0) + 0 * x).argmax(axis=1).tolist() == rare.tolist()
    assert few.held_out is not None and np.flatnonzero(np.isnan(few.held_out[:, 0])).tolist() == [0, 1, 2, 3], (
        "a class of fewer examples than folds trains in every fold"
    )


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("balanced", [False, True])
def test_probabilities_are_scikit_learns_at_the_strength_of_least_loss_over_all_folds(classes: int, balanced: bool):
    chosen = []
    for seed in range(2):
        draw = np.random.default_rng(seed)
        x, folds = draw.normal(size=(60, 5)), np.arange(60) % 3
        y = np.digitize(x[:, 0] + draw.normal(size=60), [0.8, 1.5][: classes - 1])
        scaled = (x - x.mean(axis=0)) / x.std(axis=0) / 5**0.5
        models = [
            LogisticRegression(C=c, class_weight="balanced" if balanced else None, max_iter=500) for c in STRENGTHS
        ]
        losses = [
            sum(log_loss(y[folds == fold], model.fit(scaled[folds != fold], y[folds != fold]).predict_proba(scaled[folds == fold]), labels=range(classes), normalize=False) for fold in range(3))
            for model in models
        ]  # fmt: skip
        best = models[int(np.argmin(losses))].fit(scaled, y)
        found = logistic(x, y.tolist(), classes, folds.tolist(), balanced=balanced)(x)
        np.testing.assert_allclose(softmax(found, axis=1), best.predict_proba(scaled), atol=2e-3)
        chosen.append(best.C)
    assert {*chosen} & {*STRENGTHS[1:-1]}


def test_ridge_is_scikit_learns_at_the_strength_of_least_error_over_all_folds():
    chosen = []
    for noise in (0.1, 1.0, 10.0, 100.0):
        draw = np.random.default_rng(int(10 * noise))
        x, folds = draw.normal(size=(60, 5)), np.arange(60) % 3
        y, scaled = x[:, 0] + noise * draw.normal(size=60), (x - x.mean(axis=0)) / x.std(axis=0) / 5**0.5
        models = [Ridge(1 / strength) for strength in STRENGTHS]
        errors = [
            sum(((model.fit(scaled[folds != fold], y[folds != fold]).predict(scaled[folds == fold]) - y[folds == fold]) ** 2).sum() for fold in range(3))
            for model in models
        ]  # fmt: skip
        best = models[int(np.argmin(errors))].fit(scaled, y)
        np.testing.assert_allclose(ridge(x, y, folds.tolist())(x)[:, 0], best.predict(scaled), atol=1e-6)
        chosen.append(best.alpha)
    assert len({*chosen}) > 1


def test_linear_models_are_fitted_by_one_thread(monkeypatch: pytest.MonkeyPatch):
    """On a busy machine threads that wait for each other took 50 times as long; afterwards there are as many as before."""
    threads: list[int] = []

    def number() -> int:
        return max(one["num_threads"] for one in threadpool_info())

    with threadpool_limits(2):
        for model, fit in ((LogisticRegression, logistic), (Ridge, ridge)):
            plain = model.fit
            monkeypatch.setattr(model, "fit", lambda *given, plain=plain: threads.append(number()) or plain(*given))
            x = np.random.default_rng(0).normal(size=(20, 3))
            fit(x, [0, 1] * 10, *([2] if fit is logistic else []), [0, 1] * 10)
        assert set(threads) == {1} and number() == 2


@pytest.mark.parametrize("width", [5, 300])
def test_coordinates_say_as_much_to_a_regularised_model(width: int):
    """The same predictions and weights as from the features themselves, sparse or not, with examples that occur twice."""
    draw = np.random.default_rng(1)
    x = draw.normal(size=(40, width)) * (draw.random((40, width)) < 0.2)
    x[20:] = x[:20] * draw.choice([1, -1], size=(20, 1))
    y = draw.integers(0, 3, size=40)
    for features in (x, csr_matrix(x)):
        few, back = coordinates(features)
        assert few.shape[1] <= min(20, width) if width > 40 else few is features
        for strength in (0.01, 1.0, 100.0):  # where the regularisation is weaker still, the solver's own error is seen
            for model in (Ridge(1 / strength), LogisticRegression(C=strength, max_iter=5000, tol=1e-8)):
                plain, ours = clone(model).fit(features, y), clone(model).fit(few, y)
                weight = back(np.atleast_2d(ours.coef_))
                np.testing.assert_allclose(weight, np.atleast_2d(plain.coef_), atol=1e-4 * np.abs(plain.coef_).max())


@pytest.mark.parametrize("kind", ["classification", "multi-label"])
def test_a_baseline_is_calibrated_by_examples_that_its_models_did_not_see(kind: str, tmp_path: Path):
    """Its temperature fits the held-out folds better than any other; nothing that was trained on takes part."""
    path, cache = KINDS[kind].write(tmp_path / "data.jsonl"), DatasetCache()
    config = RunConfig(task=str(path), method="tfidf", **KINDS[kind].options)
    task, train = cache.task(config), cache.splits(config).train
    one = fit_baseline("tfidf", task, train, None)
    held_out, best = one.linear.held_out, one.task.temperature  # type: ignore[attr-defined]
    assert held_out is not None and best != 1 and np.isfinite(held_out).all()
    assert np.abs(held_out - one.linear(one.features(train))).max() > 0.01
    targets = np.array(train.targets)
    losses = [surprise(held_out / t, targets).sum() + np.log(t) ** 2 / 2 for t in (best, best * 1.1, best / 1.1, 1.0)]
    assert min(losses) == losses[0]


def test_what_a_baseline_lacks_is_said(tiny_base: str, run, tmp_path: Path):  # noqa: F811
    path, cache = KINDS["classification"].write(tmp_path / "data.jsonl"), DatasetCache()
    config = RunConfig(model=tiny_base, task=str(path), method="constant")
    (finished,) = train_baselines([config], CPU, cache)
    write_whole(tmp_path / "run", finished.files or {})
    merged = tmp_path / "merged"
    assert (
        "a baseline, which tunes nothing; expected a run of" in run("export", tmp_path / "run", "--merged", merged).line
    )
    assert "--gates: this run has no gates" in run("predict", tmp_path / "run", "--data", path, "--gates").line
    said = run("predict", tmp_path / "run", "--data", path, "--proba")
    assert said.code == 0 and "p(a)" in said.out
