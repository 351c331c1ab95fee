"""ViTs built by the code of an official checkout: facebookresearch/dino, dinov2, dinov3."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from .parts import Built, Shape

__all__ = ["Checkout"]


@dataclass(frozen=True)
class Checkout:
    """The code of one official repository.

    Attributes:
        codebase: for messages.
        variable: the environment variable that names a checkout.
        module: the module that holds its constructors.
        arguments: all arguments of the constructor: as the checkpoint's tensors are, and options over them.
        in_timm: what timm calls the same architectures.
        without: builds one of those where there is no checkout: ``without(name, shape, options)``.
        names: what the repository calls an architecture, where it is another name.
    """

    codebase: str
    variable: str
    module: str
    arguments: Callable[[Shape | None, Mapping[str, Any]], dict[str, Any]]
    in_timm: Mapping[str, str]
    without: Callable[[str, Shape | None, Mapping[str, Any]], Built]
    names: Mapping[str, str] = field(default_factory=dict)

    def build(
        self, name: str, shape: Shape | None, repo: str | os.PathLike[str] | None, options: Mapping[str, Any]
    ) -> Built:
        """A ViT from the checkout's own code, sized as the checkpoint's tensors are.

        Args:
            name: ``vit_small``, ``vit_base``, …
            shape: what the checkpoint tells; None for the codebase's defaults.
            repo: the checkout; None for what the environment names, or else the code of ``without``.
            options: further arguments of its constructor; they win.

        Raises:
            ValueError: ``repo`` is no checkout of it, it has no architecture of that name, or none with these
                positions.
        """
        root = self._root(repo)
        if root is None:
            return self.without(self._name_in_timm(name, shape), shape, options)
        factory = getattr(self._import(root), self.names.get(name, name), None)
        if factory is None:
            raise ValueError(f"{self.codebase} at {root} has no architecture {name!r}")
        arguments = self.arguments(shape, options)
        return factory(**arguments), dict, arguments

    def _name_in_timm(self, name: str, shape: Shape | None) -> str:
        if name not in self.in_timm:
            raise ValueError(
                f"timm has no {self.codebase} {name!r}, only {', '.join(self.in_timm)}; set repo= or {self.variable}"
            )
        if shape is not None and shape.grid is None and shape.positions is not None:
            raise ValueError(
                f"{self.codebase}'s code resamples positions of square grids alone, and these {shape.positions} are of "
                "none: say arch='timm/NAME' and img_size=(HEIGHT, WIDTH) in pixels"
            )
        return self.in_timm[name]

    def _root(self, repo: str | os.PathLike[str] | None) -> Path | None:
        chosen = repo or os.environ.get(self.variable)
        if not chosen:
            return None
        root = Path(chosen).expanduser().resolve()
        file = root / (self.module.replace(".", "/") + ".py")
        if not file.is_file():
            raise ValueError(
                f"{root} is no checkout of {self.codebase}: {file} is missing. Set repo= or {self.variable}."
            )
        return root

    def _import(self, root: Path) -> ModuleType:
        # DINOv1 is a folder of scripts that import each other by bare names, so its folder has to be on the path.
        if str(root) not in sys.path:
            sys.path.insert(0, str(root))
        module = importlib.import_module(self.module)
        origin = Path(str(module.__file__)).resolve()
        if root not in origin.parents:
            raise ValueError(
                f"{self.module} was imported from {origin} before; {root} cannot be used in the same process"
            )
        return module
