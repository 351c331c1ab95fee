"""Depth: data sets by split files, transforms that keep depth aligned, head, losses and errors."""

from .data import BorderCrop, ColorAugment, DepthSplit, KBCrop, LoadDepth, RandomDepthRotate
from .losses import LogGradientLoss, SigLoss
from .metric import DepthErrors
from .model import DepthBinsHead, DepthProbe
from .views import StoredDepth

__all__ = [
    "BorderCrop",
    "ColorAugment",
    "DepthBinsHead",
    "DepthErrors",
    "DepthProbe",
    "DepthSplit",
    "KBCrop",
    "LoadDepth",
    "LogGradientLoss",
    "RandomDepthRotate",
    "SigLoss",
    "StoredDepth",
]
