"""Laws over the registry of tasks: a new kind is one entry in kinds.py, and every law runs over it."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
import transformers
from tasks.kinds import KINDS, WORDS
from transformers import AutoConfig, PreTrainedTokenizerFast

from unipelt import data
from unipelt.errors import CheckpointError, DataError
from unipelt.tasks.batches import Part, model_inputs
from unipelt.tasks.metrics import METRICS
from unipelt.tasks.registry import TASKS, load, task_of

CPU = torch.device("cpu")
EVERY = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="session", params=["BertPreTokenizer", "WhitespaceSplit"])
def tokenizer(request) -> PreTrainedTokenizerFast:
    """The second reads a special token that stands alone in a text as a word of its vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    words = {name: number for number, name in enumerate([*special, *WORDS, "[", "]", "SEP"])}
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = getattr(pre_tokenizers, request.param)()
    inner.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    names = dict(zip(("pad_token", "cls_token", "sep_token", "unk_token", "mask_token"), special))
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def loaded(kind: str, path, labels: int = 3):
    task, dataset = load(KINDS[kind].write(path / f"{kind}-{labels}.jsonl", labels=labels), **KINDS[kind].options)
    return task, dataset.train


def logits_of(encoded, runs: int, block: int, width: int, outputs: int, tokens: bool) -> torch.Tensor:
    shape = (runs, block, width, outputs) if tokens else (runs, block, outputs)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_every_kind_is_registered_and_tried():
    assert TASKS.keys() == KINDS.keys() | {"generation"}  # whose laws need a language model: tests/generation
    assert all(name in METRICS for task in TASKS.values() for name in task.metrics(("a", "b")))


@EVERY
def test_a_file_is_recognised_and_its_description_comes_back(kind, tmp_path):
    task, train = loaded(kind, tmp_path)
    assert task.kind == kind and len(train) == 60
    description = json.loads(json.dumps(task.describe()))
    assert task_of(description) == task.in_target_units()
    for broken in ({"labels": [1]}, {"columns": {"a": "b"}}, {"kind": "none"}, {"other": 1}, {"columns": None}):
        with pytest.raises(CheckpointError):
            task_of(description | broken)


@EVERY
@pytest.mark.parametrize("counts", [(3, 3), (2, 5)])
def test_the_loss_of_a_run_in_a_fleet_is_its_loss_alone(kind, counts, tmp_path, tokenizer):
    """Also where label counts differ: outputs beyond a run's own change nothing and get no gradient."""
    parts = []
    for labels, indices in zip(counts, ([0, 5, 7, 30], [2, 4])):
        task, train = loaded(kind, tmp_path, labels)
        task = task.fit(train.targets, bias=True)
        parts.append(Part(task, task.encode(tokenizer, train, 64), indices))
    together = type(task).collate(parts, tokenizer, CPU)
    outputs, width = max(part.task.outputs for part in parts), together.inputs["input_ids"].shape[1]
    logits = logits_of(None, 2, 4, width, outputs, not task.pooled).requires_grad_()
    losses = task.loss(logits, together)
    losses.sum().backward()
    for run, part in enumerate(parts):
        alone = type(task).collate([part], tokenizer, CPU)
        length, own = alone.inputs["input_ids"].shape[1], part.task.outputs
        cut = logits[run : run + 1, : len(part.indices)].detach()
        cut = (cut if task.pooled else cut[:, :, :length])[..., :own].clone().requires_grad_()
        expected = task.loss(cut, alone)
        expected.sum().backward()
        torch.testing.assert_close(losses[run], expected[0])
        grad = logits.grad[run, : len(part.indices)]
        torch.testing.assert_close((grad if task.pooled else grad[:, :length])[..., :own], cut.grad[0])
        assert not logits.grad[run, ..., own:].any() and not logits.grad[run, len(part.indices) :].any()


@EVERY
def test_a_loss_falls_where_decisions_are_right(kind, tmp_path, tokenizer):
    """Plain gradient descent on the logits reaches the best value of the task's own metric: targets and decisions agree."""
    task, train = loaded(kind, tmp_path)
    fitted = task.fit(train.targets, bias=True)
    encoded = fitted.encode(tokenizer, train, 64)
    batch = type(task).collate([Part(fitted, encoded, range(len(train)))], tokenizer, CPU)
    logits = logits_of(None, 1, len(train), batch.inputs["input_ids"].shape[1], task.outputs, not task.pooled)
    logits.requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(200):
        optimizer.zero_grad()
        fitted.loss(logits, batch).sum().backward()
        optimizer.step()
    found = fitted.score(fitted.decide(logits.detach()[0], encoded), train.targets)
    metric = METRICS[task.metric]
    assert next(iter(found)) == task.metric and found[task.metric] > metric.high - 1e-3
    assert all(METRICS[name].low <= value <= METRICS[name].high for name, value in found.items())
    shown = task.output_columns(logits.detach()[0], encoded, probabilities=False)["prediction"]
    assert len(shown) == len(train) and json.dumps(shown)
    json.dumps(fitted.decide(logits.detach()[0], encoded))


