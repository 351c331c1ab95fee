"""The main job end to end on built-in data: render scenes, pre-train with DINO, probe, compare."""

from .pretrain import Recipe
from .run import METHODS, Settings, run

__all__ = ["METHODS", "Recipe", "Settings", "run"]
