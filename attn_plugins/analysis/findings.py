"""One pass over a model: everything that the figures show, in numbers and small arrays."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.verdict import verdict
from ..codebases.features import ViTFeatures
from ..progress import printed_progress
from .attention import AttentionStatistics, cls_attention, statistics
from .images import Batch, Images
from .norms import TokenNorms, token_norms
from .pib import PiB, pib
from .subjects import Subject

__all__ = ["KINDS", "Findings", "Settings", "examine"]

KINDS = ("pca", "pib", "attention", "norms")


@dataclass(frozen=True)
class Settings:
    """What is looked at.

    Attributes:
        size: side of the images in pixels; a multiple of the patch size.
        batch: images a forward.
        pictures: images that PCA and overlays show.
        limit: images that statistics are over; None for all.
        layer: layer of the overlays, negative from the end.
        heads: heads of the overlays; None for the first four.
        basis, foreground: of the PCA, see :func:`.pca.pca_rgb`.
        device: "cpu" or "cuda".
        seed: which images are drawn.

    Raises:
        ValueError: one of them is out of range, or there is no such device.
    """

    size: int = 224
    batch: int = 32
    pictures: int = 4
    limit: int | None = 200
    layer: int = -1
    heads: Sequence[int] | None = None
    basis: str = "shared"
    foreground: float | None = None
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("size", "batch", "pictures", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}; use a number of at least 1")
        if self.foreground is not None and not 0 < self.foreground < 1:
            raise ValueError(f"foreground={self.foreground}; use a threshold between 0 and 1, or None")
        kind = self.device.partition(":")[0]
        if kind not in ("cpu", "cuda"):
            raise ValueError(f"device={self.device!r}; use 'cpu' or 'cuda'")
        if kind == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device={self.device!r}, but torch {torch.__version__} finds no GPU; use 'cpu'")


@dataclass(frozen=True)
class Findings:
    """What was found in one model; what was not asked for is None.

    Attributes:
        verified: what :func:`attn_plugins.verify` says of it; None for a model that is not patched.
    """

    subject: Subject
    verified: dict[str, Any] | None = None
    features: Tensor | None = None
    overlay: Tensor | None = None
    pib: PiB | None = None
    attention: AttentionStatistics | None = None
    norms: TokenNorms | None = None


@torch.no_grad()
def examine(subject: Subject, images: Images, settings: Settings, kinds: Collection[str] = KINDS) -> Findings:
    """Load a model and look at it.

    Raises:
        ValueError: the image size is no multiple of the model's patch size, there is no such layer or head, or
            point-in-box is asked for where no image has a box.
    """
    model = subject.load().to(settings.device)
    verified = verdict(model, subject.name)
    patch = ViTFeatures(model).patch_size
    if settings.size % patch:
        raise ValueError(f"size={settings.size} is no multiple of the patch size {patch} of {subject.name}")
    some = images.sample(settings.limit, settings.seed)

    def batches(what: str) -> Iterator[Batch]:
        show = printed_progress(f"{subject.name}, {what}")
        return some.batches(settings.size, settings.batch, settings.device, show)

    features = overlay = found_pib = found_attention = found_norms = None
    if "pca" in kinds or "attention" in kinds:
        shown = next(
            images.sample(settings.pictures, settings.seed).batches(settings.size, settings.pictures, settings.device)
        )
        if "pca" in kinds:
            features = (
                ViTFeatures(model)(shown.pixels, [ViTFeatures(model).depth - 1])[0][0].permute(0, 2, 3, 1).float().cpu()
            )
        if "attention" in kinds:
            overlay = cls_attention(model, shown.pixels[:1], settings.layer)[0].float().cpu()
            if any(not 0 <= head < len(overlay) for head in settings.heads or ()):
                raise ValueError(f"heads={settings.heads}: {subject.name} has heads 0 to {len(overlay) - 1}")
    if "pib" in kinds:
        found_pib = pib(model, batches("point-in-box"))
    if "attention" in kinds:
        found_attention = statistics(model, (batch.pixels for batch in batches("attention")))
    if "norms" in kinds:
        found_norms = token_norms(model, (batch.pixels for batch in batches("token norms")))
    return Findings(subject, verified, features, overlay, found_pib, found_attention, found_norms)
