"""The table of environments, the workflow made of it, and what the package's metadata says of the same."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import attn_plugins

ROOT = Path(__file__).parents[1]
TABLE = ROOT / ".ci" / "compat.json"
if not TABLE.is_file():
    pytest.skip("the table is in the repository, not beside an installed package", allow_module_level=True)
ENVIRONMENTS = json.loads(TABLE.read_text())


def test_the_workflow_is_written_from_the_table() -> None:
    command = [sys.executable, str(ROOT / ".ci" / "compat.py"), "--workflow"]
    written = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert (ROOT / ".github/workflows/compat.yml").read_text() == written


def test_every_supported_python_and_the_oldest_torch_are_in_the_table() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    named = set(re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project))
    assert named == {environment["python"] for environment in ENVIRONMENTS}
    assert min(named, key=lambda version: int(version[2:])) == re.findall(r'requires-python = ">=(3\.\d+)"', project)[0]
    oldest = re.findall(r'dependencies = \["torch>=([\d.]+)"\]', project)[0]
    assert any(pin.startswith(f"torch=={oldest}.") for environment in ENVIRONMENTS for pin in environment["pins"])


def test_every_check_is_a_test_of_its_own_name() -> None:
    tree = ast.parse((ROOT / "tests/compat/checks.py").read_text())
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert {"test_functional", "test_compile", "test_dinov2_step", "test_probe_iteration"} <= names


SUITE = """
import subprocess, sys
import pytest

PROGRAM = "print('first line'); raise ValueError('the cause')"

def test_process():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    torchrun = "traceback : To enable traceback see\\nlib.ChildFailedError: \\n====="
    output = done.stdout + done.stderr.replace("ValueError", "[rank1]: ValueError") + torchrun
    assert done.returncode == 0, output

def test_raises():
    raise KeyError("name")

def test_compares():
    assert 1 == 2

def test_lacks():
    pytest.skip("needs a thing")

def test_passes():
    print("ValueError: printed")
"""


@pytest.mark.slow
def test_a_failed_check_is_told_by_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / ".ci"))
    compat = importlib.import_module("compat")
    (tmp_path / "test_suite.py").write_text(SUITE)
    words = ["-q", "--rootdir", ".", "-c", "/dev/null", "--noconftest", "-p", "no:cacheprovider", "--junitxml=r.xml"]
    subprocess.run([sys.executable, "-m", "pytest", *words, "test_suite.py"], cwd=tmp_path, capture_output=True)
    cases = ElementTree.parse(tmp_path / "r.xml").iter("testcase")
    assert {case.attrib["name"]: [compat.outcome_of(child) for child in case] for case in cases} == {
        "test_process": ["failed: ValueError: the cause"],
        "test_raises": ["failed: KeyError: 'name'"],
        "test_compares": ["failed: assert 1 == 2"],
        "test_lacks": ["skipped: needs a thing"],
        "test_passes": [],
    }


def test_the_interpreter_that_make_takes_is_supported() -> None:
    found = subprocess.run([str(ROOT / ".ci" / "find-python")], capture_output=True, text=True, check=True).stdout
    version = [found.strip(), "-c", "import sys; print(sys.version_info[:2] >= (3, 10))"]
    assert subprocess.run(version, capture_output=True, text=True, check=True).stdout == "True\n"
    empty = subprocess.run(
        ["/bin/sh", str(ROOT / ".ci" / "find-python")], env={"PATH": "/nowhere"}, capture_output=True
    )
    assert empty.returncode == 1 and b"make PYTHON=" in empty.stderr


def test_the_citation_has_the_packages_version() -> None:
    assert f"\nversion: {attn_plugins.__version__}\n" in (ROOT / "CITATION.cff").read_text()
