"""ViTs for whoever reads features: built from a checkpoint, and read layer by layer. Needs torch alone."""

from .architectures import load_backbone
from .features import ViTFeatures, center_pad, evenly_spaced

__all__ = ["ViTFeatures", "center_pad", "evenly_spaced", "load_backbone"]
