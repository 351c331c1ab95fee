"""What pickles of release 0.1 name."""

from .patching.record import _check, _write

__all__ = ["_check", "_write"]
