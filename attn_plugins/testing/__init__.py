"""Checks for plugins that other people write, for their tests.

>>> attn_plugins.testing.check_normalizer("mine")
>>> attn_plugins.testing.check_mechanism("shifted:times=3", model, images)
>>> attn_plugins.testing.check_adapter(adapter, module, tokens)

Each raises ``CheckFailed``, an ``AssertionError``, for the first property that does not hold, with its name and
the input; otherwise it returns a ``Report`` of what was checked.
"""

from .adapters import check_adapter
from .mechanisms import check_mechanism
from .normalizers import check_normalizer
from .report import Check, CheckFailed, Report

__all__ = ["Check", "CheckFailed", "Report", "check_adapter", "check_mechanism", "check_normalizer"]
