"""Features of images that come again unchanged, kept in memory or on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import written

__all__ = ["FeatureCache", "random_transforms"]

Features = list[tuple[Tensor, Tensor]]

# Transforms that give the same output for the same image every time.
_DETERMINISTIC = {
    "SeedDraw", "LoadProbeImage", "LoadImageFromFile", "LoadAnnotations", "LoadDepth", "CheckLabels", "Resize",
    "ResizeCenterCrop", "CenterCrop", "BorderCrop", "KBCrop", "Pad", "PackSegInputs", "PackImageLabel",
}  # fmt: skip


def random_transforms(pipeline: list[Mapping[str, Any]]) -> list[str]:
    """The transforms of a pipeline that are not known to be deterministic."""
    return [str(step["type"]) for step in pipeline if step["type"] not in _DETERMINISTIC]


class FeatureCache:
    """Features by the contents of the image that they were computed from, so a stale hit is impossible.

    Args:
        place: `memory`, or a folder; runs with the same backbone and the same choice of features share it.
        identity: of the backbone and of the choice of features; names the folder's subfolder.
    """

    def __init__(self, place: str, identity: Mapping[str, Any]) -> None:
        self.folder: Path | None = None
        self.kept: dict[str, Features] = {}
        if place != "memory":
            text = json.dumps({k: v for k, v in identity.items() if k != "checkpoint"}, sort_keys=True)
            self.folder = Path(place) / hashlib.sha256(text.encode()).hexdigest()[:16]
            self.folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, images: Tensor, compute: Callable[[Tensor], Features]) -> Features:
        """For each layer `[B, C, h, w]` and `[B, C]` of `images [B, 3, H, W]`; new ones are computed in one batch."""
        keys = [_key(image) for image in images]
        found = {key: features for key in keys if (features := self._read(key)) is not None}
        new = [index for index, key in enumerate(keys) if key not in found]
        if new:
            computed = compute(images[new])
            for position, index in enumerate(new):
                features = [(patches[position].cpu(), cls[position].cpu()) for patches, cls in computed]
                found[keys[index]] = features
                self._write(keys[index], features)
        layers = zip(*(found[key] for key in keys), strict=True)
        return [
            (torch.stack([p for p, _ in layer]).to(images.device), torch.stack([c for _, c in layer]).to(images.device))
            for layer in layers
        ]

    def _read(self, key: str) -> Features | None:
        if self.folder is None:
            return self.kept.get(key)
        file = self.folder / f"{key}.pt"
        return torch.load(file, weights_only=True) if file.is_file() else None

    def _write(self, key: str, features: Features) -> None:
        if self.folder is None:
            self.kept[key] = features
            return
        with written(self.folder / f"{key}.pt") as partial:
            # Clones: a slice would be saved with the whole batch's storage.
            torch.save([(patches.clone(), cls.clone()) for patches, cls in features], partial)


def _key(image: Tensor) -> str:
    contents = image.detach().contiguous().cpu().numpy()
    return hashlib.sha256(contents.tobytes() + str(contents.shape).encode()).hexdigest()
