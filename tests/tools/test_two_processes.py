"""Two CPU processes (gloo) give what one gives: DDP under `accelerate launch`, and FSDP2.

accelerate shards on accelerators alone: on CPUs it reads --use_fsdp and runs DDP, so FSDP2 is PyTorch's own here.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor
from toy import keys
from two_processes import FSDP, sharded, trained_by_loop, trained_by_sft, trained_by_trainer

SCRIPT = Path(__file__).with_name("two_processes.py")
# accelerate counts a launch of several processes as --multi_gpu; the script then asks for the CPU
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"]
ACCELERATE += ["--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]


@pytest.fixture(scope="module")
def launched(tmp_path_factory) -> tuple[Path, list[dict]]:
    """The folder that both processes wrote to, and what each ended with."""
    folder = tmp_path_factory.mktemp("two")
    settings = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", *ACCELERATE, str(SCRIPT), str(folder)]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-5000:]
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, atol=1e-6, rtol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_a_loop_of_ones_own(launched):
    _, (first, second) = launched
    assert first["loop"]["losses"].isfinite().all()
    assert all(torch.equal(value, second["loop"][name]) for name, value in first["loop"].items())
    same(first["loop"], trained_by_loop())


def test_the_trainer(launched, tmp_path: Path):
    folder, (first, second) = launched
    assert all(torch.equal(value, second["trainer"][name]) for name, value in first["trainer"].items())
    same(first["trainer"], trained_by_trainer(tmp_path))
    assert keys(folder / "checkpoint-4") == {f"unipelt.{name}" for name in first["trainer"]}


@pytest.mark.skipif(find_spec("trl") is None, reason="trl is not installed")
def test_trl(launched, tmp_path: Path):
    """SFTTrainer under `accelerate launch`, the model whole in each process and sharded by FSDP2."""
    _, (first, second) = launched
    alone = trained_by_sft(tmp_path)
    for how in ("sft", "sft in shards"):
        assert all(torch.equal(value, second[how][name]) for name, value in first[how].items())
        same(first[how], alone)


@pytest.mark.parametrize("arch", FSDP)
def test_fsdp2(launched, arch: str):
    both = [ended[arch] for ended in launched[1]]
    logits = torch.cat([ended["logits"] for ended in both])
    same({**both[0], "logits": logits}, sharded(arch, 0, 1))
    assert all(torch.equal(value, both[1][name]) for name, value in both[0].items() if name != "logits")
