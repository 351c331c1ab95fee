"""The patches on the real checkouts."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from attn_plugins.trainers.checkout import apply, revert, status
from attn_plugins.trainers.insertions import PATCHES, Patch, available, load


@pytest.fixture(params=available())
def checkout(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Patch, Path, Path]:
    variable = f"{request.param.upper()}_ROOT"
    root = os.environ.get(variable)
    if not root:
        pytest.skip(f"needs {variable}, a checkout of github.com/facebookresearch/{request.param}")
    copy = tmp_path / request.param
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns(".git"))
    return load(request.param), Path(root), copy


def test_it_is_recognised_patched_as_git_would_and_reverted(checkout: tuple[Patch, Path, Path]) -> None:
    patch, root, copy = checkout
    assert status(patch, copy) == "clean"
    assert sorted(apply(patch, copy)) == sorted(patch.before)
    assert status(patch, copy) == "applied"
    by_git = copy.parent / "by_git"
    shutil.copytree(root, by_git, ignore=shutil.ignore_patterns(".git"))
    subprocess.run(["git", "init", "-q"], cwd=by_git, check=True)
    command = ["git", "apply", "--unidiff-zero", str(PATCHES / f"{patch.name}.patch")]
    subprocess.run(command, cwd=by_git, check=True)
    for file in patch.before:
        assert (copy / file).read_bytes() == (by_git / file).read_bytes()
    revert(patch, copy)
    for file in patch.before:
        assert (copy / file).read_bytes() == (root / file).read_bytes()


@pytest.mark.slow
def test_without_attn_plugins_it_names_the_remedy(checkout: tuple[Patch, Path, Path]) -> None:
    patch, _, copy = checkout
    apply(patch, copy)
    module = {"dino": "utils", "dinov2": "dinov2.utils.utils"}[patch.name]
    # None in sys.modules is how Python spells "cannot be imported".
    code = f"import sys; sys.modules['attn_plugins'] = None; import {module}"
    done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, check=False)
    assert "ImportError: this checkout was changed by `attn-plugins apply" in done.stderr
    assert "--revert" in done.stderr
