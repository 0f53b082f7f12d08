"""A head that starts as a probe."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from train.fleets import fleet, plan, train
from train.test_fleet import same_run
from unipelt.tasks.linear import logistic, ridge
from unipelt.train.recipes import Recipe
from unipelt.train.runs import Plan


def probed(**given) -> Plan:
    made = plan(head_start="probe", **given)
    return replace(made, folds=[number % 3 for number in range(len(made.train))])


@torch.no_grad()
def features(one: Plan, preset: str) -> np.ndarray:
    """What the head of a run alone reads of each training example, in evaluation mode, `[example, feature]`."""
    model, read = fleet([one], preset).model.eval(), []
    model.classifier.register_forward_pre_hook(lambda module, args: read.append(args[0]))
    for ids in one.train.features["input_ids"]:
        model(input_ids=torch.tensor(ids)[None])
    return torch.cat(read).numpy()


@pytest.mark.parametrize(("classes", "preset"), [(3, "head"), (2, "unipelt-apl"), (0, "lora"), (3, "full")])
def test_before_the_first_step_a_run_answers_as_a_linear_model_of_its_features(classes: int, preset: str):
    plans = [probed(seed=seed, classes=classes) for seed in range(1 if preset == "full" else 2)]
    made = fleet(plans, preset)
    made.start_heads([*range(len(plans))])
    for one, logits in zip(plans, made.predict([one.train for one in plans])):
        x, targets = features(one, preset), one.train.targets
        expected = (logistic(x, targets, classes, one.folds) if classes else ridge(x, targets, one.folds))(x)
        np.testing.assert_allclose(logits[:, : expected.shape[1]].numpy(), expected, atol=1e-6)


def test_a_regression_starts_in_the_units_in_which_it_is_trained():
    one = probed(classes=0)
    one = replace(one, task=replace(one.task, mean=3.0, deviation=2.0))
    made = fleet([one], "lora")
    made.start_heads([0])
    x = features(one, "lora")
    expected = (ridge(x, one.train.targets, one.folds)(x) - 3) / 2
    np.testing.assert_allclose(made.predict([one.train])[0][:, :1].numpy(), expected, atol=1e-6)


def test_a_start_counts_classes_as_the_training_does():
    """With balanced weights, a rare class is found as often as the others."""
    one = probed(train=40, class_weights="balanced")
    one = replace(one, train=replace(one.train, targets=[int(number < 34) for number in range(40)]))
    made = fleet([one], "lora")
    made.start_heads([0])
    x = features(one, "lora")
    expected = logistic(x, one.train.targets, 3, one.folds, balanced=True)(x)
    np.testing.assert_allclose(made.predict([one.train])[0].numpy(), expected, atol=1e-6)


def test_a_run_in_a_fleet_or_in_its_queue_starts_as_alone():
    plans = [probed(seed=seed, epochs=1 + seed % 2) for seed in range(4)]
    together = train(fleet(plans, "lora", runs_at_once=2))
    for number, one in enumerate(plans):
        same_run(together[number], train(fleet([one], "lora"))[0])


def test_a_start_must_be_known():
    with pytest.raises(Exception, match="--head-start warm: expected probe or random"):
        Recipe(head_start="warm")
