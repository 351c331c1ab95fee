"""torch's private names stand in one module, and every one of them is what that module takes it for.

A name that a release of torch moves fails here, by its name, before anything else does.
"""

from __future__ import annotations

import argparse
import ast
import importlib
from pathlib import Path

import pytest
import torch

import attn_plugins
from attn_plugins import torch_names

PACKAGE = Path(attn_plugins.__file__).parent
PRIVATE = {
    "torch._softmax": (2, 4),
    "torch._native_multi_head_attention": (2, 4),
    "torch._transformer_encoder_layer_fwd": (2, 4),
    "torch._assert": (2, 4),
    "torch._ops.OpOverloadPacket": (2, 4),
    "torch._C._get_tracing_state": (2, 4),
    "torch._C._set_tracing_state": (2, 4),
    "torch._C._nn.scaled_dot_product_attention": (2, 4),
    "torch.autograd.forward_ad._current_level": (2, 4),
    "torch.utils._pytree.tree_flatten": (2, 4),
    "torch.distributed.fsdp._runtime_utils._reshard": (2, 4),
    "torch._dynamo.utils._disable_side_effect_safety_checks_for_current_subtracer": (2, 8),
    "torch.onnx._internal.exporter._flags._is_onnx_exporting": (2, 8),
}
"""Each private name that the package uses, and the first release of torch that has it there."""


def find(name: str) -> object:
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            value: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            value = getattr(value, part)
        return value
    raise AssertionError(name)


@pytest.mark.parametrize("name", PRIVATE)
def test_a_private_name_is_where_this_torch_has_it(name: str) -> None:
    if PRIVATE[name] <= torch_names.VERSION:
        find(name)
    else:
        with pytest.raises((AttributeError, AssertionError)):
            find(name)


def private_parts(file: Path) -> set[str]:
    """Dotted names that begin at torch and have a part with one leading underscore, as code writes them."""
    tree, found = ast.parse(file.read_text()), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torch":
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute):
            found.add(ast.unparse(node))
    dotted = {name for name in found if name.startswith("torch.") and name.replace(".", "").isidentifier()}
    return {name for name in dotted if any(p.startswith("_") and not p.startswith("__") for p in name.split("."))}


def test_no_other_module_names_one() -> None:
    named = {file.relative_to(PACKAGE).as_posix(): private_parts(file) for file in PACKAGE.rglob("*.py")}
    assert named.pop("torch_names.py")
    # An operator of ATen is public whatever its name is.
    assert not {file: names for file, names in named.items() if names}


def test_an_old_torch_is_refused_by_the_name_of_what_it_lacks() -> None:
    major, minor = torch_names.VERSION
    torch_names.needs((major, minor), "this")
    with pytest.raises(ValueError, match=rf"compiling needs torch {major}\.{minor + 1} or later, and {major}\.{minor}"):
        torch_names.needs((major, minor + 1), "compiling")


def test_a_file_is_read_under_the_name_it_was_written_with(tmp_path: Path) -> None:
    torch.save({"args": argparse.Namespace(lr=1.0)}, tmp_path / "file.pth")
    before = set(torch.serialization.get_safe_globals())
    with torch_names.safe_globals([(argparse.Namespace, "argparse.Namespace")]):
        assert torch.load(tmp_path / "file.pth", weights_only=True)["args"].lr == 1.0
    assert set(torch.serialization.get_safe_globals()) == before


def test_a_newer_torch_is_told_once_and_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    torch_names.tell_if_newer.cache_clear()
    monkeypatch.setattr(torch_names, "VERSION", (torch_names.TESTED[0], torch_names.TESTED[1] + 1))
    for _ in range(2):
        torch_names.tell_if_newer()
    torch_names.tell_if_newer.cache_clear()
    (record,) = caplog.records
    assert "is newer than 2.14" in record.getMessage()