@EVERY
def test_decisions_do_not_depend_on_padding_or_on_other_examples(kind, tmp_path, tokenizer):
    task, train = loaded(kind, tmp_path)
    encoded = task.encode(tokenizer, train, 64)
    config = AutoConfig.for_model("bert", **tiny.SIZES | {"vocab_size": len(tokenizer)}, num_labels=task.outputs)
    model = getattr(transformers, task.auto_class).from_config(config)
    tiny.randomise(model)
    model.double().eval()
    whole = model(**model_inputs([Part(task, encoded, range(len(train)))], tokenizer, CPU)[0]).logits
    together = task.decide(whole, encoded)
    for index in (0, 1, 2, 17):
        one = task.encode(tokenizer, train.take([index]), 64)
        alone = task.decide(model(**model_inputs([Part(task, one, [0])], tokenizer, CPU)[0]).logits, one)
        assert (
            alone == pytest.approx(together[index : index + 1])
            if kind == "regression"
            else alone == together[index : index + 1]
        )


@EVERY
def test_special_tokens_in_a_text_are_plain_text(kind, tmp_path, tokenizer):
    task, train = loaded(kind, tmp_path)
    written = json.loads(json.dumps(train.inputs).replace("word1", "[SEP]"))
    encoded = task.encode(tokenizer, replace(train, inputs=written), 64)
    assert any("[SEP]" in key for key in replace(train, inputs=written).keys)
    for ids in encoded.features["input_ids"]:
        assert ids.tolist().count(tokenizer.sep_token_id) == 1, "one at the end, none inside"


@EVERY
def test_examples_are_cut_to_the_shorter_of_both_limits(kind, tmp_path, tokenizer):
    task, train = loaded(kind, tmp_path)
    whole = max(task.encode(tokenizer, train, 64).lengths())
    cut = task.encode(tokenizer, train, whole - 2)
    assert max(cut.lengths()) == whole - 2 == cut.longest
    batch = type(task).collate([Part(task, cut, range(len(train)))], tokenizer, CPU)
    logits = logits_of(None, 1, len(train), batch.inputs["input_ids"].shape[1], task.outputs, not task.pooled)
    assert len(task.decide(logits[0], cut)) == len(train) and task.loss(logits, batch).isfinite().all()


@EVERY
def test_a_metric_is_chosen_among_those_of_the_task(kind, tmp_path):
    path = KINDS[kind].write(tmp_path / "a.jsonl")
    for name in TASKS[kind].metrics(("a", "b", "c")):
        task = load(path, metric=name, **KINDS[kind].options)[0]
        assert task.metric == name
    with pytest.raises(DataError, match=f"--metric wrong: a is {kind} and offers "):
        load(path, metric="wrong", **KINDS[kind].options)
    with pytest.raises(DataError, match="--kind clasification: did you mean 'classification'"):
        load(path, kind="clasification")


@EVERY
def test_targets_need_no_text_in_their_constant_prediction(kind, tmp_path):
    task, train = loaded(kind, tmp_path)
    constant = task.constant_prediction(train.targets)
    if constant is not None:
        found = task.score([constant] * len(train), train.targets)
        assert METRICS[task.metric].low <= found[task.metric] < METRICS[task.metric].high


def test_metrics_take_each_kinds_targets_when_examples_are_drawn(tmp_path):
    """As intervals are computed: by indexing predictions and targets with the same sample."""
    for kind in KINDS:
        task, train = loaded(kind, tmp_path)
        sample = np.random.default_rng(0).integers(0, len(train), len(train)).tolist()
        drawn = train.take(sample)
        value = task.score(drawn.targets, drawn.targets)[task.metric]
        assert METRICS[task.metric](np.array(drawn.targets[:1]), np.array(drawn.targets[:1])) is not None, "as an array"
        assert value == pytest.approx(METRICS[task.metric].high)


def test_labels_that_name_several_classes_are_noted_and_read_with_a_separator(tmp_path):
    path = tmp_path / "topics.csv"
    path.write_text("text,label\n" + "".join(f"text {i},{('a', 'b', 'a|b')[i % 3]}\n" for i in range(60)) + "last,\n")
    task, dataset = load(path, skip_empty=True)
    assert task.kind == "classification" and any("--label-separator '|'" in note for note in dataset.notes)
    task, dataset = load(path, label_separator="|")
    assert (task.kind, task.labels) == ("multi-label", ("a", "b"))
    assert dataset.train.targets[:3] == [[1, 0], [0, 1], [1, 1]] and dataset.train.targets[-1] == [0, 0]
    assert any("1 examples name no class" in note for note in dataset.notes)
    with pytest.raises(DataError, match=r"--label-separator '\|': topics is classification"):
        load(path, label_separator="|", kind="classification", skip_empty=True)


