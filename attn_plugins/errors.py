"""The two errors of this package that callers catch by name."""

from __future__ import annotations

__all__ = ["UnknownPluginError", "UnsupportedModelError"]


class UnknownPluginError(ValueError):
    """A spec names a normalizer or mechanism that is not registered; the message lists near matches."""


class UnsupportedModelError(ValueError):
    """No attention that can be patched was found; the message lists the module classes that were seen."""
