"""Generated text from a file to a checkpoint and back: what holds for classes holds for texts."""

import ast
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from generation.bases import ANSWERS, CHAT_TEMPLATE, save_base, save_chats, save_pairs

from unipelt.checkpoint import bases
from unipelt.cli.inspect import label_lines
from unipelt.errors import DataError, UserError
from unipelt.inject.record import record_gates
from unipelt.tasks import registry
from unipelt.tasks.batches import Part
from unipelt.tasks.generation import Generation
from unipelt.train.fleet import Fleet
from unipelt.train.forward import logits_of
from unipelt.train.predictor import Predictor
from unipelt.train.records import RunConfig
from unipelt.train.setup import build_fleet
from unipelt.train.train_run import train_run

CPU = torch.device("cpu")
RECIPE = {"epochs": 2, "batch_size": 8, "lr": 3e-2, "max_length": 64}
METHOD = "unipelt-apl(bottleneck=4, prefix=3, mlp=8, r=2)"
PROMPT_GATES = METHOD.replace(")", ", pool='prompt')")


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam divides by the gradient's size, so that a rounding error of a gradient near 0 would be a step."""
    monkeypatch.setattr(bases, "load_base", partial(bases.load_base, dtype=torch.float64))


def config(folder: Path, **given) -> RunConfig:
    base = folder / "base" if (folder / "base").exists() else save_base(folder / "base")
    data = given.pop("task", None) or save_pairs(folder / "pairs.jsonl")
    recipe = RECIPE | given.pop("recipe", {})
    settings = {"k": 24, "validation_rows": 10, "method": METHOD, "max_new_tokens": 6}
    return RunConfig(model=str(base), task=str(data), recipe=recipe, **settings | given)


OPTIONS = {
    "tokens": {"batch_tokens": 90},
    "accumulated": {"gradient_accumulation": 3, "batch_size": 3},
    "smoothed": {"label_smoothing": 0.1},
    "recomputed": {"gradient_checkpointing": True},
}
EVERY = {name: value for one in OPTIONS.values() for name, value in one.items()}


@pytest.mark.parametrize(("arch", "options"), [
    ("llama", {"method": PROMPT_GATES}), ("gpt2", OPTIONS["accumulated"]), ("t5", OPTIONS["smoothed"]), ("bart", EVERY), ("llama", EVERY),
], ids=str)  # fmt: skip
def test_a_run_of_a_fleet_is_the_run_alone(arch: str, options: dict, tmp_path: Path, float64: None):
    """Answers differ in length, so a mean over the fleet's tokens would weigh runs by them; so do the runs' forwards."""
    save_base(tmp_path / "base", arch)
    options = dict(options)
    asked = {"method": options.pop("method", METHOD), "recipe": options}
    configs = [config(tmp_path, seed=seed, k=20 + 3 * seed, **asked) for seed in range(3)]
    together = build_fleet(configs, runs_at_once=3, device=CPU)
    alone = [build_fleet([one], runs_at_once=1, device=CPU) for one in configs]
    for fleet in (together, *alone):
        _without_dropout(fleet)
        for _ in range(4):
            fleet.step()
    for run, fleet in enumerate(alone):
        torch.testing.assert_close(together.matrix.values[run], fleet.matrix.values[0], atol=1e-7, rtol=1e-4)
        assert together.records[run].losses == pytest.approx(fleet.records[0].losses, rel=1e-5)
    assert len({record.losses for record in together.records}) == 3


@pytest.mark.parametrize("arch", ["llama", "bart"])
def test_gradients_that_add_up_are_those_of_one_batch_and_of_every_answer_token_alike(
    arch: str, tmp_path: Path, float64: None
):
    """The loss of a step with smoothing is torch's own over the tokens of all its forwards."""
    save_base(tmp_path / "base", arch)
    parts, whole = (build_fleet([config(tmp_path, recipe=EVERY)], runs_at_once=1, device=CPU) for _ in range(2))
    for fleet in (parts, whole):
        _without_dropout(fleet)
    split = parts._examples(0)
    assert len(split) == 3 and len({sum(len(parts.plans[0].train.answers[i]) for i in one) for one in split}) > 1
    together = [row for one in split for row in one]
    whole._examples = lambda plan: [together]
    batch = parts.task_type.collate([Part(None, parts.plans[0].train, together)], parts.tokenizer, CPU)
    with torch.no_grad():
        logits = logits_of(parts.model.eval(), batch.inputs).flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, batch.targets.flatten(), label_smoothing=0.1).item()
    for fleet in (parts, whole):
        fleet.step()
        assert fleet.records[0].losses == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(parts.matrix.values, whole.matrix.values, atol=1e-7, rtol=1e-4)


