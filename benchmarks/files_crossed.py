"""The files of unipelt that one training step and one prediction run through: `python benchmarks/files_crossed.py`.

A fleet of two runs of unipelt-apl on minilm, with one label per text. Counted are files of which a function is called.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import unipelt
from unipelt.train.predictor import Predictor
from unipelt.train.records import RunConfig
from unipelt.train.setup import DatasetCache, build_fleet

PACKAGE = Path(unipelt.__file__).parent


def crossed(do: Callable[[], Any]) -> list[str]:
    """The files, relative to the package, of every function that is called while something is done."""
    seen: set[str] = set()

    def look(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(str(PACKAGE)):
            seen.add(str(Path(frame.f_code.co_filename).relative_to(PACKAGE)))

    sys.setprofile(look)
    try:
        do()
    finally:
        sys.setprofile(None)
    return sorted(seen)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "reviews.csv"
        data.write_text(
            "text,label\n" + "".join(f"review {i} is {word},{word}\n" for i in range(50) for word in ("good", "bad"))
        )
        configs = [RunConfig(task=str(data), seed=seed, recipe={"epochs": 1, "max_length": 32}) for seed in (0, 1)]
        cache = DatasetCache()
        fleet = build_fleet(configs, runs_at_once=2, device=torch.device("cpu"), cache=cache)
    fleet.step()  # what is computed once
    found = {"training step": crossed(fleet.step)}
    task, examples = fleet.plans[0].task, cache.splits(configs[0]).validation
    predictor = Predictor(fleet.model.eval(), fleet.tokenizer, task, 32, True, runs=2)
    found["prediction"] = crossed(lambda: predictor.outputs(examples))
    for what, files in found.items():
        print(f"{what}: {len(files)} files: {', '.join(files)}")


if __name__ == "__main__":
    main()
