"""Whatever is raised in the middle of a patch or of its undoing, and wherever: all of it is done, or nothing."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

import attn_plugins
from attn_plugins.patching import ANSWERED

from .models import images, snapshot, tiny_vit

timm = pytest.importorskip("timm")

SPEC = "entmax_alpha+registers:num=2+specialization"


class Fault(BaseException):
    """Like Ctrl-C, at a place of the test's choosing."""


def vit() -> nn.Module:
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 0}
    out: nn.Module = timm.create_model("vit_tiny_patch16_224", **options).eval()
    return out


def lines_of(run: Callable[[], Any], fail_at: int | None = None) -> int:
    """Run with a fault raised before the line with that number, of those that the package's code runs."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        if "attn_plugins" not in frame.f_code.co_filename or "tests" in frame.f_code.co_filename:
            return None
        # What puts a model back is not interrupted itself: nothing can stand behind the last safeguard.
        if frame.f_code.co_name in ("restore", "_write", "_ours", "_is_ours", "is_patched"):
            return None
        if event == "line":
            count += 1
            if count == fail_at:
                raise Fault(f"before line {frame.f_lineno} of {frame.f_code.co_name}")
        return trace

    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(None)
    return count


def held(model: nn.Module) -> dict[str, Any]:
    """Class of every module and the identity of all that it holds."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        own = {key: value for key, value in vars(module).items() if key != ANSWERED}
        stores = {key: {k: id(v) for k, v in value.items()} for key, value in own.items() if isinstance(value, dict)}
        found[path] = type(module), {key: id(value) for key, value in own.items()}, stores
    return found


def faults(prepare: Callable[[], nn.Module], run: Callable[[nn.Module], Any], number: int) -> int:
    """Raise in ``number`` places, spread over the run; after each, the model is as before, or as after, and runs.

    Returns:
        How many left the model half done.
    """
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    first, done = prepare(), prepare()
    total = lines_of(lambda: run(first))
    run(done)
    half = 0
    for index in range(number):
        model = prepare()
        output, before = model(x), held(model)
        with contextlib.suppress(Fault):
            lines_of(functools.partial(run, model), fail_at=1 + index * total // number)
        undone = held(model) == before and torch.equal(model(x), output)
        complete = attn_plugins.describe(model) == attn_plugins.describe(done)
        complete = complete and list(model.state_dict()) == list(done.state_dict())
        half += not (undone or (complete and model(x).isfinite().all()))
    print(f"{number} faults in {total} lines: {half} half done")
    return half


@pytest.mark.parametrize("number", [40, pytest.param(200, marks=pytest.mark.nightly)])
def test_patch_is_all_or_nothing(number: int) -> None:
    assert faults(vit, lambda model: attn_plugins.patch(model, SPEC), number) == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [40, pytest.param(200, marks=pytest.mark.nightly)])
def test_patching_over_another_patch_is_all_or_nothing(number: int) -> None:
    def prepare() -> nn.Module:
        return attn_plugins.patch(vit(), "sparsemax+cb_s")

    assert faults(prepare, lambda model: attn_plugins.patch(model, "entmax15+gated"), number) == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [40, pytest.param(200, marks=pytest.mark.nightly)])
def test_unpatch_is_all_or_nothing(number: int) -> None:
    assert faults(lambda: attn_plugins.patch(vit(), SPEC), attn_plugins.unpatch, number) == 0


def test_ctrl_c_while_attributes_are_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = attn_plugins.patch(tiny_vit(), "entmax_alpha"), images()
    output, before = model(x), snapshot(model)
    seen = 0
    original = attn_plugins.swap.remove

    def interrupted(module: nn.Module) -> None:
        nonlocal seen
        seen += 1
        if seen == 5:
            raise KeyboardInterrupt
        original(module)

    monkeypatch.setattr(attn_plugins.swap, "remove", interrupted)
    with pytest.raises(KeyboardInterrupt):
        attn_plugins.unpatch(model)
    assert snapshot(model) == before and torch.equal(model(x), output)
    monkeypatch.undo()
    bare = tiny_vit()
    bare.load_state_dict(attn_plugins.unpatch(model).state_dict())
    assert torch.equal(bare(x), model(x))