@pytest.mark.parametrize(
    ("labels", "advice"),
    [
        (("a,b", "b"), "--label-separator ','"), (("a; b", "b; c"), "--label-separator ';'"), (("['a', 'b']", "['b']"), "--kind multi-label"),
        (('["a", "b"]', '["b"]'), "--kind multi-label"), (("yes, sir", "no"), None), (("a-b", "b"), None),
    ],
)  # fmt: skip
def test_labels_that_may_be_several_are_noted_and_lists_are_read(labels, advice, tmp_path):
    path = tmp_path / "topics.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *((f"text {i}", labels[i % 2]) for i in range(60))])
    notes = load(path)[1].notes
    assert any(advice in note for note in notes) if advice else not any("read as one class" in note for note in notes)
    if labels[0].startswith("["):
        task, dataset = load(path, kind="multi-label")
        assert task.labels == ("a", "b") and dataset.train.targets[:2] == [[1, 1], [0, 1]]


def test_a_class_with_a_single_example_is_noted(tmp_path):
    path = tmp_path / "few.csv"
    path.write_text("text,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(60)) + "last,c\n")
    dataset = load(path)[1]
    assert any("Class 'c' has a single example" in note for note in dataset.notes)
    assert 2 in data.split(dataset, "all", seed=3).train.targets


def test_which_class_f1_is_of_is_said(tmp_path):
    path = tmp_path / "fraud.csv"
    path.write_text("text,label\n" + "".join(f"text {i},{('fraud', 'ok')[i % 2]}\n" for i in range(60)))
    assert any("f1 is that of the class 'ok'" in note for note in load(path, metric="f1")[1].notes)
    assert not any("f1" in note for note in load(path)[1].notes)


def test_labels_that_hardly_repeat_ask_for_a_word(tmp_path):
    path = tmp_path / "wide.csv"
    path.write_text("text,label\n" + "".join(f"text {i},{i}\n" for i in range(30)))
    with pytest.raises(DataError, match="30 different labels in 30 examples"):
        load(path)
    assert len(load(path, kind="classification")[0].labels) == 30
    assert load(path, kind="regression")[1].train.targets == list(range(30))
    path.write_text("text,label\n" + "".join(f"text {i},{i % 30}\n" for i in range(60)))
    assert load(path)[0].kind == "classification", "each of them twice"


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ([0.0, 2.5, 5.0], (0.0, 1.0)),
        ([-10.0, 10.0], (0.0, 1.0)),
        ([200_000.0, 300_000.0], (250_000.0, 50_000.0)),
        ([1e-5, 3e-5], (2e-5, 1e-5)),
        ([7.0, 7.0], (7.0, 1.0)),
    ],
)
def test_targets_of_ordinary_size_stay_and_others_are_standardised(targets, expected):
    task = TASKS["regression"](name="t", metric="spearman", columns=data.Columns(text="text"))
    fitted = task.fit(targets, bias=True)
    assert fitted.target_scale == pytest.approx(expected) and fitted.in_target_units() == task
    assert task.fit(targets, bias=None) == task, "a head that is not trained cannot be rescaled"


def test_conll_files_have_a_word_and_a_tag_per_line(tmp_path):
    path = tmp_path / "names.conll"
    path.write_text("-DOCSTART- -X- O\n\nJohn NNP B-PER\nlives VB O\n\n\nin IN O\nRome NNP B-LOC\n")
    task, dataset = load(path)
    assert task.kind == "token-classification" and task.labels == ("B-LOC", "B-PER", "O")
    assert dataset.train.inputs["tokens"] == [["John", "lives"], ["in", "Rome"]]
    assert dataset.train.targets == [["B-PER", "O"], ["O", "B-LOC"]]
    assert data.read_table(path).lines == [3, 7]


@EVERY
def test_probabilities_say_how_often_they_are_right(kind, tmp_path, tokenizer):
    """Logits three times too large get a temperature of 3; predictions stay, `present` and its description keep the temperature."""
    task, train = loaded(kind, tmp_path)
    logits = logits_of(None, 1, 4000, 1, task.outputs, False)[0] * 2
    if task.probabilities(logits) is None:
        assert task.fit_temperature(logits, train.targets) is None
        return
    drawn, several = torch.Generator().manual_seed(1), kind == "multi-label"
    true = task.probabilities(logits)
    targets = torch.bernoulli(true, generator=drawn) if several else torch.multinomial(true, 1, generator=drawn)[:, 0]
    found = task.fit_temperature(3 * logits, targets.long().tolist())
    assert found == pytest.approx(3, rel=0.1)
    calibrated = replace(task, temperature=found)
    assert task_of(json.loads(json.dumps(calibrated.describe()))) == calibrated
    torch.testing.assert_close(calibrated.probabilities(found * logits), true)
    encoded = task.encode(tokenizer, train, 64)
    assert calibrated.decide(logits[:60], encoded) == task.decide(logits[:60], encoded)
    shown = calibrated.output_columns(found * logits, encoded, probabilities=True)
    assert shown[f"p({task.labels[1]})"] == pytest.approx(true[:, 1].tolist(), abs=1e-6)
    assert task.fit_temperature(logits * float("nan"), targets.long().tolist()) is None
