"""``calibrate``: a softmax backbone under another normalizer, near to what it was, without training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import swap
from ..attention.counting import observed
from ..codebases.base import NORMALIZER
from ..codebases.features import ViTFeatures
from ..params import SCALE
from ..patching import patch, spec_of
from ..patching.scales import Scales, fingerprint
from ..patching.sites import Site, find_attention
from ..spec import Plugin, Spec, parse
from ..text import columns
from .curves import Curves, measured

if TYPE_CHECKING:
    from ..progress import Progress  # whose tqdm `import attn_plugins` does not need

__all__ = ["Calibration", "Likeness", "calibrate", "features", "likeness"]

CHUNK = 8
"""Images that are compared at a time: all weights of a layer are looked at."""
CORRECTIONS = 2
"""Of a share of zeros that was asked for, by what the whole model makes."""
TRIED = (0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""Shares of zeros of the trade-off curve."""


@dataclass(frozen=True)
class Likeness:
    """What is left of a backbone's features under another normalizer.

    Attributes:
        size: of the images, ``HxW``.
        zeros: share of attention weights that are exactly zero, over all layers.
        patches: mean cosine of the last layer's patch features, after its norm, to what they were.
        centred: the same after each image's mean over patches is taken off.
        cls: the same of [CLS].
    """

    size: str
    zeros: float
    patches: float
    centred: float
    cls: float


@dataclass(frozen=True)
class Calibration:
    """What ``calibrate`` found; prints as a table.

    Attributes:
        scales: the factors, for a file (``scales.write(FILE)``).
        before: the likeness of the plain spec, all factors 1, for each size of the images that it was measured on.
        after: with the factors.
        curve: with factors for other shares of zeros; empty where it was not asked for.
    """

    scales: Scales
    before: tuple[Likeness, ...]
    after: tuple[Likeness, ...]
    curve: tuple[Likeness, ...] = ()

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("", "size", "zeros", "patch cosine", "centred", "[CLS]")]
        for what, lines in (("as patched", self.before), ("calibrated", self.after), ("trade-off", self.curve)):
            rows += [(what, x.size, f"{x.zeros:.1%}", *_digits(x.patches, x.centred, x.cls)) for x in lines]
        return "\n".join([f"{self.scales.spec}: cosines to softmax's features", *columns(rows, numbers=True)])


def _digits(*values: float) -> list[str]:
    return [f"{value:.3f}" for value in values]


def calibrate(
    model: nn.Module,
    images: Tensor | Sequence[Tensor],
    spec: str | Spec = "entmax15",
    sparsity: float | None = None,
    *,
    held_out: Tensor | Sequence[Tensor] | None = None,
    curve: bool = False,
    progress: Progress | None = None,
) -> Calibration:
    """Patch a pretrained softmax ViT in place, with a factor on the scores of every head that keeps its features.

    Entmax of the same scores is far sharper than softmax, so a patched backbone is another model. Per head, a factor
    is chosen on a few dozen images so that the head's output is nearest to softmax's; layer by layer, on what the
    patched layers before it make of the images. No weight changes, and nothing is trained: seconds for a ViT-S.

    With ``sparsity``, the factors have the least sum over heads of errors, each relative to its head's output and those
    of later layers weighing more, at that share of exact zeros. More keys make more zeros, and want other factors: give
    images of several sizes to fit for all of them; zeros are then counted on the first.

    Args:
        model: a ViT without plugins or with token mechanisms and softmax; put into eval mode.
        images: ``[B, 3, H, W]``, normalised as the model takes them; or several of these, of different sizes.
        spec: what to patch it with; the normalizer gets ``scale=per_head``. Layers cannot be named.
        sparsity: share of attention weights that shall be exactly zero, over all layers; None for the nearest to
            softmax.
        held_out: images to measure on; those that the factors are fitted on by default.
        curve: also measure factors for other shares of zeros (those of ``TRIED`` that are within reach), which
            takes as long again.
        progress: is called with (passes done, all of them).

    Returns:
        The factors, and what they leave of the features.

    Raises:
        UnsupportedModelError: no ViT whose features can be read, or its attention cannot be patched.
        ValueError: the model is patched with a normalizer already; the spec names layers or has a scale; ``sparsity``
            is no share, or out of reach. The model is then as it was.
    """
    wanted = _scaled(parse(spec))
    if sparsity is not None and not 0 < sparsity < 1:
        raise ValueError(f"sparsity={sparsity!r} is no share of zeros; give a number between 0 and 1, such as 0.8")
    present = parse(spec_of(model) or "softmax")
    if present.normalizers != (Plugin("softmax"),) or present.mechanisms != wanted.mechanisms:
        raise ValueError(f"the model has {str(present)!r} already; calibrate starts from softmax: unpatch it first")
    fitted_on = _batches(images)
    shown = fitted_on if held_out is None else _batches(held_out)
    vit = ViTFeatures(model.eval())
    work = _Work(vit, [features(vit, batch) for batch in shown], shown, progress, 3 + len(TRIED) * curve)
    with swap.all_or_nothing(model):
        backbone = fingerprint(find_attention(model))
        patch(model, wanted)
        sites = find_attention(model)
        before = work.likeness()
        curves = measured(sites, work.run, fitted_on)
        work.step()
        logs = curves.nearest()
        if sparsity is not None:
            logs = _for_zeros(sites, vit, fitted_on[0], curves, sparsity)
        low, high = curves.reach()
        tried = [share for share in TRIED if curve and low < share < high]
        work.total = 3 + len(tried)
        points = [work.at(sites, curves.at_zeros(share)) for share in tried]
        _put(sites, logs)
        after = work.likeness()
        fitted: dict[str, Any] = {
            "images": len(fitted_on[0]),
            "sizes": [_size(batch) for batch in fitted_on],
            "sparsity": sparsity,
            "held_out": held_out is not None,
            "measured_on": len(shown[0]),
            "measured": [asdict(line) for line in after],
        }
        factors = tuple(tuple(round(value, 5) for value in row) for row in logs.exp().tolist())
    scales = Scales(str(Spec(wanted.normalizers)), factors, backbone, fitted)
    return Calibration(scales, tuple(before), tuple(after), tuple(line for lines in points for line in lines))


