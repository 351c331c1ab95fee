"""Every code block of every README does what it says: Python runs, commands are known, and so are their arguments.

Console blocks run in a fresh shell, a README's one after another, in a copy of the repository's folders. What they
call is a stand-in that writes down how it was called; each call is then given to the parser of the real program.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement

import attn_plugins
from attn_plugins.cli import COMMANDS as COMMANDS_OF_THE_PROGRAM
from attn_plugins.cli import main
from attn_plugins.registry import NORMALIZERS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
FOLDERS = ("attn_plugins", "docs", "integration", "mmseg_configs", "tests/golden")
PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for pattern in ("*.md", *(f"{folder}/**/*.md" for folder in FOLDERS))
    for page in ROOT.glob(pattern)
)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
BLOCKS = [(page, kind, text) for page in PAGES for kind, text in BLOCK.findall((ROOT / page).read_text())]
UPSTREAM = {"dino": "DINO_ROOT", "dinov2": "DINOV2_ROOT"}
PROGRAMS = ("attn-plugins", "git", "make", "mim", "pip", "python", "sbatch", "torchrun")
RECORD = """#!{python}
import json, os, sys
call = [os.path.basename(sys.argv[0]), *sys.argv[1:]], os.getcwd(), os.environ.get("PYTHONPATH", "")
with open({log!r}, "a") as log:
    log.write(json.dumps(call) + "\\n")
"""

Call = tuple[list[str], Path, str]
"""Words, working folder, PYTHONPATH."""


def test_every_block_is_of_a_kind_that_is_run() -> None:
    assert len(BLOCKS) >= 20 and {page for page, _, _ in BLOCKS} >= {"README.md", "mmseg_configs/README.md"}
    assert {kind for _, kind, _ in BLOCKS} == {"console", "python"}


def test_the_pages_have_every_public_name_and_every_command() -> None:
    reference = (ROOT / "docs/reference.md").read_text()
    named = set(re.findall(r"^::: [\w.]+\.(\w+)$", reference, re.M))
    assert set(attn_plugins.__all__) <= named
    told = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/commands.md").read_text(), re.M))
    assert told == set(COMMANDS_OF_THE_PROGRAM)


def test_every_page_is_in_the_navigation() -> None:
    pages = re.findall(r"^  - [^:\n]+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert sorted(pages) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        assert not anchor or anchor in anchors(target), f"{page}: {link}"
        # What mkdocs builds of docs/ has nothing outside of it.
        assert not page.startswith("docs/") or (ROOT / "docs") in target.resolve().parents, f"{page}: {link}"


PYTHON = [(page, text) for page, kind, text in BLOCKS if kind == "python"]


@pytest.mark.parametrize(("page", "text"), PYTHON, ids=[f"{page}-{n}" for n, (page, _) in enumerate(PYTHON)])
def test_python(page: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if "onnx" in text:
        pytest.importorskip("onnxscript")
    timm = pytest.importorskip("timm")
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 3, "depth": 2 if "onnx" in text else 12}
    model = timm.create_model("vit_tiny_patch16_224", **options).eval()
    if ".patch(" not in text:
        attn_plugins.patch(model, "entmax15")
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    q, k, v = torch.randn(3, 1, 3, 17, 8, generator=torch.Generator().manual_seed(1))
    names = {"torch": torch, "attn_plugins": attn_plugins, "model": model, "images": images, "q": q, "k": k, "v": v}
    with NORMALIZERS.temporarily():
        exec(compile(text, page, "exec"), names)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's folders, upstream's checkouts where the pages have them, and the stand-ins."""
    space = tmp_path_factory.mktemp("readme")
    for name in ("integration", "mmseg_configs"):
        shutil.copytree(ROOT / name, space / name)
    for place in (space / "PATH" / "TO", *(space / "integration").glob("*/")):
        place.mkdir(parents=True, exist_ok=True)
        for name, variable in UPSTREAM.items():
            if variable in os.environ:
                (place / name).symlink_to(os.environ[variable])
    for script in ("TRAINER.py", "integration/timm/pytorch-image-models/validate.py"):
        (space / script).parent.mkdir(exist_ok=True)
        (space / script).touch()
    (space / "bin").mkdir()
    for name in PROGRAMS:
        program = space / "bin" / name
        program.write_text(RECORD.format(python=sys.executable, log=str(space / "log")))
        program.chmod(0o755)
    return space


