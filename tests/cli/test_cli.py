"""The commands that need no torch do not import it; the version has one source."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import attn_plugins
from attn_plugins.cli import COMMANDS

RUN = """
import sys
from attn_plugins.cli import main
try:
    status = main(sys.argv[1:])
except SystemExit as stop:
    status = stop.code
print("heavy:", sorted({"torch", "numpy", "mmengine", "matplotlib"} & sys.modules.keys()))
sys.exit(status)
"""


def run(*words: str, heavy: bool = False) -> str:
    done = subprocess.run([sys.executable, "-c", RUN, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert ("heavy: []" in done.stdout) != heavy, done.stdout
    return done.stdout


@pytest.mark.parametrize("words", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_needs_no_torch(words: list[str]) -> None:
    assert "attn-plugins" in run(*words)


def test_applying_needs_no_torch(tmp_path: Path) -> None:
    missing = subprocess.run(
        [sys.executable, "-c", RUN, "apply", "dino", str(tmp_path), "--check"], capture_output=True, text=True
    )
    assert "heavy: []" in missing.stdout and missing.returncode == 2 and str(tmp_path) in missing.stderr


@pytest.mark.slow
def test_the_check_can_fail() -> None:
    assert "entmax15" in run("list", heavy=True)


def test_the_version_is_the_packages() -> None:
    module = [sys.executable, "-m", "attn_plugins", "--version"]
    told = subprocess.run(module, capture_output=True, text=True, check=True, timeout=120).stdout
    assert told == f"attn-plugins {attn_plugins.__version__}\n"


def test_the_public_names_are_what_is_imported_for_them() -> None:
    assert attn_plugins.__all__ == importlib.import_module("attn_plugins._public").__all__
    with pytest.raises(AttributeError, match="'attn_plugins' has no attribute 'patsch'"):
        _ = attn_plugins.patsch


FIRST = """
import importlib, sys
importlib.import_module(sys.argv[1])
import attn_plugins
assert callable(attn_plugins.attention) and "entmax15" in attn_plugins.registry.NORMALIZERS
assert set(attn_plugins.__all__) <= set(dir(attn_plugins))
"""


@pytest.mark.slow
@pytest.mark.parametrize("module", ["attn_plugins.attention", "attn_plugins.registry", "attn_plugins.native.build"])
def test_whatever_is_imported_first_the_package_is_whole(module: str) -> None:
    done = subprocess.run([sys.executable, "-c", FIRST, module], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
