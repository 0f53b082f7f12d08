"""Rule 15 for whole trajectories: a run in a fleet is the run alone, whatever the others do; and the optimiser is AdamW."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from train.fleets import fleet, parameters, plan, rows, train
from unipelt.inject.state import mixture_state
from unipelt.train.fleet import Fleet
from unipelt.train.forward import predict
from unipelt.train.optimizer import AdamW, ParameterMatrix
from unipelt.train.runs import FinishedRun, Plan, epoch_batches

UNLIKE = {  # runs that differ in all that a fleet leaves to each run
    "slow": lambda: plan(seed=1, train=20, lr=1e-3, epochs=4),
    "short": lambda: plan(seed=2, train=33, lr=3e-2, epochs=1, weight_decay=0.1, lr_head=1e-3),
    "stops early": lambda: plan(seed=3, train=11, validation=30, lr=1e-3, epochs=9, patience=2),
    "two classes": lambda: plan(seed=4, train=17, batch_size=5, classes=2, clip=0.0, evaluate_every=2),
    "fewer classes": lambda: plan(seed=5, train=9, classes=2, clip=0.3, warmup=0.5),
}


def close(a: torch.Tensor | float, b: torch.Tensor | float) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def same_run(mine: FinishedRun, its: FinishedRun) -> None:
    """Two runs with the same result, but for the last bits: parameters, curve, predictions."""
    one, other = mine.record, its.record
    assert (one.status, one.steps, len(one.curve)) == (other.status, other.steps, len(other.curve))
    for entry, expected in zip(one.curve, other.curve):
        assert entry.keys() == expected.keys()
        for name in entry:
            close(entry[name], expected[name])
    assert mine.state.keys() == its.state.keys()
    for name, value in mine.state.items():
        close(value, its.state[name])
    assert (one.predictions is None) == (other.predictions is None)
    if one.predictions is not None:
        assert one.predictions == pytest.approx(other.predictions, abs=1e-5)


@pytest.mark.parametrize(("arch", "preset"), [("bert", "unipelt-apl"), ("gpt2", "mam"), ("bert", "bitfit")])
@pytest.mark.parametrize("at_once", [5, 3, 1])
def test_a_run_in_a_fleet_is_the_run_alone(at_once: int, arch: str, preset: str):
    """Law 15 for whole trainings: runs begin and end at different times, and give their places to the next."""
    plans, counts = [make() for make in UNLIKE.values()], []
    together = fleet(
        plans,
        preset,
        arch,
        runs_at_once=at_once,
        on_step=lambda trained, event: counts.append(len(trained.plan_indices)),
    )
    finished = train(together)
    assert finished.keys() == {*range(len(plans))}
    for number, one in enumerate(plans):
        alone = fleet([one], preset, arch)
        before = parameters(alone)
        same_run(finished[number], train(alone)[0])
        moved = [name for name, value in finished[number].state.items() if not torch.equal(value, before[name])]
        assert moved, "nothing was learnt: the comparison says nothing"
    assert counts[0] == at_once and counts == sorted(counts, reverse=True), "no place stays empty while a plan waits"
    steps = sum(record.steps for record in together.records)
    assert sum(counts) == steps, "a run that has ended costs nothing"


def test_a_finished_run_is_its_own_while_the_others_train_on():
    """What is yielded holds at any later time, and disturbs no run that still trains."""
    plans, kept = [make() for make in UNLIKE.values()], []
    for run in fleet(plans, runs_at_once=2).train():
        assert run.model is not None
        with mixture_state(run.model).with_parameters(run.state):  # as a checkpoint is saved
            pass
        kept.append((run, {name: value.clone() for name, value in run.state.items()}))
    undisturbed = train(fleet(plans, runs_at_once=2))
    for run, state in kept:
        assert all(torch.equal(run.state[name], value) for name, value in state.items())
        same_run(run, undisturbed[run.plan_index])


def test_a_run_stops_early_and_keeps_its_best():
    plans = [UNLIKE["stops early"](), UNLIKE["slow"]()]
    trained = fleet(plans)
    finished = train(trained)
    early, slow = trained.records
    assert early.status == "stopped early" and slow.status == "finished"
    assert early.curve[-1]["step"] == early.steps < plans[0].steps
    assert early.validation == max(row["accuracy"] for row in early.curve)
    assert early.validation_metrics["epoch"] < early.curve[-1]["epoch"]
    for place, one in enumerate(plans):
        predicted = finished[place].record.predictions or []
        right = sum(p == y for p, y in zip(predicted, one.validation.targets or []))
        assert right / len(one.validation) == trained.records[place].validation == finished[place].record.validation, (
            "the parameters are not those of the best evaluation"
        )


@pytest.mark.parametrize("preset", ["unipelt-apl", "full"])
def test_a_regression_is_trained_in_standard_units_and_answers_in_its_own(preset: str):
    """Targets a·y + b: the same training, to the bit of the best epoch, and answers that are a·(answer) + b."""
    one = plan(seed=5, train=9, classes=0, clip=0.3, warmup=0.5)
    far = [10_000.0 * target + 250_000.0 for target in one.train.targets or []]
    mean, deviation = 0.7, 1.3
    answers = []
    for targets, unit in ((one.train.targets, (mean, deviation)), (far, (10_000 * mean + 250_000, 10_000 * deviation))):
        task = replace(one.task, mean=unit[0], deviation=unit[1])
        given = replace(one, task=task, train=replace(one.train, targets=targets))
        answers.append(torch.tensor(train(fleet([given], preset))[0].record.predictions, dtype=torch.float64))
    assert answers[0].std() > 0.01
    torch.testing.assert_close(answers[1], 10_000 * answers[0] + 250_000, rtol=0, atol=0.02)  # predictions are rounded


def broken(kind: str) -> Plan:
    """A run whose loss, or only whose gradient, leaves the numbers after a few steps."""
    if kind == "grows":
        return plan(seed=7, lr=10.0, weight_decay=10.0, epochs=200)  # each step multiplies the values by -99
    one = plan(seed=7, classes=0)
    return replace(one, train=replace(one.train, targets=[1e200] * len(one.train)))  # its square is no float64


@pytest.mark.parametrize("kind", ["grows", "overflows"])
def test_a_run_that_is_not_finite_fails_with_its_reason_and_harms_no_other(kind: str):
    bad, values = broken(kind), []
    good = plan(seed=1, classes=len(bad.task.labels))
    together = fleet(
        [bad, good, good],
        runs_at_once=2,
        on_step=lambda trained, event: values.append(trained.matrix.values[0].clone()),
    )
    before = together.matrix.values[0].clone()
    finished, alone = train(together), train(fleet([good]))[0]
    record = finished[0].record
    if kind == "overflows":
        assert torch.equal(values[record.steps - 1], before), "no step was taken on what is no number"
    assert "is not finite" in record.failed and f"--lr than {bad.recipe.lr:g}" in record.failed
    assert "at step" in record.failed and record.test is record.validation is None
    assert all(value.isfinite().all() for value in finished[0].state.values()), "its best parameters are numbers"
    same_run(finished[1], alone)
    same_run(finished[2], alone)  # it has the broken run's place


def test_a_gradient_that_is_not_finite_ends_a_run_too():
    values: list[torch.Tensor] = []
    trained = fleet([plan(seed=1)], "lora", on_step=lambda trained, event: values.append(trained.matrix.values.clone()))
    before = trained.matrix.values.clone()
    weight = next(p for name, p in trained.model.named_parameters() if name.endswith("up.weight"))
    weight.register_hook(lambda gradient: gradient * math.inf)
    assert train(trained)[0].record.failed.startswith("the gradient is not finite at step 1")
    assert len(values) == 1 and torch.equal(values[0], before), "no step was taken on what is no number"


@pytest.mark.parametrize("clip", [0.0, 0.05, 100.0])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_the_optimiser_is_torchs(clip: float, weight_decay: float):
    """Three runs in one matrix against torch.optim.AdamW and clip_grad_norm_, each run by itself."""
    torch.manual_seed(0)
    runs, rates, shapes = 3, [1e-2, 3e-2, 0.5], [(4, 3), (5,)]
    ours = [nn.Parameter(torch.randn(runs, *shape, dtype=torch.float64)) for shape in shapes]
    theirs = [[nn.Parameter(p[run].detach().clone()) for p in ours] for run in range(runs)]
    optimisers = [torch.optim.AdamW(p, lr=1, weight_decay=weight_decay) for p in theirs]
    flat = ParameterMatrix(ours, runs)
    adamw = AdamW(flat)
    for step in range(12):
        factor = 1 / (step + 1)
        for run, optimiser in enumerate(optimisers):
            sum((p.sin() * (run + 1) * 3).sum() for p in theirs[run]).backward()
            if clip:
                nn.utils.clip_grad_norm_(theirs[run], clip)
            optimiser.param_groups[0]["lr"] = rates[run] * factor
            optimiser.step()
            optimiser.zero_grad()
        scales = torch.arange(1, runs + 1, dtype=torch.float64) * 3
        sum((p.sin() * scales.view(-1, *[1] * (p.dim() - 1))).sum() for p in ours).backward()
        flat.gather()
        vector = torch.tensor(rates, dtype=torch.float64) * factor
        each = [torch.full((runs,), value, dtype=torch.float64) for value in (step + 1, clip, weight_decay)]
        adamw.step(each[0], vector, each[1], each[2] if weight_decay else None)
        for run in range(runs):
            for mine, its in zip(ours, theirs[run]):
                torch.testing.assert_close(mine[run], its, rtol=1e-12, atol=1e-12)


def test_a_parameter_that_does_not_train_is_not_decayed():
    trained, fixed = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(2, 3), requires_grad=False)
    flat = ParameterMatrix([trained, fixed], 2)
    flat.gather()
    one = torch.ones(2)
    AdamW(flat).step(one, 0.5 * one, 0 * one, 0.1 * one)
    torch.testing.assert_close(trained.data, torch.full((2, 3), 0.95))
    assert torch.equal(fixed.data, torch.ones(2, 3))


LORA_PLUS = {"lr_lora": 2e-3, "lr_lora_b": 3.2e-2}
RATES = {"lr_prefix": 3e-3, "lr_adapter": 2e-2, "lr_gate": 5e-2, "lr_head": 1e-3}


@pytest.mark.parametrize(
    ("preset", "own"),
    [("lora", {}), ("lora", LORA_PLUS), ("full", {}), ("unipelt-apl", RATES), ("unipelt-central", RATES)],
)
def test_the_loop_is_a_plain_torch_loop(preset: str, own: dict[str, float]):
    """One run, float64: the loop's parameters are those of torch's own AdamW over the same batches, each at its rate."""
    one = plan(seed=1, weight_decay=0.05, clip=0.7, epochs=2, **own)
    model = fleet([one], preset).model
    tuned = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def factor(name: str) -> float:
        words = {"gate": ".gate.", "head": ".head.", "prefix": "prefix", "adapter": "bottleneck"}
        words |= {"lora_b": ".up.weight", "lora": ".down.weight"} if own == LORA_PLUS else {}
        kind = next((kind for kind, word in words.items() if word in name), "")
        return own.get(f"lr_{kind}", one.recipe.lr) / one.recipe.lr

    groups = [{"params": [p], "factor": factor(name)} for name, p in tuned.items()]
    assert len({group["factor"] for group in groups}) == ({"lora": 3}.get(preset, 5) if own else 1)
    optimiser = torch.optim.AdamW(groups, lr=1, weight_decay=0.05)
    lengths = one.train.lengths()
    batches = [
        batch for epoch in range(2) for batch in epoch_batches(lengths, one.recipe.batch_size, one.key.seed, epoch)
    ]
    for step, batch in enumerate(batches):
        ids = [one.train.features["input_ids"][row].tolist() for row in batch]
        width = max(map(len, ids))
        given = torch.tensor([row + [0] * (width - len(row)) for row in ids])
        labels = torch.tensor([one.train.targets[row] for row in batch])  # type: ignore[index]
        logits = model(input_ids=given, attention_mask=(given != 0).long()).logits
        optimiser.zero_grad(set_to_none=False)
        nn.functional.cross_entropy(logits, labels).backward()
        nn.utils.clip_grad_norm_(tuned.values(), 0.7)
        for group in optimiser.param_groups:
            group["lr"] = one.rates(step, []) * group["factor"]
        optimiser.step()

    def compare(trained: Fleet, event: str) -> None:
        if trained.records[0].steps == len(batches) == one.steps:
            compared.update(dict(trained.model.named_parameters()))
            for name, value in tuned.items():
                close(compared[name], value)

    compared: dict[str, torch.Tensor] = {}
    train(fleet([one], preset, on_step=compare))
    assert compared.keys() >= tuned.keys()


def test_the_learning_rate_rises_and_falls_in_straight_lines():
    one = plan(train=40, batch_size=2, epochs=5, warmup=0.1, lr=0.5)
    rates = [one.rates(step, []) for step in range(one.steps + 1)]
    peak = rates.index(max(rates))
    assert (one.steps, peak, rates[peak], rates[-1]) == (100, 9, 0.5, 0.0)
    rises, falls = ({round(b - a, 12) for a, b in pairwise(part)} for part in (rates[: peak + 1], rates[peak + 1 :]))
    assert rises == {0.05} and falls == {round(-0.5 / 90, 12)}
    assert all(rate > 0 for rate in rates[:-1]), "no step is wasted"
    assert [plan(train=3, warmup=w, epochs=1).rates(0, []) for w in (0.0, 1.0)] == [1e-2, 1e-2], "one step alone"


def test_predictions_are_in_the_order_of_the_rows_whatever_the_batches(monkeypatch: pytest.MonkeyPatch):
    trained = fleet([plan(seed=1), plan(seed=2)])
    data = [rows(23, seed=8), rows(9, seed=9)]
    together = predict(trained.model, trained.tokenizer, data)
    assert [part.shape for part in together] == [(23, 3), (9, 3)]
    for size in (1, 3, 1000):
        monkeypatch.setattr("unipelt.train.forward.LEAST_ROWS", size)
        for one, other in zip(together, predict(trained.model, trained.tokenizer, data)):
            close(one, other)
    for run, seed in enumerate((1, 2)):
        alone = fleet([plan(seed=seed)])
        for index in (0, 5, 8):
            features = {name: [part[index]] for name, part in data[run].features.items()}
            single = predict(alone.model, alone.tokenizer, [replace(data[run], features=features, targets=None)])[0]
            close(single[0], together[run][index])
