"""``--import`` and ``ATTN_PLUGINS_IMPORT``: a decorated plugin is known in every command and subprocess."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from attn_plugins.cli import COMMANDS

PLUGIN = """
import torch, attn_plugins

@attn_plugins.register_normalizer("Mine")
def mine(z, dim=-1, factor=2.0):
    "Softmax, sharper."
    return torch.softmax(factor * z, dim)

attn_plugins.register_backend(attn_plugins.Backend("toy", lambda call: call.value, lambda call: "it is a toy"))
"""
COMMAND = "import sys; from attn_plugins.cli import main; sys.exit(main())"
WORKER = """
import torch, attn_plugins

class Items(torch.utils.data.Dataset):
    normalizer = None
    def __len__(self):
        return 2
    def __getitem__(self, index):
        return attn_plugins.attention(*torch.eye(4).expand(3, 1, 4, 4), normalizer="mine:factor=3.0")

if __name__ == "__main__":
    for start in ("fork", "spawn"):
        loader = torch.utils.data.DataLoader(Items(), num_workers=1, multiprocessing_context=start)
        print(start, len(list(loader)))
"""
TRAINER = """
import torch, attn_plugins
from torch import nn
import torch.nn.functional as F

class Attention(nn.Module):
    num_heads = 2
    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x)

class VisionTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch_embed, self.blocks = nn.Identity(), nn.ModuleList([Attention()])

print(attn_plugins.describe(VisionTransformer()))
"""


def python(folder: Path, *arguments: str, variable: str = "", plugin: str = PLUGIN) -> subprocess.CompletedProcess[str]:
    (folder / "lab_plugins.py").write_text(plugin)
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "ATTN_PLUGINS_IMPORT": variable}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, cwd=folder)


SPELLINGS = [pytest.param(spelling, marks=pytest.mark.nightly) for spelling in ("flag", "flag=", "both")]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["flag first", "variable", *SPELLINGS])
def test_a_command_knows_it(where: str, tmp_path: Path) -> None:
    arguments = {
        "flag": ["list", "--import", "lab_plugins"],
        "flag first": ["--import", "lab_plugins", "list"],
        "flag=": ["list", "--import=lab_plugins"],
        "both": ["list", "--import", "json", "--import", "lab_plugins"],
    }.get(where, ["list"])
    variable = {"variable": " json , lab_plugins ,", "both": "lab_plugins"}.get(where, "")
    done = python(tmp_path, "-c", COMMAND, *arguments, variable=variable)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["mine:factor=2.0", "Softmax,", "sharper."] in lines and ["toy"] in lines


@pytest.mark.slow
def test_without_either_it_is_not_known(tmp_path: Path) -> None:
    done = python(tmp_path, "-c", COMMAND, "list")
    assert done.returncode == 0 and "mine" not in done.stdout


def test_every_command_takes_the_flag(tmp_path: Path) -> None:
    code = (
        "import argparse, importlib, attn_plugins.cli as cli\n"
        "parser = cli._Parser(); commands = parser.add_subparsers()\n"
        "for name in cli.COMMANDS: importlib.import_module(f'attn_plugins.cli.{name}').add_parser(commands)\n"
        "def walk(parser, path):\n"
        "    kinds = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]\n"
        "    print(path, '--import' in parser._option_string_actions)\n"
        "    for kind in kinds:\n"
        "        for name, inner in kind.choices.items(): walk(inner, path + [name])\n"
        "walk(parser, [])\n"
    )
    done = python(tmp_path, "-c", code)
    lines = done.stdout.splitlines()
    assert all(any(f"['{name}'" in line for line in lines) for name in COMMANDS), done.stderr
    assert all(line.endswith("True") for line in lines), done.stdout


@pytest.mark.slow
def test_subprocesses_and_workers_know_it(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys; from attn_plugins.cli import main\n"
        "main(['env', '--import', 'lab_plugins'])\n"
        "sys.stdout.flush()\n"  # what it printed comes before what its child prints
        "sys.exit(subprocess.run([sys.executable, 'worker.py']).returncode)\n"
    )
    (tmp_path / "worker.py").write_text(WORKER)
    done = python(tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["fork 2", "spawn 2"]


@pytest.mark.slow
@pytest.mark.parametrize("flag", [True, pytest.param(False, marks=pytest.mark.nightly)])
def test_the_launcher_knows_it(flag: bool, tmp_path: Path) -> None:
    (tmp_path / "trainer.py").write_text(TRAINER)
    given = ["--import", "lab_plugins"] if flag else []
    launch = ["-m", "attn_plugins.launch", "--attn-plugins", "MINE", *given, "--", "trainer.py"]
    done = python(tmp_path, *launch, variable="" if flag else "lab_plugins")
    assert done.returncode == 0, done.stderr
    assert "mine" in done.stdout and "not patched" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plugin", "name", "message"),
    [
        (PLUGIN, "lab_plugin", "ModuleNotFoundError: No module named 'lab_plugin'. It must be installed, or lie in a"),
        ("1 / 0", "lab_plugins", "'lab_plugins', named by --import or ATTN_PLUGINS_IMPORT, does not import: ZeroDiv"),
        pytest.param(PLUGIN + PLUGIN, "lab_plugins", "'mine' is registered already", marks=pytest.mark.nightly),
    ],
)
def test_a_broken_module_is_named(plugin: str, name: str, message: str, tmp_path: Path) -> None:
    done = python(tmp_path, "-c", COMMAND, "list", "--import", name, plugin=plugin)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    code = "import attn_plugins\nattn_plugins.parse('softmax')"
    done = python(tmp_path, "-c", code, variable=name, plugin=plugin)
    assert done.returncode == 1 and message in done.stderr and "PluginImportError" in done.stderr
