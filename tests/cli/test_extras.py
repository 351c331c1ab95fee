"""The extras that error messages name are those that suffice."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import attn_plugins
from attn_plugins.cli import COMMANDS, SEPARATE, main
from attn_plugins.errors import LibraryLoadError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGE = Path(attn_plugins.__file__).parent
PROJECT = PACKAGE.parent / "pyproject.toml"

# Modules of distributions whose names differ, and of those that a distribution requires itself.
MODULES = {
    "onedl-mmcv": {"mmcv", "cv2"},
    "onedl-mmengine": {"mmengine", "yaml"},
    "onedl-mmsegmentation": {"mmseg"},
    "onedl-mim": {"mim"},
    "pillow": {"PIL"},
    "timm": {"timm", "safetensors", "huggingface_hub", "yaml", "torchvision"},
    "lightly": {"lightly"},
    "scikit-learn": {"sklearn", "scipy"},
}
TORCH = {"torch", "jinja2", "filelock", "typing_extensions"}


def provided(extras: str) -> set[str]:
    """Modules that one installs with ``attn_plugins[extras]``."""
    if not PROJECT.is_file():
        pytest.skip("the extras are in pyproject.toml, which is not beside an installed package")
    declared = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"]
    found = set(TORCH)
    for extra in extras.split(","):
        for requirement in declared[extra]:
            inner = re.fullmatch(r"attn_plugins\[(.*)\]", requirement)
            name = re.match(r"[\w-]+", requirement)
            assert name is not None
            found |= provided(inner[1]) if inner else MODULES.get(name[0], {name[0].replace("-", "_")})
    return found


def reached(module: str) -> set[str]:
    """Modules that ``module`` and those of the package below it import, wherever in their code; not in ``try``."""
    seen: set[str] = set()
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        path = PACKAGE.parent / Path(*name.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if not file.is_file():
            continue
        tree = ast.parse(file.read_text())
        guarded = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.Try) for inner in ast.walk(node)}
        for node in ast.walk(tree):
            if id(node) in guarded:
                continue
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                above = name.split(".") if path.is_dir() else name.split(".")[:-1]
                base = ".".join([*above[: len(above) - node.level + 1], *filter(None, [node.module])])
                base = base if node.level else str(node.module)
                names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
            waiting += [name for name in names if name.startswith("attn_plugins")]
            found |= {name.partition(".")[0] for name in names}
    return found - set(sys.stdlib_module_names) - {"attn_plugins", "__future__"}


@pytest.mark.slow
@pytest.mark.parametrize("command", [name for name, extra in COMMANDS.items() if extra])
def test_the_extra_of_a_command_has_what_it_imports(command: str) -> None:
    extra = COMMANDS[command]
    assert extra is not None
    missing = reached(f"attn_plugins.cli.{command}") - provided(extra) - set(SEPARATE) - {"triton"}
    assert not missing, f"{command} can need {missing}, which attn_plugins[{extra}] has not"


ALONE = """
import sys
import importlib.abc

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

BLOCKED = set(sys.argv.pop(1).split(","))
sys.meta_path.insert(0, Blocked())
from attn_plugins.cli import main
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["list"], ["env"], ["apply", "--help"], ["table", "--help"], ["--help"]])
def test_the_others_need_torch_alone(arguments: list[str]) -> None:
    blocked = ",".join(provided("test") - TORCH)
    command = [sys.executable, "-c", ALONE, blocked, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def test_the_message_names_the_extra_or_the_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from attn_plugins.cli import bench, env

    def failing(name: str) -> object:
        def run(args: object) -> int:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        return run

    for name, remedy in (("timm.models", "'attn_plugins[test]'"), ("transformers.utils", "transformers")):
        monkeypatch.setattr(bench, "run", failing(name))
        assert main(["bench", "attention"]) == 2
        assert f"attn-plugins bench: needs {name}: pip install {remedy}\n" in capsys.readouterr().err
    monkeypatch.setattr(env, "run", failing("timm"))
    with pytest.raises(ModuleNotFoundError):
        main(["env"])


def test_a_library_that_does_not_load_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from attn_plugins.cli import env

    def run(args: object) -> int:
        raise LibraryLoadError("OpenCV does not load here")

    monkeypatch.setattr(env, "run", run)
    assert main(["env"]) == 2
    assert capsys.readouterr().err == "attn-plugins env: OpenCV does not load here\n"
