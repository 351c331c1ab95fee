"""Linear probes on frozen ViTs, registered in mmseg; configs get them by `custom_imports`."""

from . import operators  # noqa: F401  # isort: split  # before anything of mmseg is imported
from .backbone import FrozenViT
from .classification import (
    ClassifierGrid,
    GridTop1,
    ImageNetFolder,
    PackImageLabel,
    RandomResizedCrop,
    ResizeCenterCrop,
)
from .depth import (
    BorderCrop,
    ColorAugment,
    DepthBinsHead,
    DepthErrors,
    DepthProbe,
    DepthSplit,
    KBCrop,
    LoadDepth,
    LogGradientLoss,
    RandomDepthRotate,
    SigLoss,
)
from .fast import FastLinearProbe, FeaturePreProcessor, make_fast
from .images import LoadProbeImage
from .own import LoadMask, OwnClasses, OwnDepth, OwnMasks
from .ownership import BackboneIdentityHook
from .predict import Prediction, Predictor, load
from .protocol import ProbeSampler, ProbeTrainLoop, SeedDraw
from .run.paths import config_file, configs_dir
from .run.reading import install_safe_loading
from .run.recording import ProbeResultHook
from .segmentation import BNLinearHead, CheckLabels, ClassCountHook, ImageIoU, LinearProbe
from .views import FeatureStoreHook, StoredViews

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
    "FastLinearProbe",
    "FeaturePreProcessor",
    "FeatureStoreHook",
    "FrozenViT",
    "GridTop1",
    "ImageIoU",
    "ImageNetFolder",
    "KBCrop",
    "LinearProbe",
    "LoadDepth",
    "LoadMask",
    "LoadProbeImage",
    "LogGradientLoss",
    "OwnClasses",
    "OwnDepth",
    "OwnMasks",
    "PackImageLabel",
    "Prediction",
    "Predictor",
    "ProbeResultHook",
    "ProbeSampler",
    "ProbeTrainLoop",
    "RandomDepthRotate",
    "RandomResizedCrop",
    "ResizeCenterCrop",
    "SeedDraw",
    "SigLoss",
    "StoredViews",
    "config_file",
    "configs_dir",
    "load",
    "make_fast",
]

install_safe_loading()