class _Work:
    """The model, what its features were, and how far the work is."""

    def __init__(
        self,
        vit: ViTFeatures,
        softmax: list[tuple[Tensor, Tensor]],
        shown: list[Tensor],
        progress: Progress | None,
        total: int,
    ) -> None:
        self.vit, self.softmax, self.shown = vit, softmax, shown
        self.progress, self.total, self.done = progress, total, 0

    def step(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total)

    def run(self, batch: Tensor) -> Any:
        return self.vit(batch, [self.vit.depth - 1])

    def likeness(self) -> list[Likeness]:
        """Of the model as it is now, for each size that is shown."""
        pairs = zip(self.shown, self.softmax, strict=True)
        found = [likeness(self.vit, batch, softmax) for batch, softmax in pairs]
        self.step()
        return found

    def at(self, sites: Sequence[Site], logs: Tensor) -> list[Likeness]:
        _put(sites, logs)
        return self.likeness()


def likeness(vit: ViTFeatures, images: Tensor, softmax: tuple[Tensor, Tensor]) -> Likeness:
    """Compare the features of a model as it is now with what ``features`` gave of it with softmax."""
    (patches, cls), zeros = _counted(vit, images)
    centred = (tokens - tokens.mean(1, keepdim=True) for tokens in (patches, softmax[0]))
    alike = _cosine(patches, softmax[0]), _cosine(*centred), _cosine(cls, softmax[1])
    return Likeness(_size(images), zeros, *alike)


def _counted(vit: ViTFeatures, images: Tensor) -> tuple[tuple[Tensor, Tensor], float]:
    """Features, and the share of weights that are zero; 0 where no layer is patched."""
    zeros: list[float] = []
    with observed(_counting(zeros)):
        found = features(vit, images)
    return found, sum(zeros) / len(zeros) if zeros else 0.0


def _for_zeros(sites: Sequence[Site], vit: ViTFeatures, images: Tensor, curves: Curves, share: float) -> Tensor:
    """Logarithms ``[L, H]`` that make this share of zeros in the model: the curves are of each layer by itself."""
    goal, (low, high) = share, curves.reach()
    for _ in range(CORRECTIONS):
        _put(sites, curves.at_zeros(goal))
        goal = min(max(goal + share - _counted(vit, images)[1], low), high)
    return curves.at_zeros(goal)


def _put(sites: Sequence[Site], logs: Tensor) -> None:
    for site, own in zip(sites, logs, strict=True):
        getattr(site.module, NORMALIZER).log_scale.copy_(own)


def _scaled(spec: Spec) -> Spec:
    plugin = spec.normalizer  # raises where layers are told apart
    if SCALE in plugin.kwargs:
        raise ValueError(f"{plugin} has a scale already, which is what calibrate finds; leave it out")
    return Spec((Plugin(plugin.name, (*plugin.params, (SCALE, "per_head")), plugin.factory),), spec.mechanisms)


def _batches(images: Tensor | Sequence[Tensor]) -> list[Tensor]:
    batches = [images] if isinstance(images, Tensor) else list(images)
    for batch in batches:
        if not isinstance(batch, Tensor) or batch.dim() != 4 or not len(batch) or not batch.is_floating_point():
            what = tuple(batch.shape) if isinstance(batch, Tensor) else type(batch).__name__
            raise ValueError(f"images are floating-point tensors [B, 3, H, W], or several of them, got {what}")
    if not batches:
        raise ValueError("calibrate needs images, a dozen or more; got none")
    return batches


def features(vit: ViTFeatures, images: Tensor) -> tuple[Tensor, Tensor]:
    """Of the last layer, after its norm: ``[B, N, C]`` of patches and ``[B, C]`` of [CLS]; a few images at a time."""
    found = []
    with torch.no_grad():
        for chunk in images.split(CHUNK):
            ((patches, cls),) = vit(chunk, [vit.depth - 1])
            found.append((patches.flatten(2).transpose(1, 2), cls))
    patches, cls = (torch.cat(parts) for parts in zip(*found, strict=True))
    return patches, cls


def _counting(zeros: list[float]) -> Callable[..., None]:
    def note(layer: Any, weights: Tensor | None = None, **told: Any) -> None:
        if weights is not None:
            zeros.extend([float((weights == 0).double().mean())] * len(weights))

    return note


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(F.cosine_similarity(one.double(), other.double(), dim=-1).mean())


def _size(images: Tensor) -> str:
    return "x".join(map(str, images.shape[-2:]))
