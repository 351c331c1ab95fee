"""OpenMMLab's own mmseg beside an mmcv without compiled operators; `make compat` runs a probe on them."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from attn_plugins.errors import LibraryLoadError
from attn_plugins.probes.operators import import_mmseg, load_opencv, stand_in_for_operators


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


def test_opencv_that_lacks_a_system_library_is_told_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cv2.py").write_text("raise ImportError('libxcb.so.1: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "cv2", sys.modules["cv2"])  # put back afterwards
    monkeypatch.delitem(sys.modules, "cv2")
    with pytest.raises(LibraryLoadError, match=r"libxcb\.so\.1.*pip install .* opencv-python-headless"):
        load_opencv()


def test_opencv_that_is_not_there_is_not_taken_for_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ModuleNotFoundError, match="cv2"):
        load_opencv()


@pytest.mark.slow
def test_nothing_is_said_of_what_the_probes_do_without() -> None:
    told = subprocess.run(
        [sys.executable, "-c", "import attn_plugins.probes"], capture_output=True, text=True, check=True
    )
    assert told.stdout == "" and "MultiScaleDeformableAttention" not in told.stderr


def test_what_else_is_said_on_the_way_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def say(name: str) -> None:
        if name != "mmseg.models":
            return
        print("Could not import OneDL\na licence has expired")
        warnings.warn("Fail to import ``MultiScaleDeformableAttention`` from ``mmcv.ops``", stacklevel=2)
        warnings.warn("this release has a hole", stacklevel=2)

    monkeypatch.setattr(importlib, "import_module", say)
    with pytest.warns(UserWarning) as warned:
        import_mmseg()
    assert capsys.readouterr().out == "a licence has expired\n"
    assert [str(warning.message) for warning in warned] == ["this release has a hole"]
