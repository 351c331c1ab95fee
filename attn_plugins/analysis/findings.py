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
from .compare import DriftWatcher
from .dense import DenseWatcher
from .diffusion import DiffusionWatcher
from .discovery import JaccardWatcher, LostWatcher
from .images import Images, Sources, View
from .maps import Maps, MapsWatcher, ReachWatcher
from .measure import Measured, Score
from .norms import THRESHOLD, NormWatcher, TokenNorms
from .pib import HITS, PiB, PiBWatcher
from .subjects import Subject, check_heads, loaded
from .watch import NORMS, Watcher, watch

__all__ = ["KINDS", "NEEDS", "PRESETS", "Findings", "Settings", "examine"]

KINDS = ("pca", "pib", "diffusion", "discovery", "attention", "maps", "norms", "drift")
NEEDS = {"pib": "boxes", "discovery": "boxes or masks", "drift": "a second model"}
"""Kinds that are nothing without."""

PRESETS: dict[str, dict[str, Any]] = {
    "last-vit": {
        "size": 224, "resize": 256, "bilinear": True, "norm": "final", "hit": "overlap", "single": True, "below": 0.25,
        "difficult": True,
    }
}  # fmt: skip
"""Point-in-box as others measure it. ``last-vit``: ChengShiest/LAST-ViT at 8c126e0, visualization/."""


