"""What an installed wheel must hold and do by itself: ``PYTHONPATH=INSTALLED python smoke.py DIST``, anywhere else."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import torch

import attn_plugins
from attn_plugins.cli import COMMANDS, main
from attn_plugins.shipped import shipped
from attn_plugins.trainers.insertions import load

PLACE = Path(os.environ["PYTHONPATH"].split(os.pathsep)[0]).resolve()
DIST = Path(sys.argv[1])


class Attention(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(x, x, x)


def check_contents() -> None:
    (wheel,), (source,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        info = next(name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(info).decode())
    ours = [name for name in names if ".dist-info/" not in name]
    suffixes = {Path(name).suffix for name in ours if not name.startswith("attn_plugins/_patches/")}
    assert all(name.startswith("attn_plugins/") for name in ours), ours
    assert suffixes <= {".py", ".c", ".h", ".md", ".html", ".css", ".typed", ".json", ".safetensors"}, suffixes
    assert not [name for name in ours if "__pycache__" in name or "/tests/" in name or name.endswith(".png")]
    weights = [f"demo/weights/{name}/model.safetensors" for name in ("softmax", "entmax15")]
    assert sorted(name for name in ours if name.endswith(".safetensors")) == sorted(
        f"attn_plugins/{w}" for w in weights
    )
    needs = ("_patches/manifest.json", "_mmseg_configs/voc2012_linear.py", "native/attention.c", "py.typed")
    for needed in (*needs, *weights):
        assert f"attn_plugins/{needed}" in names, needed
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert metadata["Version"] == attn_plugins.__version__ and metadata["License-Expression"] == "Apache-2.0"
    torchs = [line for line in metadata.get_all("Requires-Dist") or [] if line.startswith("torch") and ";" not in line]
    assert torchs == ["torch>=2.4"] and metadata["Requires-Python"] == ">=3.10", torchs
    with tarfile.open(source) as archive:
        tops = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    assert tops <= {
        *("attn_plugins", "mmseg_configs", "patches", "README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE"),
        *("pyproject.toml", "PKG-INFO", ".gitignore"),
    }, tops


def run(*words: str) -> None:
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        try:
            status: object = main(words)
        except SystemExit as stop:
            status = stop.code or 0
    assert status == 0 and told.getvalue(), words


check_contents()
for place in (Path(attn_plugins.__file__), shipped("patches", "manifest.json"), shipped("mmseg_configs", "_base_")):
    assert place.resolve().is_relative_to(PLACE), f"{place} is not the wheel's"
for name in COMMANDS:
    run(name, "--help")
run("--version")
run("list")
run("env")
assert load("dino").before
model, x = attn_plugins.patch(torch.nn.Sequential(Attention()), "entmax15"), torch.randn(1, 2, 30, 8)
torch.testing.assert_close(model(x), attn_plugins.attention(x, x, x, normalizer="entmax15"))
print(f"the wheel in {PLACE} works: {attn_plugins.describe(model)}")