def test_a_budget_of_tokens_bounds_every_forward_and_takes_every_example_once(tmp_path: Path):
    (plan,) = build_fleet(
        [config(tmp_path, recipe=EVERY | {"epochs": 3, "evaluate_every": 1})], runs_at_once=1, device=CPU
    ).plans
    lengths, epochs = plan.train.lengths(), [plan.epoch(number) for number in range(3)]
    for steps in epochs:
        batches = [batch for step in steps for batch in step]
        assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
        assert all(len(one) == 1 or len(one) * max(lengths[row] for row in one) <= 90 for one in batches)
        assert len(batches) < len(lengths) and max(map(len, steps)) == 3
    ends = [len(epochs[0]), len(epochs[0]) + len(epochs[1]), sum(map(len, epochs))]
    assert plan.ends == ends and [step for step in range(plan.steps + 1) if plan.is_due(step)] == ends


def test_checkpointing_computes_layers_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    counts = []
    for recipe in ({}, OPTIONS["recomputed"]):
        fleet = build_fleet([config(tmp_path, recipe=recipe)], runs_at_once=1, device=CPU)
        calls: list[int] = []
        fleet.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        fleet.step()
        counts.append(len(calls))
    assert counts == [1, 2]


def _without_dropout(fleet: Fleet) -> None:
    fleet.model.apply(lambda module: setattr(module, "p", 0.0) if isinstance(module, torch.nn.Dropout) else None)
    for name in ("dropout", "attention_dropout", "activation_dropout", "dropout_rate"):
        for module in fleet.model.modules():
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def test_gates_of_the_prompt_are_those_of_training_when_a_chat_is_answered(tmp_path: Path):
    """Of two exchanges the prompt ends before the first answer, which is learned: else it would see itself."""
    save_base(tmp_path / "base", template=CHAT_TEMPLATE)
    data = save_chats(tmp_path / "chats.jsonl")
    asked = config(tmp_path, task=data, method=PROMPT_GATES, max_new_tokens=1, recipe={"max_length": 128})
    fleet = build_fleet([asked], runs_at_once=1, device=CPU)
    plan = fleet.plans[0]
    row = max(range(len(plan.train)), key=lambda row: len(plan.train.prompts[row]))
    one = plan.train.take([row])
    assert (
        one.gate_prompt_lengths[0]
        == one.features["prompt_mask"][0].sum()
        == one.positions[0][0] + 1
        < len(one.prompts[0])
    )
    with record_gates(fleet.model) as training:
        fleet.predict([one])
    with record_gates(fleet.model) as writing:
        plan.task.generate(fleet.model, fleet.tokenizer, [one])
    assert training and training.keys() == writing.keys()
    for path, (value, *_) in training.items():
        torch.testing.assert_close(writing[path][0], value)


@pytest.mark.parametrize("arch", ["llama", "bart"])
def test_gates_are_read_without_logits_of_every_token(arch: str, tmp_path: Path):
    """Also of examples whose answers are not known; and of these a decoder's are those of its start token."""
    save_base(tmp_path / "base", arch)
    fleet = build_fleet([config(tmp_path)], runs_at_once=1, device=CPU)
    task = fleet.plans[0].task
    predictor = Predictor(fleet.model, fleet.tokenizer, task, 64, True)
    rows = registry.load(save_pairs(tmp_path / "pairs.jsonl"))[1].train.take([0, 1, 2])
    widths, output = [], fleet.model.get_output_embeddings()
    output.register_forward_hook(lambda module, args, out: widths.append(out.shape[1]))
    for given in (rows, replace(rows, targets=None)):
        gates = predictor.gates(given)
        assert gates and all(((value > 0) & (value < 1)).all() and value.shape == (3,) for value in gates.values())
    answers = max(len(answer) for answer in predictor.encode(rows).answers)
    assert widths == [answers, 1]


@pytest.mark.parametrize("arch", ["llama", "bart"])
def test_the_loss_is_that_of_transformers_over_the_answers(arch: str, tmp_path: Path):
    save_base(tmp_path / "base", arch)
    fleet = build_fleet([config(tmp_path)], runs_at_once=1, device=CPU)
    plan = fleet.plans[0]
    ours = plan.task.score(
        plan.task.decide(fleet.predict([plan.validation])[0], plan.validation), [None] * len(plan.validation)
    )
    total, count = 0.0, 0
    for tokens, positions, answer in zip(
        plan.validation.features["input_ids"], plan.validation.positions, plan.validation.answers
    ):
        given = {"input_ids": torch.tensor(tokens[None]).long()}
        labels = torch.full_like(given["input_ids"], -100)
        if arch == "llama":
            labels[0, torch.tensor(positions + 1)] = torch.tensor(answer).long()
        else:
            labels = torch.tensor(answer[None]).long()
        with torch.no_grad():
            total += fleet.model(**given, labels=labels).loss.item() * len(answer)
        count += len(answer)
    assert ours["loss"] == pytest.approx(total / count, rel=1e-5)
    assert ours["perplexity"] == pytest.approx(torch.tensor(total / count).exp().item(), rel=1e-5)


