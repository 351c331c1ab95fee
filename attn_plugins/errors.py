"""The errors of this package that callers catch by name."""

from __future__ import annotations

__all__ = ["LibraryLoadError", "PluginImportError", "UnknownPluginError", "UnsupportedModelError"]


class LibraryLoadError(ImportError):
    """A package is installed and cannot be loaded on this machine; the message says what to install instead."""


class PluginImportError(ImportError):
    """A module or package that registers plugins does not import; the message names it and the reason."""


class UnknownPluginError(ValueError):
    """A spec names a normalizer or mechanism that is not registered; the message lists near matches."""


class UnsupportedModelError(ValueError):
    """No attention that can be patched was found; the message lists the module classes that were seen."""
