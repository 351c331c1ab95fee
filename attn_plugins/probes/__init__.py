"""Linear probes on frozen ViTs, registered in mmseg; configs get them by `custom_imports`."""

from .backbone import FrozenViT
from .heads import BNLinearHead
from .hooks import BackboneIdentityHook
from .loop import ProbeTrainLoop
from .paths import config_file, configs_dir
from .sampling import ProbeSampler, SeedDraw
from .segmentors import LinearProbe

__all__ = [
    "BNLinearHead",
    "BackboneIdentityHook",
    "FrozenViT",
    "LinearProbe",
    "ProbeSampler",
    "ProbeTrainLoop",
    "SeedDraw",
    "config_file",
    "configs_dir",
]
