"""Gates and forms that read what an attention block reads are computed in one product, and give what each gives alone."""

import pytest
import tiny
import torch
from laws.lawbook import attached, equal, result

import unipelt
from unipelt.forms.routed import JointLinears, Route, RoutedLinear


@pytest.mark.parametrize("arch", ["bert", "opt", "gpt2", "llama", "bart"])
@pytest.mark.parametrize("by_rows", [False, True])
def test_joint_linears_give_what_each_gives_alone(arch: str, by_rows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = attached(arch, "unipelt-apl", runs=3).eval()
    inputs, route = tiny.inputs(arch, model), torch.tensor([2, 0, 0])
    taken: list[bool] = []
    output = JointLinears.output

    def watched(self: JointLinears, linear: RoutedLinear, x: torch.Tensor) -> torch.Tensor | None:
        found = output(self, linear, x)
        taken.append(found is not None)
        return found

    def forward() -> torch.Tensor:
        with torch.no_grad(), unipelt.route(model, route if by_rows else torch.arange(3)):
            return result(model(**inputs))

    monkeypatch.setattr(JointLinears, "output", watched)
    together = forward()
    assert taken and all(taken)
    monkeypatch.setattr(JointLinears, "read", lambda *_: None)
    equal(together, forward(), arch)
    joined = [linear.joint for linear in model.modules() if isinstance(linear, RoutedLinear) and linear.joint]
    assert not any(joint.known for joint in joined), "outputs are kept after the forward"


def test_a_linear_that_reads_another_tensor_computes_its_output_itself() -> None:
    linears, route = [RoutedLinear(1, 4, outputs) for outputs in (1, 3)], Route.blocks(1)
    x, other = torch.randn(2, 2, 5, 4).unbind()
    for linear in linears:
        torch.nn.init.normal_(linear.weight)
    alone = [linear(other, route) for linear in linears]
    joint = JointLinears(linears)
    joint.read(x, route)
    for linear, expected in zip(linears, alone, strict=True):
        torch.testing.assert_close(linear(other, route), expected)
    joint.end()
    for linear, expected in zip(linears, alone, strict=True):
        torch.testing.assert_close(linear(other, route), expected)
