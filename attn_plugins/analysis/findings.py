"""One pass over a model: everything that the figures show, in numbers and small arrays."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.verdict import verdict
from ..codebases.features import ViTFeatures
from ..progress import printed_progress
from .attention import AttentionStatistics, AttentionWatcher, cls_attention
from .boxes import Rule
from .diffusion import DiffusionWatcher
from .images import Images, View
from .measure import Measured
from .norms import THRESHOLD, NormWatcher, TokenNorms
from .pib import HITS, PiB, PiBWatcher
from .subjects import Subject
from .watch import NORMS, Watcher, watch

__all__ = ["KINDS", "PRESETS", "Findings", "Settings", "examine"]

KINDS = ("pca", "pib", "diffusion", "attention", "norms")
BOXED = frozenset({"pib"})
"""Kinds that are nothing without boxes."""

PRESETS: dict[str, dict[str, Any]] = {
    "last-vit": {
        "size": 224, "resize": 256, "bilinear": True, "norm": "final", "hit": "overlap", "single": True, "below": 0.25,
        "difficult": True,
    }
}  # fmt: skip
"""Point-in-box as others measure it. `last-vit`: ChengShiest/LAST-ViT at 8c126e0, visualization/."""


@dataclass(frozen=True)
class Settings:
    """What is looked at.

    Attributes:
        size: side of the images in pixels; a multiple of the patch size.
        resize, bilinear: how pictures become squares, see :class:`.images.View`.
        batch: images a forward.
        pictures: images that PCA and overlays show.
        limit: images that statistics are over; None for all.
        norm: what stands before cosines with [CLS], see :data:`.watch.NORMS`.
        hit: which patches lie in a box, see :data:`.pib.HITS`.
        difficult, single, below: which boxes count, see :class:`.boxes.Rule`.
        norm_threshold: absolute norm above which a token is an outlier.
        layer: layer of the overlays, negative from the end.
        heads: heads of the overlays; None for the first four.
        basis, foreground: of the PCA, see :func:`.pca.pca_rgb`.
        device: "cpu" or "cuda".
        seed: which images are drawn.

    Raises:
        ValueError: one of them is out of range, or there is no such device.
    """

    size: int = 224
    resize: int | None = None
    bilinear: bool = False
    batch: int = 32
    pictures: int = 4
    limit: int | None = 200
    norm: str = "final"
    hit: str = "centre"
    difficult: bool = False
    single: bool = False
    below: float | None = None
    norm_threshold: float = THRESHOLD
    layer: int = -1
    heads: Sequence[int] | None = None
    basis: str = "shared"
    foreground: float | None = None
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch", "pictures", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}; use a number of at least 1")
        for name, known in (("norm", NORMS), ("hit", HITS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}; choose from {', '.join(known)}")
        if self.norm_threshold <= 0:
            raise ValueError(f"norm_threshold={self.norm_threshold}; use a norm above 0")
        if self.foreground is not None and not 0 < self.foreground < 1:
            raise ValueError(f"foreground={self.foreground}; use a threshold between 0 and 1, or None")
        kind = self.device.partition(":")[0]
        if kind not in ("cpu", "cuda"):
            raise ValueError(f"device={self.device!r}; use 'cpu' or 'cuda'")
        if kind == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device={self.device!r}, but torch {torch.__version__} finds no GPU; use 'cpu'")
        _ = self.view, self.rule  # which check themselves

    @property
    def view(self) -> View:
        """How pictures become squares."""
        return View(self.size, self.resize, self.bilinear)

    @property
    def rule(self) -> Rule:
        """Which boxes count."""
        return Rule(self.difficult, self.single, self.below)


@dataclass(frozen=True)
class Findings:
    """What was found in one model; what was not asked for is None.

    Attributes:
        verified: what :func:`attn_plugins.verify` says of it; None for a model that is not patched.
        arch: its class, depth, width and patch size.
        features: last layer's patches of the pictures under the final norm, ``[N, h, w, C]``.
        overlay: what [CLS] looks at in them, ``[N, H, h, w]``.
        measures: by name, image by image.
        images: images that statistics are over, without and with boxes.
    """

    subject: Subject
    verified: dict[str, Any] | None = None
    arch: str = ""
    features: Tensor | None = None
    overlay: Tensor | None = None
    pib: PiB | None = None
    attention: AttentionStatistics | None = None
    norms: TokenNorms | None = None
    measures: Mapping[str, Measured] = field(default_factory=dict)
    images: tuple[int, int] = (0, 0)


@torch.no_grad()
def examine(
    subject: Subject,
    images: Images,
    settings: Settings,
    kinds: Collection[str] = KINDS,
    boxed: Images | None = None,
) -> Findings:
    """Load a model and look at it.

    Args:
        subject: the model.
        images: what it is shown.
        settings: sizes and limits.
        kinds: of :data:`KINDS`.
        boxed: images with boxes, for what needs them; by default ``images``.

    Raises:
        ValueError: the image size is no multiple of the model's patch size, there is no such layer or head, or
            point-in-box is asked for where no image has a box.
    """
    model = subject.load().to(settings.device)
    verified = verdict(model, subject.name)
    features = ViTFeatures(model)
    if settings.size % features.patch_size:
        raise ValueError(
            f"size={settings.size} is no multiple of the patch size {features.patch_size} of {subject.name}"
        )
    arch = f"{type(model).__name__}, {features.depth} blocks, width {features.embed_dim}, patch {features.patch_size}"
    seen, overlay = _pictures(model, features, subject, images, settings, kinds)

    attention, norms = AttentionWatcher(), NormWatcher()
    point = PiBWatcher(settings.norm, settings.hit, settings.view)
    plain: list[Watcher] = [w for kind, w in (("attention", attention), ("norms", norms)) if kind in kinds]
    with_boxes: list[Watcher] = [point] if "pib" in kinds else []
    diffusion = [DiffusionWatcher(), DiffusionWatcher(boxes=True)]
    if "diffusion" in kinds:
        annotated = (boxed or images).annotations is not None
        diffusion = diffusion if annotated else diffusion[:1]
        plain.append(diffusion[0])
        with_boxes += diffusion[1:]
    counts = _watched(model, subject.name, images, boxed, settings, plain, with_boxes)
    return Findings(
        subject,
        verified,
        arch,
        seen,
        overlay,
        point.found() if "pib" in kinds else None,
        attention.found() if "attention" in kinds else None,
        norms.found() if "norms" in kinds else None,
        {name: one for watcher in diffusion for name, one in watcher.found().items()} if "diffusion" in kinds else {},
        counts,
    )


def _watched(
    model: nn.Module,
    name: str,
    images: Images,
    boxed: Images | None,
    settings: Settings,
    plain: list[Watcher],
    with_boxes: list[Watcher],
) -> tuple[int, int]:
    """Run the model once over the images, and once more where those with boxes are others; the number of each."""

    def passed(over: Images, watchers: list[Watcher], what: str) -> int:
        if not watchers:
            return 0
        some = over.sample(settings.limit, settings.seed)
        show = printed_progress(f"{name}, {what}")
        return watch(model, some.batches(settings.view, settings.batch, settings.device, show, settings.rule), watchers)

    if boxed is None or boxed is images:
        count = passed(images, [*plain, *with_boxes], "images")
        return count, count
    return passed(images, plain, "images"), passed(boxed, with_boxes, "images with boxes")


def _pictures(
    model: nn.Module,
    features: ViTFeatures,
    subject: Subject,
    images: Images,
    settings: Settings,
    kinds: Collection[str],
) -> tuple[Tensor | None, Tensor | None]:
    """Features and attention of the images that are shown."""
    if not {"pca", "attention"} & set(kinds):
        return None, None
    some = images.sample(settings.pictures, settings.seed)
    shown = next(some.batches(settings.view, settings.pictures, settings.device))
    seen = overlay = None
    if "pca" in kinds:
        seen = features(shown.pixels, [features.depth - 1])[0][0].permute(0, 2, 3, 1).float().cpu()
    if "attention" in kinds:
        overlay = cls_attention(model, shown.pixels, settings.layer).float().cpu()
        heads = overlay.shape[1]
        if any(not 0 <= head < heads for head in settings.heads or ()):
            raise ValueError(f"heads={settings.heads}: {subject.name} has heads 0 to {heads - 1}")
    return seen, overlay
