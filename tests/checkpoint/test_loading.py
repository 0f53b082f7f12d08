"""Several saved runs on one base: each answers as it does alone, whatever its method and its number of classes."""

from pathlib import Path

import pytest
import tiny
import torch
from transformers.generation import CompileConfig
from values import assert_plain, logits, randomise, state_of

import unipelt
from unipelt.errors import CheckpointError, SpecError
from unipelt.inject.attach import attach
from unipelt.inject.state import attached_state

RUNS = {"A": ("lora", 3), "B": ("unipelt-apl(prefix=3, bottleneck=4, mlp=6, r=2)", 2), "C": ("head", 5)}


def base(classes: int = 3) -> torch.nn.Module:
    """The same base whatever its head."""
    model, plain = tiny.build("bert", num_labels=classes), tiny.build("bert")
    model.bert.load_state_dict(plain.bert.state_dict())
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for seed, (name, (method, classes)) in enumerate(RUNS.items()):
        unipelt.save(randomise(unipelt.attach(base(classes), method), seed=seed), folder / name)
    return folder


@pytest.fixture(scope="module")
def alone(folders: Path) -> dict[str, torch.Tensor]:
    """What each run answers when it is loaded alone on a base with its number of classes."""
    return {name: logits(unipelt.load(base(classes), folders / name), "bert") for name, (_, classes) in RUNS.items()}


def assert_answers(model: torch.nn.Module, names: list[str], alone: dict[str, torch.Tensor]) -> None:
    """One row for each of three names: as the run alone; classes that it does not have are impossible."""
    with unipelt.route(model, names):
        found = logits(model, "bert")
    for row, name in enumerate(names):
        classes = RUNS[name][1]
        torch.testing.assert_close(found[row, :classes], alone[name][row])
        assert (found[row, classes:] == -torch.inf).all()


@pytest.mark.parametrize("order", [("A", "B", "C"), ("C", "A"), ("B",)])
def test_runs_side_by_side_answer_as_alone(order, folders: Path, alone: dict):
    model = unipelt.load(base(), [folders / name for name in order])
    for names in ([order[0]] * 3, [*order, *order, *order][:3]):
        assert_answers(model, names, alone)
    named = unipelt.load(base(), {f"run {name}": folders / name for name in order})
    with unipelt.route(named, [f"run {order[-1]}"] * 3):
        found = logits(named, "bert")
    torch.testing.assert_close(found[:, : RUNS[order[-1]][1]], alone[order[-1]])


def test_runs_are_added_and_removed(folders: Path, alone: dict):
    model = base()
    before = state_of(model)
    for name in RUNS:
        unipelt.add(model, folders / name)
    assert attached_state(model).names == ["A", "B", "C"]
    assert_answers(model, ["C", "A", "B"], alone)
    unipelt.remove(model, "A")
    assert_answers(model, ["B", "C", "B"], alone)
    unipelt.add(model, folders / "A", "A")
    assert_answers(model, ["A", "C", "B"], alone)
    for name in RUNS:
        unipelt.remove(model, name)
    assert_plain(model, before)


def test_a_run_that_cannot_be_added_leaves_the_others(folders: Path, alone: dict, tmp_path: Path):
    model = unipelt.load(base(), [folders / "A", folders / "B"])
    other = base()
    torch.nn.init.normal_(other.bert.encoder.layer[0].output.dense.weight)
    unipelt.save(attach(other, "lora"), tmp_path / "other")
    unipelt.save(attach(base(), "lora", pooling="mean"), tmp_path / "mean")
    for folder, words in (("nowhere", "no such folder"), ("other", "differs in rows"), ("mean", "reads one pooling")):
        with pytest.raises(CheckpointError, match=words):
            unipelt.add(model, tmp_path / folder)
        assert_answers(model, ["A", "B", "A"], alone)
    for mistake, words in (
        (lambda: unipelt.add(model, folders / "A"), "'A' is attached already"),
        (lambda: unipelt.remove(model, "a"), "did you mean 'A'"),
        (lambda: unipelt.load(base(), []), "at least one"),
        (lambda: unipelt.load(base(), [folders / "A"] * 2), "the same folder twice"),
    ):
        with pytest.raises(SpecError, match=words):
            mistake()
    with pytest.raises(SpecError, match="did you mean 'A'"), unipelt.route(model, ["a", "B", "B"]):
        pass


