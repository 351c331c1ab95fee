"""``patch``, ``unpatch``, ``patched``, ``describe``: plugins on a model, in place and all-or-nothing."""

from ..codebases.base import NORMALIZER, PREFIX
from .description import Description, LayerInfo, describe
from .inplace import patch, patched, unpatch
from .sites import find_attention

__all__ = [
    "NORMALIZER",
    "PREFIX",
    "Description",
    "LayerInfo",
    "describe",
    "find_attention",
    "patch",
    "patched",
    "unpatch",
]
