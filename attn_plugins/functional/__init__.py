"""The maths: attention scores to attention weights. Pure functions of tensors; no modules, no models."""

from .alpha import EntmaxAlpha
from .anneal import EntmaxAnneal
from .entmax import entmax, entmax15, entmax_alpha, softmax, sparsemax
from .normalizer import Normalizer, bind

__all__ = [
    "EntmaxAlpha",
    "EntmaxAnneal",
    "Normalizer",
    "bind",
    "entmax",
    "entmax15",
    "entmax_alpha",
    "softmax",
    "sparsemax",
]
