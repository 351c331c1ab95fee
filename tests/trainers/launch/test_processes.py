"""Data parallel training on two gloo processes is training on one."""

from pathlib import Path

import pytest
import torch
from helpers.processes import together
from torch import Tensor

pytestmark = pytest.mark.slow

SCRIPT = str(Path(__file__).parent / "gradients.py")
SPEC = "entmax_alpha+registers:num=2"


def gradients(processes: int, path: Path) -> dict[str, Tensor]:
    together(processes, SCRIPT, SPEC, path)
    out: dict[str, Tensor] = torch.load(path, weights_only=True)
    return out


@pytest.mark.timeout(300)
def test_two_processes_give_the_gradients_of_one(tmp_path: Path) -> None:
    one, two = gradients(1, tmp_path / "1.pth"), gradients(2, tmp_path / "2.pth")
    assert one.keys() == two.keys()
    assert all(one[name].abs().max() > 0 for name in one if "logit" in name or "qkv" in name)
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-6)