def recorded(space: Path, folder: str, script: str, **environment: str) -> list[Call]:
    """What a script calls, in a fresh shell."""
    log = space / "log"
    log.write_text("")
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run(
        [bash, "-eu", "-c", script],
        cwd=space / folder,
        env={"PATH": f"{space / 'bin'}{os.pathsep}{os.environ['PATH']}", "HOME": str(space), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [(words, Path(cwd), path) for words, cwd, path in map(json.loads, log.read_text().splitlines())]


CONSOLE = sorted({page for page, kind, _ in BLOCKS if kind == "console"})


@pytest.mark.parametrize("page", CONSOLE)
def test_console(page: str, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "\n".join(text for name, kind, text in BLOCKS if (name, kind) == (page, "console"))
    # What the training script writes is the user's; here it would be in the root of the file system.
    script = script.replace("/runs", f"{workspace}/runs")
    folder = Path(page).parent if page.startswith("integration") else Path()
    calls = recorded(workspace, str(folder), script)
    assert calls
    for words, cwd, path in calls:
        words = [words[0], *(word for word in words[1:] if word != "...")]
        monkeypatch.chdir(cwd)
        CHECKS[words[0]](words[1:], cwd, path)


COMMANDS = [
    (page.parent.name, command)
    for page in sorted((ROOT / "integration").glob("*/README.md"))
    for command in re.findall(r"`([^`\n]*\./train\.sh [^`\n]*)`", page.read_text())
]
NEEDED = {
    "dino": ("DINO_ROOT", "DATA"),
    "dinov2": ("DINOV2_ROOT", "DATASET"),
    "dinov3": ("DINOV3_ROOT", "DATASET"),
    "lightly_train": ("DATA",),
    "timm": ("TIMM_ROOT", "DATA"),
}


@pytest.mark.parametrize(("folder", "command"), COMMANDS, ids=[f"{f}-{n}" for n, (f, _) in enumerate(COMMANDS)])
def test_commands_of_the_tables(folder: str, command: str, workspace: Path) -> None:
    environment = {name: f"/src/{name.lower()}" for name in NEEDED[folder]} | {"OUT": str(workspace / "runs")}
    calls = recorded(workspace, f"integration/{folder}", command, **environment)
    (call,) = (words for words, _, _ in calls if words[0] in ("sbatch", "torchrun"))
    assert call[0] == ("sbatch" if "RUN=slurm" in command else "torchrun")
    assert any("entmax15" in word for word in call)
    for words, cwd, path in calls:
        if words[0] == "attn-plugins":
            attn_plugins_command(words[1:], cwd, path)


def attn_plugins_command(words: list[str], cwd: Path, path: str) -> None:
    parser = argparse.ArgumentParser(prog="attn-plugins", exit_on_error=False)
    importlib.import_module(f"attn_plugins.cli.{words[0]}").add_parser(parser.add_subparsers())
    parser.parse_args(words)


def git(words: list[str], cwd: Path, path: str) -> None:
    if words[0] == "-C":
        words = words[2:]
    if words[0] == "checkout":
        commits = json.loads((ROOT / "patches" / "manifest.json").read_text()).values()
        assert any(commit.startswith(words[1]) for entry in commits for commit in entry["commits"]), words
    else:
        assert words[0] in ("clone", "worktree")
        assert words[0] == "worktree" or re.fullmatch(r"https://github\.com/[\w-]+/[\w-]+", words[-1])


def make(words: list[str], cwd: Path, path: str) -> None:
    for target in words:
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


def mim(words: list[str], cwd: Path, path: str) -> None:
    command = pytest.importorskip(f"mim.commands.{words[0]}").cli
    given = command.make_context(words[0], list(words[1:]), resilient_parsing=False)
    assert given.params["package"] == "mmseg"
    config = cwd / given.params["config"]
    if words[0] == "gridsearch":
        searched = next(iter(given.params["search_args"])) if isinstance(given.params["search_args"], tuple) else ""
        keys = re.findall(r"--([\w.]+)", searched or given.params["search_args"])
        assert keys
        options = dict.fromkeys(keys, "x")
    else:
        head = [given.params["checkpoint"]] if words[0] == "test" else []
        options = mmseg_options(words[0], [str(config), *head, *given.params["other_args"]])
    known = importlib.import_module("mmengine.config").Config.fromfile(config)
    known.merge_from_dict(options)


def mmseg_options(action: str, words: list[str]) -> dict[str, Any]:
    """`--cfg-options` as mmseg's own train.py or test.py reads them."""
    tools = Path(importlib.import_module("mmseg").__file__ or "").parent / ".mim" / "tools"
    parse = runpy.run_path(str(tools / f"{action}.py"), run_name="mmseg_tool")["parse_args"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [action, *words])
        args = parse()
    assert isinstance(args.cfg_options, dict) and args.cfg_options
    return args.cfg_options


def pip(words: list[str], cwd: Path, path: str) -> None:
    assert words[0] == "install"
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words[1:]:
        requirement = Requirement(word.replace(".", "attn_plugins", 1) if word[0] == "." else word)
        if requirement.name == "attn_plugins":
            assert requirement.extras <= extras.keys()
        assert not requirement.specifier or word in pins, f"{word} is not what constraints.txt has"


def python(words: list[str], cwd: Path, path: str) -> None:
    if words[:2] == ["-m", "attn_plugins.launch"]:
        parse = importlib.import_module("attn_plugins.trainers.launch.cli")._parse
        args, script = parse(words[2:])
        assert attn_plugins.parse(args.attn_plugins) and script
        return
    script = cwd / words[0]
    checkout = next((name for name in UPSTREAM if name in Path(words[0]).parts), None)
    if checkout is not None and UPSTREAM[checkout] not in os.environ:
        pytest.skip(f"set {UPSTREAM[checkout]} to a checkout")
    assert script.is_file() or (ROOT / words[0]).is_file(), f"{words[0]} is not where the page has it"
    # Python finds a checkout's package beside the script or by PYTHONPATH, nowhere else: it is not installed.
    for package in re.findall(r"^from (dinov2)\b", script.read_text() if script.is_file() else "", re.M):
        places = [script.parent, *(cwd / place for place in path.split(os.pathsep) if place)]
        assert any((place / package / "__init__.py").is_file() for place in places), f"{words[0]} imports {package}"


def torchrun(words: list[str], cwd: Path, path: str) -> None:
    scripts = [word for word in words if word.endswith((".py", ".sh"))]
    assert any("attn_plugins" in word for word in words) or (cwd / scripts[0]).is_file()


CHECKS: dict[str, Callable[[list[str], Path, str], None]] = {
    "attn-plugins": attn_plugins_command,
    "git": git,
    "make": make,
    "mim": mim,
    "pip": pip,
    "python": python,
    "sbatch": torchrun,
    "torchrun": torchrun,
}


def scripts() -> Iterator[tuple[str, str, str, list[str]]]:
    """(page, checkout, script, options) of the official scripts that pages start."""
    for page in CONSOLE:
        text = "\n".join(text for name, kind, text in BLOCKS if (name, kind) == (page, "console"))
        for words in re.findall(r"python (\S*dino\S*\.py)((?:[^\n]*\\\n)*[^\n]*)", text):
            checkout = next(name for name in reversed(UPSTREAM) if f"{name}/" in words[0])
            yield page, checkout, words[0].split(f"{checkout}/", 1)[1], re.findall(r"(--[\w-]+)", words[1])


# As `python SCRIPT --help`; DINOv1's asks GitHub for the names of further architectures before it looks at its options.
HELP = """
import os, runpy, sys, torch
script = sys.argv[1]
sys.argv[1:], sys.path[0], torch.hub.list = [script, "--help"][1:], os.path.dirname(script), lambda *_, **__: []
runpy.run_path(script, run_name="__main__")
"""


@functools.cache
def helped(checkout: str, script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What `--help` prints in a patched copy; asked once, whatever number of pages start the script."""
    root = shutil.copytree(os.environ[UPSTREAM[checkout]], folder / Path(script).stem)
    assert main(["apply", checkout, str(root)]) == 0
    path = os.pathsep.join([str(ROOT), *([str(root)] if checkout == "dinov2" else [])])
    return subprocess.run(
        [sys.executable, "-c", HELP, str(root / script)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def patched_copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("patched")


@pytest.mark.slow
@pytest.mark.parametrize(("page", "checkout", "script", "options"), list(scripts()))
def test_official_scripts_know_the_options(
    page: str, checkout: str, script: str, options: list[str], patched_copies: Path
) -> None:
    if UPSTREAM[checkout] not in os.environ:
        pytest.skip(f"set {UPSTREAM[checkout]} to a checkout")
    done = helped(checkout, script, patched_copies)
    missing = re.search(r"No module named '(fvcore|iopath|submitit|xformers)", done.stderr)
    if missing:
        pytest.skip(f"{script} needs {missing[1]}, which is not installed")
    assert done.returncode == 0, done.stderr
    for option in options:
        assert option in done.stdout, option
