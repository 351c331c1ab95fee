"""Imports run one way between the rooms of the package (attn_plugins/README.md), and none runs in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import attn_plugins

PACKAGE = Path(attn_plugins.__file__).parent
GROUND: tuple[str, ...]
GROUND = ("errors", "spec", "registry", "record", "swap", "native", "text", "files", "machine", "progress", "shipped")
GROUND += ("plugin_modules", "unregistered", "results", "by_layer", "params", "torch_names")
FLOORS = (
    GROUND,
    ("functional",),
    ("attention",),
    ("codebases",),
    ("mechanisms",),
    ("patching",),
    ("checkpoints",),
    ("adapt", "trainers", "training", "probes", "analysis", "export", "data", "testing"),
    ("bench", "demo"),
    ("cli",),
)
"""From the lowest: a room imports from its own floor and from those below."""
NAMES_OF_THE_LAST_RELEASE = {"adapters": "codebases", "launch": "trainers", "stamp": "patching"}
"""Rooms that only pickles, commands and users' checkouts name, and where what they name is now."""
CODEBASES = {"dinov1", "dinov2", "dinov3", "timm"}
"""Whose names only :mod:`attn_plugins.codebases` knows."""
KNOWS_NO_CODEBASE = ("mechanisms", "patching", "checkpoints", "trainers", "probes", "analysis")
NAMES_ONE: dict[str, str] = {
    "mechanisms/registers.py": "the names that pickles of release 0.1 hold",
    "mechanisms/specialization.py": "the names that pickles of release 0.1 hold",
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(file: Path) -> str:
    name = file.relative_to(PACKAGE).with_suffix("").parts[0]
    return {"_public": "__init__", "__main__": "cli"}.get(name, name)


def imported(file: Path) -> Iterator[tuple[int, str]]:
    """(line, room) of every import of the package in a file, those inside functions too."""
    package = ("attn_plugins", *file.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(file.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "attn_plugins" else [module]
        for name in names:
            parts = name.split(".")
            if parts[0] == "attn_plugins":
                found = parts[1] if len(parts) > 1 else "__init__"
                known = (PACKAGE / found).is_dir() or (PACKAGE / f"{found}.py").is_file()
                yield getattr(node, "lineno", 0), found if known and found != "_public" else "__init__"


def floor(name: str) -> int:
    name = NAMES_OF_THE_LAST_RELEASE.get(name, name)
    return next(height for height, rooms in enumerate(FLOORS) if name in rooms)


def edges() -> dict[tuple[str, str], str]:
    """{(room, room that it imports): one place where it does}."""
    return {
        (room(file), target): f"{file.relative_to(PACKAGE)}:{line}"
        for file in modules()
        for line, target in imported(file)
        if target != room(file) and room(file) != "__init__"
    }


def test_every_room_has_a_floor() -> None:
    placed = {name for rooms in FLOORS for name in rooms}
    assert {room(file) for file in modules()} - placed - set(NAMES_OF_THE_LAST_RELEASE) == {"__init__"}


def test_no_import_runs_upwards() -> None:
    # The root imports from everywhere, so only the top floor may ask it.
    top = len(FLOORS) - 1
    upwards = {
        f"{place} imports {target}"
        for (source, target), place in edges().items()
        if floor(source) < (top if target == "__init__" else floor(target))
    }
    assert not upwards


def test_no_imports_run_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for source, target in edges():
        graph.setdefault(source, set()).add(target)
    while graph:  # take away the rooms that import nothing that is left
        done = [name for name, targets in graph.items() if not targets & graph.keys()]
        assert done, {name: targets & graph.keys() for name, targets in graph.items()}
        for name in done:
            del graph[name]


def test_nothing_imports_names_of_the_last_release() -> None:
    assert not [place for (_, target), place in edges().items() if target in NAMES_OF_THE_LAST_RELEASE]


@pytest.mark.parametrize("where", KNOWS_NO_CODEBASE)
def test_only_its_own_file_names_a_codebase(where: str) -> None:
    named = {
        str(file.relative_to(PACKAGE)): found
        for file in sorted((PACKAGE / where).rglob("*.py"))
        if (found := set(codebases_named(file)))
    }
    assert named.keys() == {file for file in NAMES_ONE if file.startswith(f"{where}/")}, named


def codebases_named(file: Path) -> Iterator[str]:
    """The codebases that code imports or has as a string; docstrings, comments and messages may speak of them."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None) or ""
            names = [*module.split("."), *(alias.name.split(".")[0] for alias in node.names)]
            yield from CODEBASES.intersection(names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from CODEBASES.intersection([node.value.partition("/")[0]])
