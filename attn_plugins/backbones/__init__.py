"""ViTs for whoever reads features, layer by layer. Needs torch alone."""

from .features import ViTFeatures, center_pad, evenly_spaced

__all__ = ["ViTFeatures", "center_pad", "evenly_spaced"]
