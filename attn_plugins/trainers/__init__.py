"""Official and other trainers: what the lines inserted into them call.

``checkout`` inserts those lines (``attn-plugins apply``), ``networks`` does their work, ``launch`` does it for a
trainer without them, and ``compat`` keeps trainers running on today's torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compat import keep_old_fsdp_names
    from .networks import before_load, patch_networks, spec_from

__all__ = ["before_load", "keep_old_fsdp_names", "patch_networks", "spec_from"]


def __getattr__(name: str) -> Any:
    """What inserted lines ask for needs torch; putting the lines in does not."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "compat" if name == "keep_old_fsdp_names" else "networks"
    return getattr(importlib.import_module(f".{module}", __name__), name)