@dataclass(frozen=True)
class Settings:
    """What is looked at.

    Attributes:
        size: side of the images in pixels; a multiple of the patch size.
        resize, bilinear: how pictures become squares, see ``images.View``.
        batch: images a forward.
        pictures: images that PCA and overlays show.
        limit: images that statistics are over; None for all.
        norm: what stands before cosines with [CLS], see ``watch.NORMS``.
        hit: which patches lie in a box, see ``pib.HITS``.
        difficult, single, below: which boxes count, see ``boxes.Rule``.
        norm_threshold: absolute norm above which a token is an outlier.
        layer: layer of the overlays, negative from the end.
        heads: heads of the overlays; None for the first four.
        background: classes of masks that are no foreground.
        ignored: classes of masks that do not count.
        basis, foreground: of the PCA, see ``pca.pca_rgb``.
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
    background: Sequence[int] = (0,)
    ignored: Sequence[int] = (255,)
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
        verified: what ``attn_plugins.verify`` says of it; None for a model that is not patched.
        arch: its class, depth, width and patch size.
        features: last layer's patches of the pictures under the final norm, ``[N, h, w, C]``.
        overlay: what [CLS] looks at in them, ``[N, H, h, w]``.
        measures: by name, image by image and layer by layer.
        scores: of the whole model.
        drift: of the first model, what others are compared with.
        maps: of the pictures.
        images: images that statistics are over: all, those with boxes, those with masks.
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
    scores: Sequence[Score] = ()
    drift: DriftWatcher | None = None
    maps: Maps | None = None
    images: tuple[int, int, int] = (0, 0, 0)


@torch.no_grad()
def examine(
    subject: Subject,
    images: Images | Sources,
    settings: Settings,
    kinds: Collection[str] = KINDS,
    first: Findings | None = None,
) -> Findings:
    """Load a model and look at it.

    Args:
        subject: the model.
        images: what it is shown; boxes and masks may be of images of their own.
        settings: sizes and limits.
        kinds: of ``KINDS``.
        first: what was found in the first of several models, with which drift compares.

    Raises:
        ValueError: the image size is no multiple of the model's patch size, there is no such layer or head, or
            point-in-box is asked for where no image has a box.
    """
    sources = Sources.of(images)
    model, features = loaded(subject, settings)
    verified = verdict(model, subject.name)
    arch = f"{type(model).__name__}, {features.depth} blocks, width {features.embed_dim}, patch {features.patch_size}"
    seen, overlay, maps = _pictures(model, features, subject, sources.images, settings, kinds)
    watchers = _Watchers(kinds, settings, features.depth - 1, first)
    counts = watchers.run(model, subject.name, sources)
    return Findings(
        subject,
        verified,
        arch,
        seen,
        overlay,
        watchers.pib.found() if "pib" in kinds else None,
        watchers.attention.found() if "attention" in kinds else None,
        watchers.norms.found() if "norms" in kinds else None,
        watchers.measures(),
        watchers.scores(),
        watchers.drift if first is None and "drift" in kinds else None,
        maps,
        counts,
    )


class _Watchers:
    """All that looks on while one model runs, by what it needs: images, boxes, or masks."""

    def __init__(self, kinds: Collection[str], settings: Settings, last: int, first: Findings | None) -> None:
        self.kinds, self.settings = kinds, settings
        self.attention, self.norms = AttentionWatcher(), NormWatcher()
        self.pib = PiBWatcher(settings.norm, settings.hit, settings.view)
        self.diffusion, self.foreground = DiffusionWatcher(), DiffusionWatcher(boxes=True)
        self.reach = ReachWatcher()
        self.drift = DriftWatcher(first.drift if first is not None else None)
        self.lost = LostWatcher()
        self.jaccard = JaccardWatcher(last, settings.background, settings.ignored)
        self.dense = DenseWatcher(last, settings.ignored, settings.seed)

    def run(self, model: nn.Module, name: str, sources: Sources) -> tuple[int, int, int]:
        """Run the model once over each set of images; the number of each."""
        wanted: list[tuple[Images | None, str, list[tuple[str, Watcher]]]] = [
            (
                sources.images,
                "images",
                [
                    ("attention", self.attention),
                    ("maps", self.reach),
                    ("norms", self.norms),
                    ("diffusion", self.diffusion),
                    ("drift", self.drift),
                ],
            ),
            (
                sources.boxed,
                "images with boxes",
                [("pib", self.pib), ("diffusion", self.foreground), ("discovery", self.lost)],
            ),
            (sources.masked, "images with masks", [("discovery", self.jaccard), ("discovery", self.dense)]),
        ]
        counts = [0, 0, 0]
        for place, (over, what, _) in enumerate(wanted):
            same = [n for n, (other, _, _) in enumerate(wanted) if other is over]
            if over is None or same[0] != place:
                continue
            watchers = [w for n in same for kind, w in wanted[n][2] if kind in self.kinds]
            if watchers:
                some = over.sample(self.settings.limit, self.settings.seed)
                show = printed_progress(f"{name}, {what}")
                view, batch, device = self.settings.view, self.settings.batch, self.settings.device
                counts[place] = watch(model, some.batches(view, batch, device, show, self.settings.rule), watchers)
            for n in same:
                counts[n] = counts[place]
        return counts[0], counts[1], counts[2]

    def measures(self) -> dict[str, Measured]:
        """By name; those for which there were images."""
        found: dict[str, Measured] = {}
        for kind, watcher in (
            ("diffusion", self.diffusion),
            ("diffusion", self.foreground),
            ("maps", self.reach),
            ("drift", self.drift),
        ):
            found |= watcher.found() if kind in self.kinds else {}
        return found

    def scores(self) -> list[Score]:
        """Those for which there were images."""
        if "discovery" not in self.kinds:
            return []
        return [*self.lost.found(), *self.jaccard.found(), *self.dense.found()]


def _pictures(
    model: nn.Module,
    features: ViTFeatures,
    subject: Subject,
    images: Images,
    settings: Settings,
    kinds: Collection[str],
) -> tuple[Tensor | None, Tensor | None, Maps | None]:
    """Features, attention and maps of the images that are shown."""
    if not {"pca", "attention", "maps"} & set(kinds):
        return None, None, None
    some = images.sample(settings.pictures, settings.seed)
    shown = next(some.batches(settings.view, settings.pictures, settings.device))
    seen = overlay = None
    if "pca" in kinds:
        seen = features(shown.pixels, [features.depth - 1])[0][0].permute(0, 2, 3, 1).float().cpu()
    if "attention" in kinds:
        overlay = cls_attention(model, shown.pixels, settings.layer).float().cpu()
        check_heads(overlay, subject, settings)
    looking = MapsWatcher(features.depth - 1)
    if "maps" in kinds:
        watch(model, [shown], [looking])
    return seen, overlay, looking.found() if "maps" in kinds else None
