"""Where there is no fcntl, no /proc, no user number, no C compiler, as on Windows: it patches, trains and saves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ELSEWHERE = """
import importlib.abc, os, pathlib, sys
import torch

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in ("fcntl", "pwd", "grp", "resource", "termios"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
for name in ("fcntl", "pwd", "grp", "resource", "termios"):
    sys.modules.pop(name, None)
for name in ("getuid", "geteuid", "fork", "sched_getaffinity", "uname"):
    delattr(os, name)

def hidden(method):
    def wrapped(self, *args, **kwargs):
        if str(self).startswith("/proc"):
            raise FileNotFoundError(str(self))
        return method(self, *args, **kwargs)
    return wrapped

for name in ("read_text", "read_bytes", "open"):
    setattr(pathlib.Path, name, hidden(getattr(pathlib.Path, name)))
exists = pathlib.Path.exists
pathlib.Path.exists = lambda self, **kwargs: not str(self).startswith("/proc") and exists(self, **kwargs)

import attn_plugins
from attn_plugins.checkpoints import save
from helpers.tiny_vit import TinyViT

torch.manual_seed(0)
model, images = attn_plugins.patch(TinyViT(), "entmax15"), torch.randn(2, 3, 32, 32)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
before = model(images).square().mean()
before.backward()
optimizer.step()
assert model(images).square().mean() < before
save("model.pth", model)
other = attn_plugins.patch(TinyViT(), "entmax15")
other.load_state_dict(torch.load("model.pth", weights_only=True)["model"])
assert torch.equal(other(images), model(images))
q = torch.randn(3, 1, 2, 9, 8)
expected = attn_plugins.attention(*q, normalizer="entmax15", backend="reference")
torch.testing.assert_close(attn_plugins.attention(*q, normalizer="entmax15"), expected)
from attn_plugins import native
print(native.unavailable())
from attn_plugins.cli import main
assert main(["env"]) == 0
"""


@pytest.mark.slow
@pytest.mark.parametrize("compiler", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_without_what_linux_has(compiler: bool, tmp_path: Path) -> None:
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"PYTHONPATH": os.pathsep.join(paths), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = os.environ["PATH"] if compiler else str(tmp_path)
    command = [sys.executable, "-W", "ignore::RuntimeWarning", "-c", ELSEWHERE]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "built on Linux and macOS alone" in done.stdout
