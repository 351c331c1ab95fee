"""OpenMMLab's own mmseg beside an mmcv without compiled operators: ``mmcv-lite``, or mmcv built without them.

mmsegmentation 1.2.2 imports ``mmcv.ops`` for heads and losses that no probe has, and could not be imported. Importing
this module is what helps; the maintained packages (``onedl-*``) do without the operators themselves.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from types import ModuleType
from typing import Any, NoReturn

__all__ = ["stand_in_for_operators"]


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


stand_in_for_operators()