@pytest.mark.parametrize(("arch", "kind"), [("llama", "pairs"), ("llama", "chats"), ("bart", "pairs")])
def test_a_run_is_trained_saved_and_asked_again(arch: str, kind: str, tmp_path: Path):
    save_base(tmp_path / "base", arch, CHAT_TEMPLATE if kind == "chats" else None)
    data = save_chats(tmp_path / "chats.jsonl") if kind == "chats" else None
    record = train_run(config(tmp_path, task=data, recipe={"epochs": 8}), tmp_path / "run", log=lambda line: None)
    assert record.metric == "loss" and record.description["kind"] == "generation"
    assert record.validation_metrics["loss"] == pytest.approx(min(one["loss"] for one in record.curve))
    assert record.curve[-1]["loss"] < record.curve[0]["loss"]  # something is learned
    assert {"loss", "perplexity", "rougeL", "bleu", "exact_match"} <= record.test_metrics.keys()
    assert len(record.texts) == len(record.targets) == len(record.predictions)
    predictor = Predictor.load(str(tmp_path / "run"), device="cpu")
    columns, _ = predictor.columns(record.config.task, text=None, pair=None)
    assert len(columns["prediction"]) == 60
    by_target = dict(zip(map(str, columns[next(iter(columns))]), columns["prediction"]))
    assert set(record.texts) <= set(
        by_target.values()
    )  # the test examples are in the file, and are answered as in training


def test_text_can_select_the_checkpoint(tmp_path: Path):
    record = train_run(config(tmp_path, metric="rougeL"), tmp_path / "run", log=lambda line: None)
    assert record.metric == "rougeL" and record.validation == max(one["rougeL"] for one in record.curve)
    assert record.predictions == record.texts and isinstance(record.targets[0], str)


