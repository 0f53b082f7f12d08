"""Rule 15: run i of many equals run i alone, in outputs and gradients, however the rows of a batch are routed."""

from pathlib import Path

import pytest
import tiny
import torch
from torch import nn

import unipelt
from laws.lawbook import (
    GENERATORS,
    attached,
    cases,
    equal,
    gradients,
    on_each,
    result,
    scalar,
    small,
    why_refused,
)
from unipelt import PRESETS, Mixture, UserError
from unipelt.inject.state import attached_state, mixture_state

RUNS = 3
ROWS = [2, 0, 1, 1, 0, 2]
"""the run of each row of a batch; sorted, they are equal blocks"""


def set_to_run(alone: nn.Module, fleet: nn.Module, run: int) -> None:
    state = mixture_state(fleet).state_of(run)
    with torch.no_grad():
        for name, parameter in mixture_state(alone).named_parameters():
            parameter.copy_(state[name][None])
    alone.zero_grad()


@pytest.mark.parametrize(("arch", "mixture"), cases(runs=RUNS))
def test_a_run_of_many_is_the_run_alone(arch: str, mixture: Mixture):
    """Its rows anywhere in the batch, and the same rows as a block."""
    fleet, alone = attached(arch, mixture, runs=RUNS), attached(arch, mixture)
    given = tiny.inputs(arch, fleet, batch=len(ROWS))
    order = torch.tensor(ROWS).argsort(stable=True)
    outputs, shared = {}, {}
    for how, route, batch in (
        ("rows", ROWS, given),
        ("blocks", None, {name: value[order] for name, value in given.items()}),
    ):
        fleet.zero_grad()
        with unipelt.route(fleet, route):
            outputs[how] = result(fleet(**batch))
            scalar(outputs[how]).backward()
        shared[how] = {name: gradient.clone() for name, gradient in gradients(fleet).items()}
    outputs["blocks"] = outputs["blocks"][order.argsort()]
    for run in range(RUNS):
        mine = torch.tensor(ROWS) == run
        set_to_run(alone, fleet, run)
        output = result(alone(**{name: value[mine] for name, value in given.items()}))
        scalar(output).backward()
        for how in outputs:
            equal(outputs[how][mine], output, arch, what=f"{how}: output of run {run}")
            for name, gradient in gradients(alone).items():
                equal(shared[how][name][run], gradient[0], arch, what=f"{how}: gradient of {name} of run {run}")


SIDES = {"blocks": [0, 0, 1, 1, 2, 2, 3, 3], "rows": [3, 1, 0, 2, 1, 3, 3, 2]}
"""rows of runs: one of a gated mixture, two of the mixture at hand, one of another"""


BESIDE = [*cases(("bart",), (), runs=4), *((arch, small("lora")) for arch in on_each("lora", runs=4))]


def beside(arch: str, mixture: Mixture) -> list[Mixture]:
    first = "unipelt-apl" if why_refused(arch, small("unipelt-apl"), 4) is None else "adapter"
    return [small(first), mixture, small("parallel-adapter")]


@pytest.mark.parametrize(
    ("arch", "mixture"),
    BESIDE,
)
def test_a_mixture_beside_others_is_the_mixture_alone(arch: str, mixture: Mixture):
    """A fleet of unlike structures, each changing its own rows."""
    mixtures, shares = beside(arch, mixture), [1, 2, 1]
    fleet = attached(arch, mixtures, runs=shares)
    given = tiny.inputs(arch, fleet, batch=8)
    parts = attached_state(fleet).mixtures
    alones = [attached(arch, part.mixture) for part in parts]
    for how, rows in SIDES.items():
        fleet.zero_grad()
        with unipelt.route(fleet, None if how == "blocks" else rows):
            together = result(fleet(**given))
            scalar(together).backward()
        for run, (number, own) in enumerate(
            (number, own) for number, share in enumerate(shares) for own in range(share)
        ):
            mine, part, alone = torch.tensor(rows) == run, parts[number], alones[number]
            alone.zero_grad()
            with torch.no_grad():
                for name, parameter in mixture_state(alone).named_parameters():
                    parameter.copy_(part.get_parameter(name)[own][None])
            output = result(alone(**{name: value[mine] for name, value in given.items()}))
            equal(together[mine], output, arch, what=f"{how}: output of run {run}")
            scalar(output).backward()
            for name, gradient in gradients(alone).items():
                its = part.get_parameter(name).grad
                assert its is not None
                equal(its[own], gradient[0], arch, what=f"{how}: gradient of {name} of run {run}")


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("arch", on_each("unipelt-apl", GENERATORS))
def test_generation_repeats_the_route_for_its_beams(arch: str, beams: int):
    how = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "num_beams": beams, "pad_token_id": 0}
    fleet, alone = (attached(arch, "unipelt-apl", runs=runs, top="generator") for runs in (RUNS, 1))
    given = tiny.inputs(arch, fleet, batch=len(ROWS), side="left")
    given.pop("decoder_input_ids", None)
    with unipelt.route(fleet, ROWS):
        together = fleet.generate(**given, **how)
    for run in range(RUNS):
        mine = torch.tensor(ROWS) == run
        set_to_run(alone, fleet, run)
        torch.testing.assert_close(together[mine], alone.generate(**{n: v[mine] for n, v in given.items()}, **how))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("arch", ["bert", "bart"])
