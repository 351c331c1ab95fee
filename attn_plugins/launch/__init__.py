"""``python -m attn_plugins.launch``, the address of the launcher; see ``attn_plugins.trainers.launch``."""

from ..trainers.launch import main, patch_as_built

__all__ = ["main", "patch_as_built"]
