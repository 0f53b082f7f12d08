"""How many runs train at once follows from the memory that a run needs."""

from itertools import product
from pathlib import Path

import pytest
import torch
from cli.conftest import SMALL

from unipelt.study.trials import SHARE, measure_runs_at_once, runs_that_fit, trial
from unipelt.train.records import RunConfig
from unipelt.train.setup import DatasetCache

GB = 2**30


def test_the_number_is_the_most_that_fits():
    for free, fixed, each, most in product((4 * GB, 80 * GB), (GB, 30 * GB), (GB // 100, GB, 9 * GB), (3, 64)):
        number = runs_that_fit(free, fixed + each, fixed + 2 * each, most)
        assert number.bit_count() == 1 and 1 <= number <= most
        assert number == 1 or fixed + number * each <= SHARE * free
        assert 2 * number > most or fixed + 2 * number * each > SHARE * free, "twice as many would fit"
    assert runs_that_fit(GB, 5, 5, 64) == 64, "runs that need nothing"


def test_the_trial_is_a_step_at_the_longest_rows(tiny_base: str, reviews: Path):
    configs = [
        RunConfig(
            model=tiny_base, task=str(reviews), method=SMALL["lora"], recipe={"batch_size": size, "max_length": most}
        )
        for size, most in ((4, 64), (8, 5), (8, 64))
    ]
    cache, cpu = DatasetCache(), torch.device("cpu")
    rows, tokens = trial(configs, cache, cpu, runs=2)
    coded = [length for (_, _, longest, _), part in cache.encoded.items() if longest == 64 for length in part.lengths()]
    assert rows == 8 and tokens == max(coded) > 5


def test_where_a_trial_has_no_memory_one_run_is_tried(monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr("torch.cuda.mem_get_info", full)
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: None)
    assert measure_runs_at_once([], DatasetCache(), torch.device("cuda"), 64) == 1


def test_a_fleet_with_a_share_of_a_gpu_plans_with_that(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (60 * GB, 80 * GB))
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(f"torch.cuda.{name}", lambda device: 0)
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: None)
    monkeypatch.setattr("unipelt.study.trials._peak", lambda configs, cache, device, runs: runs * GB)
    configs = [RunConfig(model="minilm", task="docstrings")]
    numbers = [
        measure_runs_at_once(configs, DatasetCache(), torch.device("cuda"), 64, share) for share in (1.0, 0.5, 0.25)
    ]
    assert numbers == [32, 32, 16]
