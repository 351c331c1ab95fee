"""Linear probes on frozen ViTs, registered in mmseg; configs get them by ``custom_imports``."""

from . import operators  # noqa: F401  # isort: split  # before anything of mmseg is imported
from .backbone import FrozenViT
from .class_views import StoredClasses
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
    StoredDepth,
)
from .fast import (
    ClassFeaturePreProcessor,
    FastClassifierGrid,
    FastDepthProbe,
    FastLinearProbe,
    FeaturePreProcessor,
    make_fast,
)
from .images import LoadProbeImage
from .own import LoadMask, OwnClasses, OwnDepth, OwnMasks
from .ownership import BackboneIdentityHook
from .predict import Prediction, Predictor, load
from .protocol import ProbeSampler, ProbeTrainLoop, SeedDraw
from .run.paths import config_file, configs_dir
from .run.reading import install_safe_loading
from .run.recording import ProbeResultHook
from .segmentation import BNLinearHead, CheckLabels, ClassCountHook, ImageIoU, LinearProbe
from .tuning import LayerDecay, TunedViT, make_finetune
from .views import FeatureStoreHook, StoredViews

__all__ = [
    "BNLinearHead",
    "BackboneIdentityHook",
    "BorderCrop",
    "CheckLabels",
    "ClassCountHook",
    "ClassFeaturePreProcessor",
    "ClassifierGrid",
    "ColorAugment",
    "DepthBinsHead",
    "DepthErrors",
    "DepthProbe",
    "DepthSplit",
    "FastClassifierGrid",
    "FastDepthProbe",
    "FastLinearProbe",
    "FeaturePreProcessor",
    "FeatureStoreHook",
    "FrozenViT",
    "GridTop1",
    "ImageIoU",
    "ImageNetFolder",
    "KBCrop",
    "LayerDecay",
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
    "StoredClasses",
    "StoredDepth",
    "StoredViews",
    "TunedViT",
    "config_file",
    "configs_dir",
    "load",
    "make_fast",
    "make_finetune",
]

install_safe_loading()
