"""mmseg is imported here first: beside an mmcv without compiled operators, and without its talk about what is missing.

OpenMMLab's own mmsegmentation 1.2.2 imports ``mmcv.ops`` for heads and losses that no probe has, and could not be
imported. Importing this module helps; the maintained packages (``onedl-*``) do without the operators themselves.
All of them read pictures by OpenCV, whose usual wheel does not load where there are no windows.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import sys
import warnings
from types import ModuleType
from typing import Any, NoReturn

from ..errors import LibraryLoadError

__all__ = ["import_mmseg", "load_opencv", "stand_in_for_operators"]

# Of readers and operators that no probe has: it looks like an error to whoever sees it at the start of every command.
_PRINTED = "Could not import OneDL"
_WARNED = "Fail to import ``MultiScaleDeformableAttention``"


class _Operators(ModuleType):
    """``mmcv.ops``, of which any name can be imported, and none be called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

        def refuse(*args: Any, **kwargs: Any) -> NoReturn:
            raise NotImplementedError(
                f"mmcv.ops.{name} is a compiled operator, and mmcv {sys.modules['mmcv'].__version__} is installed "
                "without them; the probes need none. Install an mmcv with operators, or leave out what uses this one"
            )

        return type(name, (), {"__new__": refuse})


def load_opencv() -> None:
    """Import OpenCV, as mmcv will.

    Raises:
        LibraryLoadError: a system library is missing (X11's, on servers and in containers).
    """
    try:
        importlib.import_module("cv2")
    except ModuleNotFoundError:
        raise
    except ImportError as error:
        raise LibraryLoadError(
            f"OpenCV does not load here: {error}. Its build for machines without windows does: "
            "pip install --force-reinstall --no-deps opencv-python-headless"
        ) from error


def stand_in_for_operators() -> None:
    """Let OpenMMLab's mmseg be imported where mmcv has no compiled operators; does nothing elsewhere."""
    try:
        importlib.metadata.version("mmsegmentation")
    except importlib.metadata.PackageNotFoundError:
        return
    try:
        importlib.import_module("mmcv.ops")
    except ModuleNotFoundError as error:
        if error.name != "mmcv._ext":
            raise
        operators = sys.modules["mmcv.ops"] = _Operators("mmcv.ops")
        setattr(sys.modules["mmcv"], "ops", operators)  # noqa: B010


def import_mmseg() -> None:
    """Import mmseg, which then says nothing of what the probes do without; all else that it says is kept."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()) as printed:
        warnings.filterwarnings("ignore", message=_WARNED)
        for name in ("mmseg.datasets", "mmseg.models"):
            importlib.import_module(name)
    for line in printed.getvalue().splitlines():
        if line != _PRINTED:
            print(line)


load_opencv()
stand_in_for_operators()
import_mmseg()
