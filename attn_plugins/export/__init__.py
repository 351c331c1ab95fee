"""Models as programs that run where this package is not: plain torch, ONNX, files."""

from .context import exportable

__all__ = ["exportable"]
