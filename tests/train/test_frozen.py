"""What the layers below the lowest change give is computed once for each example, and is what they would give each time."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from train.fleets import fleet, plan, rows, train
from train.test_fleet import same_run
from train.test_resume import Stopped, assert_same, stop_at
from unipelt import spec
from unipelt.train import frozen
from unipelt.train.fleet import Fleet
from unipelt.train.frozen import StateCache, group_sets

UPPER = {
    "head": spec.mixture("head"),
    "gated mixture above": spec.mixture("unipelt-apl(layers=(1,), bottleneck=4, prefix=2, mlp=4, r=2)"),
}


def plans() -> list:
    return [
        plan(seed=1, train=20),
        plan(seed=2, train=9, epochs=2),
        plan(seed=3, train=11, validation=30, epochs=4, patience=2),
    ]


class Calls:
    """How many examples each layer of a model has computed."""

    def __init__(self, trained: Fleet, path: str):
        self.rows: list[int] = []
        for layer in trained.model.get_submodule(path):
            self.rows.append(0)
            next(layer.children()).register_forward_hook(self.count(len(self.rows) - 1))

    def count(self, number: int):
        def note(module: nn.Module, args: tuple, output: object) -> None:
            first = output[0] if isinstance(output, tuple) else output
            self.rows[number] += len(first)  # type: ignore[arg-type]

        return note


@pytest.mark.parametrize(("arch", "path"), [("bert", "bert.encoder.layer"), ("gpt2", "transformer.h")])
@pytest.mark.parametrize("name", UPPER)
def test_kept_states_change_no_result(name: str, arch: str, path: str):
    kept, plain = (
        fleet(plans(), UPPER[name], arch, states=(cache := StateCache()), runs_at_once=2),
        fleet(plans(), UPPER[name], arch, runs_at_once=2),
    )
    assert kept.frozen is not None and plain.frozen is None
    calls, expected = Calls(kept, path), train(plain)
    for number, run in train(kept).items():
        same_run(run, expected[number])
    examples = sum(len(part) for one in plans() for part in (one.train, one.validation))  # the same are tested
    assert calls.rows[0] == examples and (calls.rows[1] == examples) == (name == "head")
    again = fleet(kept.plans, UPPER[name], arch, states=cache, runs_at_once=2)
    calls, embedded = Calls(again, path), []
    again.model.get_input_embeddings().register_forward_hook(lambda *_: embedded.append(1))
    for number, run in train(again).items():
        same_run(run, expected[number])
    assert calls.rows[0] == 0, "a second fleet of the same base and examples computes nothing below the lowest change"
    assert arch != "bert" or not embedded  # gpt2 adds positions and drops out before its first layer


def test_examples_that_folds_share_are_computed_once():
    whole = rows(40, seed=9)
    folds = [plan(seed=1), plan(seed=2), plan(seed=3)]
    for number, one in enumerate(folds):
        test = [*range(number * 10, number * 10 + 10)]
        train_rows = [index for index in range(40) if index not in test]
        folds[number] = replace(one, train=whole.take(train_rows), validation=whole.take(test), test=whole.take(test))
    cache = StateCache()
    kept, plain = (fleet(folds, UPPER["head"], states=states) for states in (cache, None))
    calls, expected = Calls(kept, "bert.encoder.layer"), train(plain)
    for number, run in train(kept).items():
        same_run(run, expected[number])
    assert calls.rows[0] == 40 and len(cache.states) == 1
    apart = group_sets([rows(40, seed=9), rows(30, seed=8)])
    assert [len(group.examples) for group in apart] == [40, 30], "sets with nothing in common are kept apart"


def test_the_next_fleet_computes_only_what_the_last_did_not_read():
    """Fleets of one study have other training examples and the same test examples."""
    cache, first = StateCache(), plan(seed=1)
    second = replace(first, train=rows(20, seed=7))
    train(fleet([first], UPPER["head"], states=cache))
    following = fleet([second], UPPER["head"], states=cache)
    calls = Calls(following, "bert.encoder.layer")
    train(following)
    assert calls.rows[0] == 20


def test_states_of_another_base_or_of_other_layers_are_not_read():
    cache, one = StateCache(), plan(seed=1)
    fleet([one], UPPER["head"], states=cache).predict([one.validation])
    kept = dict(cache.states)
    assert len(kept) == 1
    for base, mixture in (("bert", "head"), ("another", "head"), ("bert", "gated mixture above")):
        other = fleet([one], UPPER[mixture])
        assert frozen.reusable_states(other.model, other.tokenizer, other.plans, cache, base) is not None
        assert cache.states == (kept if (base, mixture) == ("bert", "head") else {})
        cache.states = dict(kept)


def test_a_training_with_kept_states_goes_on_bit_identically(tmp_path: Path):
    mixture = UPPER["gated mixture above"]

    def begun(**how) -> Fleet:
        made = fleet([plan(seed=1)], mixture, dropout=True, dtype=torch.float32, states=StateCache(), **how)
        torch.manual_seed(0)
        return made

    with pytest.raises(Stopped):
        train(begun(folder=tmp_path, on_step=stop_at(4)))
    assert_same(train(begun(folder=tmp_path)), train(begun()))


def test_states_that_memory_lacks_are_kept_on_disk_or_computed_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recwarn: pytest.WarningsRecorder
):
    expected = train(fleet(plans(), UPPER["head"]))
    monkeypatch.setattr(frozen, "free_memory", lambda device: 0)
    mapped = train(fleet(plans(), UPPER["head"], states=(cache := StateCache(tmp_path))))
    assert cache.states and not list(tmp_path.iterdir()), "the file goes with the process"
    assert not [one for one in recwarn if "hidden states" in str(one.message)]
    monkeypatch.setattr(frozen, "SHARE", 0.0)
    empty = StateCache(tmp_path)
    computing = [fleet(plans(), UPPER["head"], states=states) for states in (empty, None)]
    calls = [Calls(one, "bert.encoder.layer") for one in computing]
    again, _ = map(train, computing)
    examples = sum(len(part) for one in plans() for part in (one.train, one.validation))
    assert calls[0].rows[0] <= calls[1].rows[0] + examples, "the lack of space is noticed once"
    said = [str(one.message) for one in recwarn if "hidden states" in str(one.message)]
    assert len(said) == 1 and "computed again in each step" in said[0] and not empty.states
    for number, run in expected.items():
        same_run(mapped[number], run)
        same_run(again[number], run)


@pytest.mark.parametrize("mixture", ["lora", "bitfit", spec.mixture("prompt(length=2)"), "full"])
def test_nothing_is_kept_where_the_lowest_layer_is_tuned(mixture):
    assert fleet([plan()], mixture, states=StateCache()).frozen is None


def test_layers_that_do_more_than_they_give_are_computed():
    """A layer reads what is inside the one below it: its states alone do not tell what the model says."""
    made = fleet([plan()], UPPER["head"])
    inner: list[torch.Tensor] = []
    made.model.get_submodule("bert.encoder.layer.0.attention").register_forward_hook(
        lambda module, args, output: inner.append(output[0])
    )
    made.model.bert.pooler.register_forward_pre_hook(lambda module, args: (args[0] + inner[-1],))
    assert frozen.reusable_states(made.model, made.tokenizer, made.plans, StateCache(), "bert") is None


def test_examples_that_no_plan_has_are_computed():
    """As a trial of a few examples reads them."""
    other = rows(9, seed=50)
    kept, plain = (fleet([plan(seed=1)], UPPER["head"], states=states) for states in (StateCache(), None))
    assert kept.frozen is not None
    torch.testing.assert_close(kept.predict([other])[0], plain.predict([other])[0], rtol=1e-10, atol=1e-10)
