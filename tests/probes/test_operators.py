"""OpenMMLab's own mmseg beside an mmcv without compiled operators; `make compat` runs a probe on them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys

import pytest

from attn_plugins.probes.operators import stand_in_for_operators


@pytest.fixture
def without_operators(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The installed mmcv as it was imported, with nothing of ``mmcv.ops`` yet."""
    import mmcv

    if importlib.util.find_spec("mmcv._ext"):
        pytest.skip("this mmcv has its operators")
    monkeypatch.setattr(mmcv, "ops", None, raising=False)  # put back afterwards, whatever the test leaves there
    monkeypatch.setitem(sys.modules, "mmcv.ops", None)
    monkeypatch.delitem(sys.modules, "mmcv.ops")
    return monkeypatch


def test_its_names_can_be_imported_and_refuse_to_be_called(without_operators: pytest.MonkeyPatch) -> None:
    without_operators.setattr(importlib.metadata, "version", lambda name: "1.2.2")
    stand_in_for_operators()
    from mmcv.ops import DeformConv2d, point_sample

    assert not isinstance(3, DeformConv2d)
    with pytest.raises(NotImplementedError, match=r"mmcv\.ops\.point_sample is a compiled operator, and mmcv \d"):
        point_sample(None, None)


def test_the_maintained_packages_are_left_alone(without_operators: pytest.MonkeyPatch) -> None:
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("mmsegmentation")
    stand_in_for_operators()
    assert "mmcv.ops" not in sys.modules


def test_another_missing_module_is_told(without_operators: pytest.MonkeyPatch) -> None:
    without_operators.setattr(importlib.metadata, "version", lambda name: "1.2.2")
    without_operators.setitem(sys.modules, "mmcv.ops", None)
    with pytest.raises(ModuleNotFoundError, match=r"mmcv\.ops"):
        stand_in_for_operators()