def test_initial_values_do_not_depend_on_the_fleet(arch: str, preset: str):
    fleet = attached(arch, preset, runs=RUNS, drawn=False, seeds=[5, 6, 7], fresh_head=True)
    alone = attached(arch, preset, drawn=False, seeds=[6], fresh_head=True)
    mine, its = mixture_state(alone).state_of(0), mixture_state(fleet).state_of(1)
    assert mine.keys() == its.keys()
    assert all(torch.equal(mine[name], its[name]) for name in mine)
    assert any(not torch.equal(its[name], mixture_state(fleet).state_of(0)[name]) for name in its)


def test_a_route_of_equal_rows_is_that_run():
    fleet = attached("bert", "unipelt-apl", runs=RUNS)
    given = tiny.inputs("bert", fleet)
    with unipelt.route(fleet, [1, 1, 1]):
        ones = result(fleet(**given))
    with unipelt.route(fleet, torch.tensor([2, 2, 2])):
        twos = result(fleet(**given))
    with unipelt.route(fleet, [2, 1, 2]):
        mixed = result(fleet(**given))
    equal(mixed, torch.stack([twos[0], ones[1], twos[2]]), "bert")
    assert (ones - twos).abs().min() > 1e-3


def test_the_route_is_given_back_after_a_block_that_fails():
    fleet = attached("bert", "lora", runs=RUNS)
    with pytest.raises(ZeroDivisionError), unipelt.route(fleet, [0]):
        raise ZeroDivisionError
    assert mixture_state(fleet).forwards.thread.rows is None


@pytest.mark.parametrize("rows", [[0, 3], [-1, 0], [], [[0, 1]], [0.0, 1.9], [None], [True, False], 1, "01"])
def test_a_run_that_is_not_there_is_refused(rows):
    fleet = attached("bert", "lora", runs=RUNS)
    with pytest.raises(UserError, match="expected one run of 0 to 2 for each row"), unipelt.route(fleet, rows):
        pass


def test_a_name_is_refused_where_runs_have_none():
    fleet = attached("bert", "lora", runs=RUNS)
    with (
        pytest.raises(UserError, match="no run 'a' is attached: these runs have no names"),
        unipelt.route(fleet, ["a"]),
    ):
        pass


@pytest.mark.parametrize("arch", ["bert", "llama", "bart", "opt"])
def test_a_batch_that_does_not_fall_into_equal_blocks_is_refused(arch: str):
    fleet = attached(arch, small("lora"), runs=RUNS)
    with pytest.raises(UserError, match="a batch of 4 rows for 3 runs"):
        fleet(**tiny.inputs(arch, fleet, batch=4))


@pytest.mark.parametrize("batch", [3, 4])
@pytest.mark.parametrize("mixtures", ["lora", ["lora", "adapter"]])
@pytest.mark.parametrize("arch", ["bert", "llama", "bart", "t5"])
def test_a_route_of_other_rows_than_the_batch_is_refused(arch: str, mixtures, batch: int):
    """Twice as many, too: only generation repeats rows."""
    fleet = attached(arch, mixtures, runs=[1, 1] if isinstance(mixtures, list) else 2)
    with pytest.raises(UserError, match=f"the route has 2 rows, the batch {batch}"), unipelt.route(fleet, [0, 1]):
        fleet(**tiny.inputs(arch, fleet, batch=batch))


@pytest.mark.parametrize("runs", [2, [1, 1]])
def test_seeds_are_one_a_run(runs):
    with pytest.raises(UserError, match="one seed each"):
        unipelt.attach(tiny.build("bert"), "lora" if runs == 2 else ["lora", "mam"], runs=runs, seeds=[0])


@pytest.mark.parametrize(
    ("what", "seeds", "said"),
    [("lora", 3, r"seeds=3: expected a list"), ([], None, "got an empty list; expected a mixture")],
)
def test_what_is_no_list_of_seeds_or_mixtures(what, seeds, said: str):
    with pytest.raises(UserError, match=said):
        unipelt.attach(tiny.build("bert"), what, seeds=seeds)


@pytest.mark.parametrize("runs", [0, [1], [1, 0], [1, 1, 1], "11", 1.5, None])
def test_every_mixture_has_a_run(runs):
    with pytest.raises(UserError, match="of 2 mixtures: expected at least one run of each"):
        unipelt.attach(tiny.build("bert"), ["lora", "mam"], runs=runs)


def test_what_asks_for_one_mixture_says_so(tmp_path: Path):
    fleet = attached("bert", [small("unipelt-apl"), small("lora")], runs=[1, 2])
    given = tiny.inputs("bert", fleet)
    for asked in (unipelt.merge, unipelt.trainable_parameters, lambda model: unipelt.fix_gates(model, {"x": 1.0})):
        with pytest.raises(UserError, match=r"2 mixtures are attached \(unipelt-apl, lora\)"):
            asked(fleet)
    before = result(fleet(**given))
    with unipelt.record_gates(fleet) as gates:
        fleet(**given)
    assert all(path.startswith("0.encoder.") and values[0].shape == (1,) for path, values in gates.items()) and gates
    alone = unipelt.load(tiny.build("bert", dtype=torch.float64), unipelt.save(fleet, tmp_path, run=2))
    assert mixture_state(alone).mixture.name == "lora"
    equal(before[2], result(alone(**given))[2], "bert")
