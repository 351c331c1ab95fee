"""What pickles of release 0.1 name."""

from ..codebases.base import _rebuild

__all__ = ["_rebuild"]
