"""How many operations a training step and an inference launch: what a GPU waits for, where a step is neither captured nor compiled.

    python benchmarks/operations.py                      # what can be imported here: transformers, peft, unipelt
    ENV/bin/python benchmarks/operations.py              # the same in an environment with adapters

Counts what reaches a device: each operation that torch dispatches, views and what only asks or allocates apart. No time is measured
and no device needed: BERT-base's 12 layers with narrow ones are counted on the CPU, in float32 and under autocast to bfloat16.
"""

import argparse
import importlib.util
from typing import Any

import steps
import torch
from torch.utils._python_dispatch import TorchDispatchMode

METHODS = ("full", "frozen", "lora", "adapter", "prefix", "unipelt-ap", "unipelt-apl")
SILENT = ("promote_types", "detach", "empty", "new_empty", "_unsafe_view", "_local_scalar", "is_same_size")
NARROW = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 100}


class Launched(TorchDispatchMode):
    """Counts operations inside the block, the backward's too."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        silent = operation.is_view or operation.namespace != "aten" or operation._opname.startswith(SILENT)
        self.count += not silent
        return operation(*args, **(kwargs or {}))


def counted(library: str, method: str, autocast: bool, layers: int = 12) -> tuple[int, int]:
    """Operations of a training step, without the optimiser's, and of an inference, each the second of its kind."""
    torch.manual_seed(0)
    base = steps.base({"family": "bert", "sizes": NARROW | {"num_hidden_layers": layers}})
    model = steps.MAKERS[library](base, method, 1)
    (rows,) = steps.batches({"batches": [[32, 32, 32, 20]]}, 1, NARROW["vocab_size"], "cpu")

    def train() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model.train()(**rows).loss
        loss.backward()

    @torch.no_grad()
    def infer() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            model.eval()(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"])

    found = []
    for step in (train, infer):
        step()
        model.zero_grad()
        with Launched() as launched:
            step()
        found.append(launched.count)
    return found[0], found[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    given = parser.parse_args()
    print(
        "| | training step, float32 | ÷ full | inference | ÷ plain | training step, autocast | ÷ full | inference | ÷ plain |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    full = [counted("transformers", "full", autocast) for autocast in (False, True)]
    for library in ("transformers", "peft", "adapters", "unipelt"):
        if importlib.util.find_spec(library) is None:
            continue
        for method in given.methods:
            own = method in ("full", "frozen")
            if own != (library == "transformers") or (library == "peft" and method != "lora"):
                continue
            cells = []
            for autocast, plain in zip((False, True), full):
                for one, other in zip(counted(library, method, autocast), plain):
                    cells += [f"{one:,}", f"{one / other:.2f}"]
            print(f"| {library} {method} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
