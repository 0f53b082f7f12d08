"""The recipe: a default for every preset, and no number that cannot train."""

from dataclasses import fields

import pytest

from unipelt import PRESETS
from unipelt.cli.fields import docs
from unipelt.errors import UserError
from unipelt.train.recipes import RATES, Recipe, default_recipe


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


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", 0.0), ("lr", -1.0), ("lr", float("nan")), ("lr", 11.0), ("epochs", 0), ("batch_size", 0), ("patience", -1),
     ("evaluate_every", 0), ("warmup", 1.5), ("weight_decay", -0.1), ("clip", -1.0), ("max_length", 1)],
)  # fmt: skip
def test_a_number_that_cannot_train_is_refused_by_its_flag(name: str, value: float):
    with pytest.raises(UserError, match=rf"--{name.replace('_', '-')} {value}: expected .* to "):
        Recipe(**{name: value})


def test_every_field_says_what_it_is():
    assert docs(Recipe).keys() == {field.name for field in fields(Recipe)}
