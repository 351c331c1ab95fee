"""The public names, which ``attn_plugins`` imports the first time that one is asked for."""

from . import functional, mechanisms
from .adapt.calibrate import Calibration, calibrate
from .attention import AttentionCall, Backend, attention, register_backend
from .checkpoints import from_pretrained
from .codebases import Adapter, Codebase, register_adapter, register_codebase
from .errors import PluginImportError, UnknownPluginError, UnsupportedModelError
from .export import exportable
from .patching import describe, patch, patched, unpatch, verify
from .registry import register_mechanism, register_normalizer
from .spec import Spec, parse
from .training import Anneal, Monitor

__all__ = [
    "Adapter",
    "Anneal",
    "AttentionCall",
    "Backend",
    "Calibration",
    "Codebase",
    "Monitor",
    "PluginImportError",
    "Spec",
    "UnknownPluginError",
    "UnsupportedModelError",
    "attention",
    "calibrate",
    "describe",
    "exportable",
    "from_pretrained",
    "functional",
    "mechanisms",
    "parse",
    "patch",
    "patched",
    "register_adapter",
    "register_backend",
    "register_codebase",
    "register_mechanism",
    "register_normalizer",
    "unpatch",
    "verify",
]
