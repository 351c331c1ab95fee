"""Third-party plugins: by decorator and by the entry points of an installed package."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import attn_plugins
from attn_plugins.registry import MECHANISMS, NORMALIZERS, Registry

PLUGIN = """
import torch
import attn_plugins

def relu(scores, dim=-1, power: int = 1):
    p = scores.relu() ** power
    return p / p.sum(dim, keepdim=True).clamp(min=1e-6)

@attn_plugins.register_normalizer("decorated")
def decorated(scores, dim=-1):
    return torch.softmax(2 * scores, dim)

def _overrides(base):
    def forward(self, x):
        return attn_plugins.attention(x, x, x, normalizer=self.attn_plugins_normalizer)
    return {"forward": forward}

adapter = attn_plugins.Adapter("strange", lambda cls: cls.__name__ == "Strange", _overrides)

class Strange(torch.nn.Module):
    def forward(self, x):
        return x
"""
ENTRY_POINTS = """
[attn_plugins.normalizers]
relu = third_party:relu
decorated = third_party:decorated
[attn_plugins.adapters]
strange = third_party:adapter
"""
USE = """
import torch, attn_plugins, third_party
from attn_plugins.cli import main
q = torch.randn(1, 2, 5, 8)
out = attn_plugins.attention(q, q, q, normalizer="relu:power=2")
weights = third_party.relu(q @ q.mT / 8**0.5, power=2)
torch.testing.assert_close(out, weights @ q)
model = torch.nn.Sequential(third_party.Strange())
attn_plugins.patch(model, "decorated")
torch.testing.assert_close(model(q), torch.softmax(2 * q @ q.mT / 8**0.5, -1) @ q)
line, = attn_plugins.describe(model)
assert (line.adapter, line.spec) == ("strange", "decorated"), line
assert str(attn_plugins.parse("relu:power=3")) == "relu:power=3"
main(["list"])
"""

TWICE = """
import attn_plugins
for _ in range(2):
    try:
        attn_plugins.parse("softmax")
    except (ImportError, ValueError) as error:
        print(error)
"""


CODEBASE = """
from attn_plugins.codebases import Adapter, Codebase

ADAPTER = Adapter("theirs", lambda cls: cls.__name__ == "Theirs", lambda base: {})
THEIRS = Codebase("theirs", adapters=(ADAPTER,), constructor=("trunk",))
"""
USE_CODEBASE = """
from torch import nn
import attn_plugins
from attn_plugins.codebases import adapter_for
from attn_plugins.trainers.launch.construction import is_vit_class

class Theirs(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Identity()

assert adapter_for(Theirs())[0].name == "theirs"
assert is_vit_class(Theirs)
"""


def install(folder: Path, entry_points: str = ENTRY_POINTS) -> dict[str, str]:
    """What pip leaves of a package: its module, and a dist-info with METADATA and entry_points.txt."""
    (folder / "third_party.py").write_text(PLUGIN)
    info = folder / "third_party-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}


def run(code: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_an_installed_package_is_used_everywhere_by_name(tmp_path: Path) -> None:
    done = run(USE, install(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "relu:power=1" in done.stdout and "strange" in done.stdout


@pytest.mark.slow
def test_an_installed_package_brings_a_codebase(tmp_path: Path) -> None:
    environment = install(tmp_path, "[attn_plugins.codebases]\ntheirs = third_party:THEIRS\n")
    (tmp_path / "third_party.py").write_text(CODEBASE)
    done = run(USE_CODEBASE, environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("entry_points", "message"),
    [
        ("[attn_plugins.normalizers]\nrelu = third_party:missing\n", "'relu' of third-party (third_party:missing)"),
        pytest.param(
            "[attn_plugins.normalizers]\nrelu = not_there:relu\n", "repair or uninstall", marks=pytest.mark.nightly
        ),
        ("[attn_plugins.normalizers]\nentmax15 = third_party:relu\n", "'entmax15' is registered already"),
    ],
)
def test_a_broken_package_is_named(entry_points: str, message: str, tmp_path: Path) -> None:
    done = run(TWICE, install(tmp_path, entry_points))
    assert done.stdout.count(message) == 2, done.stdout + done.stderr  # not only the first time


@pytest.fixture
def normalizers() -> Iterator[None]:
    with NORMALIZERS.temporarily():
        yield


def test_a_decorated_function_is_usable_everywhere(normalizers: None) -> None:
    @attn_plugins.register_normalizer("half")
    def half(scores: Tensor, dim: int = -1, share: float = 0.5) -> Tensor:
        return share * torch.softmax(scores, dim)

    q = torch.randn(2, 3, 4, 5)
    dense = attn_plugins.attention(q, q, q)
    torch.testing.assert_close(attn_plugins.attention(q, q, q, normalizer="half"), dense / 2)
    torch.testing.assert_close(attn_plugins.attention(q, q, q, normalizer="half:share=0.25"), dense / 4)
    torch.testing.assert_close(attn_plugins.attention(q, q, q, normalizer=half), dense / 2)
    mha = attn_plugins.patch(nn.MultiheadAttention(12, 3), "half:share=1.0")
    assert [line.spec for line in attn_plugins.describe(mha)] == ["half:share=1.0"]
    assert half(q).sum() == 0.5 * torch.softmax(q, -1).sum()  # still the function that it was
    with pytest.raises(ValueError, match="no parameter 'shar'; it has share"):
        attn_plugins.patch(mha, "half:shar=1")


def test_a_decorated_class_has_parameters_per_layer(normalizers: None) -> None:
    @attn_plugins.register_normalizer("tempered")
    class Tempered(nn.Module):
        def __init__(self, num_heads: int, start: float = 1.0) -> None:
            super().__init__()
            self.temperature = nn.Parameter(torch.full((num_heads, 1, 1), start))

        def forward(self, scores: Tensor, dim: int = -1) -> Tensor:
            return torch.softmax(scores * self.temperature, dim)

    mha, q = nn.MultiheadAttention(12, 3).eval(), torch.randn(5, 2, 12)
    expected = mha(q, q, q)[0]
    attn_plugins.patch(mha, "tempered")
    torch.testing.assert_close(mha(q, q, q)[0], expected)
    assert dict(mha.named_parameters())["attn_plugins_normalizer.temperature"].shape == (3, 1, 1)
    mha(q, q, q)[0].sum().backward()
    assert mha.get_parameter("attn_plugins_normalizer.temperature").grad is not None


@pytest.mark.parametrize("name", ["", "a+b", "a:b", "a,b", "a=b", "a b"])
def test_names_that_a_spec_could_not_say_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name"):
        attn_plugins.register_normalizer(name)(torch.softmax)


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="registered already"):
        attn_plugins.register_normalizer("entmax15")(torch.softmax)


def test_near_matches() -> None:
    registry: Registry[int] = Registry("thing", "attn_plugins.tests")
    registry.register("entmax15", 1)
    registry.register("sparsemax", 2)
    with pytest.raises(attn_plugins.UnknownPluginError, match=r"unknown thing 'entmax'\. Did you mean 'entmax15'"):
        registry.get("entmax")
    assert "registers" in MECHANISMS and list(registry) == ["entmax15", "sparsemax"]
