"""The recipe: a default for every preset, and no number that cannot train."""

from dataclasses import fields
from itertools import pairwise

import pytest

from unipelt import PRESETS
from unipelt.cli.fields import docs
from unipelt.errors import UserError
from unipelt.spec.forms import FORMS
from unipelt.study.plan import parse_options
from unipelt.train.recipes import GATE, HEAD, KINDS, LORA_B, RATES, Recipe, accepted_fields, default_recipe, kinds_of
from unipelt.train.records import RunConfig, RunKey


@pytest.mark.parametrize("method", [*PRESETS, "full", "lora(r=2)", " full "])
def test_every_method_has_a_recipe_and_what_is_given_comes_first(method: str):
    for hidden in (384, 768):
        for samples in (100, 500, 1000, 5000, 10**6):
            recipe = default_recipe(method, hidden, samples, epochs=7, warmup=None)
            assert (recipe.epochs, recipe.warmup) == (7, Recipe.warmup)
    name = method.strip().partition("(")[0]
    if name in RATES:
        assert [default_recipe(method, hidden, 100).lr for hidden in (768, 384)] == [*RATES[name]]


def test_more_samples_never_ask_for_more_epochs():
    epochs = [default_recipe("lora", 768, samples).epochs for samples in (10, 100, 500, 1000, 5000, 10**6)]
    assert epochs == sorted(epochs, reverse=True)


def test_the_protocols_sizes_have_the_epochs_that_are_named_for_them():
    """Up to 100, 500, 1,000 and 5,000 examples, and more: epochs, epochs between evaluations, and patience."""
    named = [(50, 4, 5), (25, 2, 5), (20, 2, 5), (10, 1, 10), (3, 1, 10)]
    for limit, (few, more) in zip((100, 500, 1000, 5000), pairwise(named)):
        for examples, expected in ((limit, few), (limit + 1, more)):
            recipe = default_recipe("lora", 768, examples)
            assert (recipe.epochs, recipe.evaluate_every, recipe.patience) == expected
    assert [default_recipe("lora", hidden, 100).lr for hidden in (511, 512)] == [RATES["lora"][1], RATES["lora"][0]]


def test_the_second_matrix_of_lora_trains_at_the_rate_of_the_first_unless_it_has_its_own():
    assert Recipe(lr_lora=2e-3).rates == {"lora": 2e-3, "lora_b": 2e-3} and Recipe().rates == {}
    assert Recipe(lr_lora=2e-3, lr_lora_b=3e-2, lr_head=1e-4).rates == {"lora": 2e-3, "lora_b": 3e-2, "head": 1e-4}


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", 0.0), ("lr", -1.0), ("lr", float("nan")), ("lr", 11.0), ("epochs", 0), ("batch_size", 0), ("patience", -1),
     ("evaluate_every", 0), ("warmup", 1.5), ("weight_decay", -0.1), ("clip", -1.0), ("max_length", 1), ("lr_gate", 0.0), ("lr_head", 11.0)],
)  # fmt: skip
def test_a_number_that_cannot_train_is_refused_by_its_flag(name: str, value: float):
    with pytest.raises(UserError, match=rf"--{name.replace('_', '-')} {value}: expected .* (to|at most) "):
        Recipe(**{name: value})


def test_every_field_says_what_it_is():
    assert docs(Recipe).keys() == {field.name for field in fields(Recipe)}


def test_every_form_has_a_learning_rate():
    """A new form names the option of its rate in KINDS, and the recipe has the field."""
    assert KINDS.keys() == FORMS.keys()
    names = {field.name for field in fields(Recipe)}
    assert {f"lr_{kind}" for kind in (*KINDS.values(), GATE, HEAD)} <= names


@pytest.mark.parametrize("method", PRESETS)
def test_a_rate_of_what_a_method_lacks_is_refused_with_what_it_has(method: str):
    kinds = kinds_of(method)
    assert kinds[-1] == HEAD
    for kind in dict.fromkeys((*KINDS.values(), LORA_B, GATE, HEAD)):
        asked = {f"lr_{kind}": 1e-3}
        if kind in kinds:
            assert RunConfig(task="rte", method=method, recipe=asked).recipe == accepted_fields(method, asked) == asked
            continue
        with pytest.raises(UserError, match=rf"--lr-{kind.replace('_', '-')}: {method} takes .*--lr-head or --lr$"):
            RunConfig(task="rte", method=method, recipe=asked)
        assert accepted_fields(method, asked) == {}, "a study's method that lacks it"


def test_a_study_takes_a_rate_that_one_of_its_methods_has():
    with pytest.raises(UserError, match=r"--lr-head: full has one rate, --lr$"):
        parse_options({"methods": ["full"], "lr_head": 1e-3})
    _, study = parse_options({"methods": ["full", "lora", "prefix"], "lr_prefix": 1e-2})
    for method, expected in (("full", {}), ("lora", {}), ("prefix", {"lr_prefix": 1e-2})):
        config = study.config(RunKey(task="rte", k=100, method=method, seed=0, lr=1e-3))
        assert config.recipe == {"lr": 1e-3, **expected}
