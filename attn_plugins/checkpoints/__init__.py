"""Checkpoints that know what they are: identify, load, save.

Loading never runs what is in a file, and never pairs weights with another attention than their own.
"""

from .errors import CheckpointError
from .identity import CheckpointInfo, agree, identify, recorded_spec, spec_inside
from .layout import Shape
from .loading import load_backbone, load_backbone_state
from .reading import allowed_globals, read
from .writing import save

__all__ = [
    "CheckpointError",
    "CheckpointInfo",
    "Shape",
    "agree",
    "allowed_globals",
    "identify",
    "load_backbone",
    "load_backbone_state",
    "read",
    "recorded_spec",
    "save",
    "spec_inside",
]