def test_a_run_that_cannot_be_added_leaves_the_class_names(folders: Path, tmp_path: Path):
    named = base()
    named.config.id2label = {0: "x", 1: "y", 2: "z"}
    unipelt.save(attach(named, "lora"), tmp_path / "named")
    model = unipelt.load(base(), tmp_path / "named")
    with pytest.raises(CheckpointError, match="no such folder"):
        unipelt.add(model, tmp_path / "nowhere")
    assert model.config.id2label == {0: "x", 1: "y", 2: "z"}
    unipelt.remove(unipelt.add(model, folders / "A"), "A")
    assert model.config.id2label == {0: "x", 1: "y", 2: "z"}


def test_generation_settings_that_are_no_json_are_left_out_and_wrong_ones_refused(tmp_path: Path, monkeypatch):
    model = unipelt.attach(tiny.build("gpt2", "generator"), "lora")
    model.generation_config.max_new_tokens = 3
    model.generation_config.compile_config = CompileConfig()
    unipelt.save(model, tmp_path / "run")
    loaded = unipelt.load(tiny.build("gpt2", "generator"), tmp_path / "run")
    assert (loaded.generation_config.max_new_tokens, loaded.generation_config.compile_config) == (3, None)
    model.generation_config.compile_config = None
    with monkeypatch.context() as patch:
        patch.setattr(model.generation_config, "to_diff_dict", lambda: {"compile_config": "text"})
        unipelt.save(model, tmp_path / "wrong")
    plain = tiny.build("gpt2", "generator")
    with pytest.raises(CheckpointError, match="transformers refuses its generation settings"):
        unipelt.load(plain, tmp_path / "wrong")
    assert not hasattr(plain, "unipelt")


def test_a_pipeline_of_a_folder(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "base"
    tiny.build("bert", "base").save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(tiny.VOCABULARY - 5))]
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder)
    from unipelt.checkpoint.bases import load_base

    several = "multi_label_classification"
    for labels, problem, head in (
        (["bad", "good"], None, "train"), (["bad", "good"], None, "frozen"), (["bad", "good"], None, "paper"),
        (["a", "b", "c"], several, "train"), ([], None, "train"),
    ):  # fmt: skip
        model = load_base(str(folder), outputs=len(labels) or 1, problem_type=problem)
        model = randomise(unipelt.attach(model.eval(), "lora", head=head))
        calibrated = {"temperature": 2.5} if labels else {}
        unipelt.save(model, tmp_path / "run", task={"labels": labels, **calibrated}, recipe={"max_length": 8})
        pipe = unipelt.pipeline(tmp_path / "run", device="cpu")
        text = "w1 w2 w3 " * 10
        found = {one["label"]: one["score"] for one in pipe(text, top_k=None)}
        coded = pipe.tokenizer(text, truncation=True, max_length=8, return_tensors="pt")
        with torch.no_grad():
            row = model(**coded).logits[0] / calibrated.get("temperature", 1.0)
        expected = row.sigmoid() if problem else row.softmax(0) if labels else row
        torch.testing.assert_close(
            torch.tensor(list(found.values())).sort()[0], expected.sort()[0], rtol=1e-4, atol=1e-5
        )
        assert not labels or set(found) == set(labels)
    unipelt.save(model, tmp_path / "run", recipe={"max_length": 128})
    words = transformers.AutoTokenizer.from_pretrained(folder)
    for most, said in ((64, 10**9), (20, 20)):  # the base has no more positions, its tokenizer says so
        words.model_max_length = said
        words.save_pretrained(folder)
        pipe = unipelt.pipeline(tmp_path / "run", device="cpu")
        assert pipe("w1 w2 " * 100) == pipe("w1 w2 " * (most // 2 - 1)) != pipe("w1 w2 " * (most // 2 - 2))
