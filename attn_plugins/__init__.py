"""Sparse attention and token mechanisms for the Vision Transformers that people already have.

>>> attn_plugins.patch(model, "entmax15")

The public names (``attn_plugins._public``), and torch with them, are imported when the first is asked for: what
needs neither, as ``attn-plugins --help``, does not wait for them.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

from . import registry as _registry

if TYPE_CHECKING:
    from ._public import *  # noqa: F403

__version__ = "0.1.0"


__all__ = [
    "Adapter",
    "Anneal",
    "AttentionCall",
    "Backend",
    "Calibration",
    "Codebase",
    "Monitor",
    "PluginImportError",
    "Spec",
    "UnknownPluginError",
    "UnsupportedModelError",
    "attention",
    "calibrate",
    "describe",
    "exportable",
    "from_pretrained",
    "functional",
    "mechanisms",
    "parse",
    "patch",
    "patched",
    "register_adapter",
    "register_backend",
    "register_codebase",
    "register_mechanism",
    "register_normalizer",
    "unpatch",
    "verify",
]


class _Package(types.ModuleType):
    """This package as a module, in which ``attention`` is the function also when the folder of that name is loaded."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "attention" and isinstance(value, types.ModuleType):
            return
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def _load() -> None:
    """Import the public names."""
    public = importlib.import_module("._public", __name__)
    globals().update({name: getattr(public, name) for name in __all__})


# Whoever imports a module of the package alone finds every built-in plugin registered too.
_registry.BEFORE_LOOKING.append(_load)


def __getattr__(name: str) -> Any:
    """A public name, or a module of the package."""
    if name in __all__ and name not in ("functional", "mechanisms"):
        _load()
        return globals()[name]
    missing = AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name.startswith("_"):
        raise missing
    try:
        return importlib.import_module(f".{name}", __name__)
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
        raise missing from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
