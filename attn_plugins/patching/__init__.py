"""``patch``, ``unpatch``, ``patched``, ``describe``, ``verify``: plugins on a model, in place and all-or-nothing."""

from ..codebases.answer import NORMALIZER
from ..codebases.proof import ANSWERED
from ..swap import PREFIX
from .description import Description, LayerInfo, describe
from .inplace import patch, patched, unpatch
from .record import spec_of
from .sites import find_attention
from .verify import LayerCheck, Verification, verify

__all__ = [
    "ANSWERED",
    "NORMALIZER",
    "PREFIX",
    "Description",
    "LayerCheck",
    "LayerInfo",
    "Verification",
    "describe",
    "find_attention",
    "patch",
    "patched",
    "spec_of",
    "unpatch",
    "verify",
]
