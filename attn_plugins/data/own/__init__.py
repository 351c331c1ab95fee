"""A user's own pictures: a folder of images, and one of masks, of depth maps, or a folder for each class."""

from .classes import Classes, decide_classes, parse_values
from .pairs import Pair, find_images, find_pairs, part_of
from .scan import Found, scan_depth, scan_images, scan_masks

__all__ = [
    "Classes",
    "Found",
    "Pair",
    "decide_classes",
    "find_images",
    "find_pairs",
    "parse_values",
    "part_of",
    "scan_depth",
    "scan_images",
    "scan_masks",
]
