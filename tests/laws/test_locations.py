"""Every parameter says where it is: stack, layer, change and part, in a path that is written and read in one place."""

import pytest
import tiny

import unipelt
from laws.lawbook import attached, cases, stacks
from unipelt import Bottleneck, Change, Gate, LowRank, Mixture
from unipelt.errors import SpecError
from unipelt.inject.state import mixture_state
from unipelt.spec import Location


def gated(group: str) -> Mixture:
    members = (LowRank(r=2), "query", "input"), (Bottleneck(size=3), "attention", "input")
    return Mixture(tuple(Change(form=f, site=s, reads=r, weight=Gate(group=group)) for f, s, r in members))  # type: ignore[arg-type]


@pytest.mark.parametrize(("arch", "mixture"), cases(("bert", "bart", "albert", "t5"), varied=("bart",)))
def test_a_parameters_path_is_its_location(arch: str, mixture: Mixture):
    model = attached(arch, mixture, drawn=False)
    depths = {stack.entry.name: len(stack.layers) for stack in stacks(model)}
    groups = {c.weight.group for c in mixture.changes if isinstance(c.weight, Gate) and c.weight.group}
    for (location, _), (path, _) in zip(
        mixture_state(model).named_locations(), mixture_state(model).named_parameters()
    ):
        assert str(location) == path
        assert location.change in {name for name, _ in mixture.named()} | groups | {"head"}
        assert location.change == "head" or location.stack in depths
        assert location.layer is None or location.layer < depths[location.stack]


@pytest.mark.parametrize("group", ["encoder", "g.h", "0", "stack", "50%", "%2E", "a.b.c"])
def test_a_group_of_any_name_has_its_own_numbers(group: str):
    model = attached("bert", gated(group), drawn=False)
    d = model.config.hidden_size
    counts = unipelt.trainable_parameters(model)
    assert counts.pop(group) == len(stacks(model)[0].layers) * (d + 1) * 2
    assert counts == {k: v for k, v in unipelt.trainable_parameters(attached("bert", gated("g"))).items() if k != "g"}
    with unipelt.record_gates(model) as gates:
        model(**tiny.inputs("bert", model))
    assert {Location.parse(path).change for path in gates} == {group}


@pytest.mark.parametrize("group", ["head", "low_rank_query"])
def test_a_group_takes_no_name_that_is_taken(group: str):
    with pytest.raises(SpecError, match=f"group {group!r}: a change or the head has this name"):
        gated(group)


@pytest.mark.parametrize("path", ["", "encoder", "encoder.0", "encoder.x.adapter", "encoder.-1.adapter.ffn"])
def test_another_text_is_no_location(path: str):
    with pytest.raises(SpecError, match=r"is not a location; expected stack\.layer\.change\.part"):
        Location.parse(path)
