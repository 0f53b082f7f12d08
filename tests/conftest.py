"""What all tests share."""

import gc
import logging
import os
from collections.abc import Iterator, Sequence

os.environ["HF_HUB_OFFLINE"] = "1"  # no test waits for a network
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no pool of compilers beside pytest-xdist's workers

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")  # slow or busy is no failure
torch.set_num_threads(1)  # pytest-xdist's workers would fight over the cores
logging.getLogger(
    "torch.__trace"
).propagate = False  # a record for each step of a compilation, which pytest would format


@pytest.fixture(autouse=True, scope="session")
def float32_where_nothing_is_asked() -> Iterator[None]:
    """The tests compare ways to compute that give the same numbers in float32; in bf16, which a CPU may have, they round apart."""

    def chosen(device: torch.device, precision: str) -> str:
        return "fp32" if precision == "auto" else precision

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unipelt.train.setup.chosen_precision", chosen)
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="the first case of each test, and no slow test")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--quick"):
        kept = first_cases(items)
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is imported by now stays: it is not searched for garbage again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)


SLOW = (  # files of which each test takes seconds: commands in processes of their own, studies, other libraries' loops
    "cli/test_kills.py", "cli/test_commands.py", "study/test_", "tools/test_", "train/test_capture.py", "report/test_browser.py",
    "laws/test_compiled.py", "laws/test_shapes.py", "laws/test_kernels.py", "report/test_report.py", "test_docstring",
    "cli/test_progress.py", "test_a_compiled_model", "another_model_was_compiled", "order_of_the_runs",
    "test_a_full_disk", "laws/test_checkpointing.py", "test_benchmarks.py", "docs/test_examples.py",
)  # fmt: skip


def first_cases(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """The first case of each test that is neither slow nor compiled."""
    quick = [item for item in items if not any(item.get_closest_marker(name) for name in ("slow", "inductor"))]
    quick = [item for item in quick if not any(part in item.nodeid for part in SLOW)]
    firsts: dict[str, pytest.Item] = {}
    for item in quick:
        firsts.setdefault(item.nodeid.partition("[")[0], item)
    return list(firsts.values())
