"""Data parallel training on two gloo processes is training on one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.slow

SCRIPT = str(Path(__file__).parent / "gradients.py")
SPEC = "entmax_alpha+registers:num=2"


def gradients(processes: int, path: Path) -> dict[str, Tensor]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if processes == 1:  # what torchrun would say
        torchrun = []
        environment |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    command = [sys.executable, *torchrun, SCRIPT, SPEC, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    out: dict[str, Tensor] = torch.load(path, weights_only=True)
    return out


@pytest.mark.timeout(300)
def test_two_processes_give_the_gradients_of_one(tmp_path: Path) -> None:
    one, two = gradients(1, tmp_path / "1.pth"), gradients(2, tmp_path / "2.pth")
    assert one.keys() == two.keys()
    assert all(one[name].abs().max() > 0 for name in one if "logit" in name or "qkv" in name)
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-6)
