"""Linear probes on frozen ViTs, registered in mmseg; configs get them by `custom_imports`."""

from .backbone import FrozenViT
from .classification import ClassifierGrid, GridTop1
from .depth_data import BorderCrop, ColorAugment, DepthSplit, KBCrop, LoadDepth, RandomDepthRotate
from .depth_metric import DepthErrors
from .heads import BNLinearHead, DepthBinsHead
from .hooks import BackboneIdentityHook, ClassCountHook
from .image_data import CheckLabels, LoadProbeImage
from .imagenet_data import ImageNetFolder, PackImageLabel, RandomResizedCrop, ResizeCenterCrop
from .loop import ProbeTrainLoop
from .losses import LogGradientLoss, SigLoss
from .paths import config_file, configs_dir
from .reading import install_safe_loading
from .recording import ProbeResultHook
from .sampling import ProbeSampler, SeedDraw
from .segmentors import DepthProbe, LinearProbe

__all__ = [
    "BNLinearHead",
    "BackboneIdentityHook",
    "BorderCrop",
    "CheckLabels",
    "ClassCountHook",
    "ClassifierGrid",
    "ColorAugment",
    "DepthBinsHead",
    "DepthErrors",
    "DepthProbe",
    "DepthSplit",
    "FrozenViT",
    "GridTop1",
    "ImageNetFolder",
    "KBCrop",
    "LinearProbe",
    "LoadDepth",
    "LoadProbeImage",
    "LogGradientLoss",
    "PackImageLabel",
    "ProbeResultHook",
    "ProbeSampler",
    "ProbeTrainLoop",
    "RandomDepthRotate",
    "RandomResizedCrop",
    "ResizeCenterCrop",
    "SeedDraw",
    "SigLoss",
    "config_file",
    "configs_dir",
]

install_safe_loading()
