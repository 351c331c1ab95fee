"""Checkpoints that know what they are: read, identify, load, save, build.

Loading never runs what is in a file, and never pairs weights with another attention than their own.
"""

from .applying import Choice
from .building import build, chosen_plugins
from .digest import backbone_digest
from .errors import CheckpointError
from .huggingface import from_pretrained
from .identity import CheckpointInfo, identify, recorded_spec, spec_inside
from .keeping import Keeping, parent_of
from .layout import Shape
from .loading import load_backbone, load_backbone_state
from .reading import allowed_globals, read
from .reference import reference
from .told import agree
from .writing import save

__all__ = [
    "CheckpointError",
    "CheckpointInfo",
    "Choice",
    "Keeping",
    "Shape",
    "agree",
    "allowed_globals",
    "backbone_digest",
    "build",
    "chosen_plugins",
    "from_pretrained",
    "identify",
    "load_backbone",
    "load_backbone_state",
    "parent_of",
    "read",
    "recorded_spec",
    "reference",
    "save",
    "spec_inside",
]