@pytest.mark.parametrize("options", [{}, EVERY], ids=["plain", "every option"])
def test_a_stopped_run_goes_on_bit_for_bit(options: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = config(tmp_path, recipe=options)
    whole = train_run(asked, tmp_path / "whole", log=lambda line: None)
    step, taken = Fleet.step, []

    def stopping(fleet: Fleet) -> None:
        taken.append(fleet)
        if len(taken) == 5:
            raise KeyboardInterrupt
        step(fleet)

    monkeypatch.setattr(Fleet, "step", stopping)
    with pytest.raises(KeyboardInterrupt):
        train_run(asked, tmp_path / "stopped", log=lambda line: None)
    monkeypatch.setattr(Fleet, "step", step)
    resumed = train_run(asked, tmp_path / "stopped", log=lambda line: None)
    assert (resumed.curve, resumed.texts, resumed.test_metrics) == (whole.curve, whole.texts, whole.test_metrics)
    states = [(tmp_path / name / "unipelt.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert states[0] == states[1]


def test_padding_that_is_eos_changes_nothing(tmp_path: Path):
    found = []
    for pad in (0, 2, None):
        fleet = build_fleet([config(tmp_path)], runs_at_once=1, device=CPU)
        fleet.tokenizer.pad_token_id = pad
        _without_dropout(fleet)
        fleet.step()
        fleet.step()
        found.append(fleet.matrix.values.clone())
    for one in found[1:]:
        torch.testing.assert_close(one, found[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("given", "said"), [
    ({"excess_length": "error", "recipe": {"max_length": 12}}, r"pairs.jsonl, example \d+ .*--max-length 12"),
    ({"max_target_length": 3}, r"pairs.jsonl, example \d+ .*--max-target-length 3"),
    ({"excess_length": "cut"}, "--excess-length cut: known: drop, error, trim-prompt"),
    ({"metric": "accuracy"}, "offers loss, perplexity"),
    ({"num_beams": 0}, "--num-beams 0: expected 1 to"),
    ({"task": "docstrings", "max_new_tokens": None, "recipe": {"label_smoothing": 0.1}}, "--label-smoothing 0.1: for generated text"),
    ({"task": "docstrings"}, "--max-new-tokens: docstrings is classification; leave it out"),
], ids=str)  # fmt: skip
def test_what_cannot_be_done_is_one_line(given: dict, said: str, tmp_path: Path):
    with pytest.raises(UserError, match=said) as error:
        build_fleet([config(tmp_path, **given)], runs_at_once=1, device=CPU)
    assert "\n" not in str(error.value)


def test_an_answer_that_the_base_cannot_read_is_named(tmp_path: Path):
    """Whatever --max-length says: the base has 256 positions."""
    path = save_pairs(tmp_path / "pairs.jsonl", 30)
    path.write_text(path.read_text() + '{"source": "what?", "target": "' + "word " * 150 + '"}\n')
    with pytest.raises(UserError, match=r"pairs.jsonl, example 31 \(line 31\): \d+ tokens, more than --max-length 256"):
        build_fleet([config(tmp_path, task=path, k="all", recipe={"max_length": 1000})], runs_at_once=1, device=CPU)


def test_examples_that_are_too_long_are_left_out_on_request(tmp_path: Path):
    given = {"excess_length": "drop", "max_target_length": 6, "k": "all"}
    plan = build_fleet([config(tmp_path, **given)], runs_at_once=1, device=CPU).plans[0]
    kept = [len(answer) for answer in plan.train.answers]
    everything = build_fleet([config(tmp_path, k="all")], runs_at_once=1, device=CPU).plans[0]
    assert max(kept) <= 6 and len(kept) == sum(len(answer) <= 6 for answer in everything.train.answers) < len(
        everything.train
    )


def test_an_encoder_writes_no_text(tmp_path: Path):
    import tiny

    model = tiny.build("bert", "base")
    model.save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match="bert cannot generate text; use a causal"):
        Generation.load(_task(tmp_path), str(tmp_path / "bert"))


def _task(folder: Path) -> Generation:
    task, _ = registry.load(save_pairs(folder / "pairs.jsonl"))
    assert isinstance(task, Generation)
    return task


def test_the_template_of_training_is_kept_and_used(tmp_path: Path):
    save_base(tmp_path / "base", template=CHAT_TEMPLATE)
    fleet = build_fleet([config(tmp_path, task=save_chats(tmp_path / "chats.jsonl"))], runs_at_once=1, device=CPU)
    kept = registry.task_of(fleet.plans[0].task.describe())
    assert kept == replace(fleet.plans[0].task)
    words = fleet.tokenizer
    words.chat_template = "{{ 'another' }}"
    _, data = registry.load(tmp_path / "chats.jsonl")
    again = kept.encode(words, data.train, 64)
    assert all("another" not in words.decode(tokens) for tokens in again.features["input_ids"])


@pytest.mark.parametrize("row", ['{"source": "a", "target": ""}', '{"source": "a", "target": null}'])
def test_a_pair_without_an_answer_is_named(row: str, tmp_path: Path):
    path = save_pairs(tmp_path / "pairs.jsonl", 40)
    path.write_text(path.read_text() + row + "\n")
    with pytest.raises(DataError, match=r"pairs.jsonl, example 41 \(line 41\)"):
        registry.load(path)


@pytest.mark.parametrize("arch", ["llama", "bart"])
def test_labels_are_shown_span_by_span(arch: str, tmp_path: Path):
    save_base(tmp_path / "base", arch, CHAT_TEMPLATE)
    data = save_pairs(tmp_path / "p.jsonl") if arch == "bart" else save_chats(tmp_path / "p.jsonl")
    head, *lines = label_lines(str(data), str(tmp_path / "base"))
    assert "60 examples" in head and sum("example " in line for line in lines) == 3
    learned = [ast.literal_eval(line.split("learned  ")[1]) for line in lines if line.startswith("  learned")]
    texts = [text.removeprefix("<s>").removesuffix("</s>") for text in learned]
    assert texts == ([*ANSWERS[:3]] if arch == "bart" else [ANSWERS[0], ANSWERS[1], ANSWERS[1], ANSWERS[2]])
    with pytest.raises(UserError, match="docstrings is a classification data set"):
        next(label_lines("docstrings", "smollm2"))


def test_prediction_may_write_otherwise_than_training(tmp_path: Path):
    train_run(config(tmp_path), tmp_path / "run", log=lambda line: None)
    predictor = Predictor.load(str(tmp_path / "run"), device="cpu")
    task = predictor.task

    def written(**given) -> list[str]:
        predictor.task = task.with_options(given)
        return predictor.columns(str(tmp_path / "pairs.jsonl"), text=None, pair=None)[0]["prediction"]

    drawn = written(temperature=2.0, seed=1)
    assert drawn == written(temperature=2.0, seed=1) != written(temperature=2.0, seed=2) != written()
    assert max(map(len, written(max_new_tokens=1))) < max(map(len, written(max_new_tokens=12)))
