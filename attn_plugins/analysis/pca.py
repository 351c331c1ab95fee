"""The first three principal components of patch features as RGB: the paper's Figure 1."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["pca_rgb", "principal_components"]


def principal_components(x: Tensor, count: int = 3) -> tuple[Tensor, Tensor]:
    """Mean and first principal axes of ``x: [M, C]``.

    Signs are fixed by the data alone: scores on each axis have a third moment that is not negative.

    Returns:
        mean ``[C]`` and axes ``[count, C]``, in float64, of unit length, by falling variance.

    Raises:
        ValueError: fewer samples or channels than components.
    """
    if min(x.shape) < count:
        raise ValueError(f"{count} components need at least {count} samples and channels, not {tuple(x.shape)}")
    x = x.double()
    mean = x.mean(0)
    centred = x - mean
    _, axes = torch.linalg.eigh(centred.T @ centred)
    axes = axes.flip(1)[:, :count].T
    skew = (centred @ axes.T).pow(3).sum(0)
    return mean, axes * torch.where(skew < 0, -1.0, 1.0)[:, None]


def pca_rgb(
    features: Sequence[Tensor],
    basis: str = "shared",
    foreground: float | None = None,
    clip: float = 0.01,
    size: int | None = None,
) -> list[Tensor]:
    """Patch features of one or more models as colours that can be compared.

    Components are fitted per model: feature spaces have no axes in common. What is made common is the picture:
    every model's three components are put in the order and given the signs that correlate best with those of the
    first model on the same patches, so that the same thing tends to have the same colour.

    Args:
        features: for each model ``[N, H, W, C]``, patch features of the same N images; H, W and C may differ.
        basis: "shared", fitted on all images of a model together, or "image", on each by itself.
        foreground: where to cut the first component, scaled to [0, 1], as DINOv2 does; components are then fitted
            on what lies above, and the rest is black. None: no cut. The side that covers less of the image's
            border is taken for the foreground.
        clip: share of patches that may saturate at each end of a channel.
        size: side in pixels to which the components are upsampled, bicubically and before they become colours; None:
            one pixel a patch.

    Returns:
        For each model ``[N, H, W, 3]``, or ``[N, size, size, 3]``, in [0, 1], float32, on the features' device.

    Raises:
        ValueError: no features, differing numbers of images, an unknown basis or a threshold outside (0, 1).
    """
    if not features or any(x.ndim != 4 or x.shape[0] != features[0].shape[0] for x in features):
        raise ValueError(
            f"features is a list of [N, H, W, C] of the same N images, not {[tuple(x.shape) for x in features]}"
        )
    if basis not in ("shared", "image"):
        raise ValueError(f"basis={basis!r}; use 'shared' or 'image'")
    if foreground is not None and not 0 < foreground < 1:
        raise ValueError(f"foreground={foreground}; use a threshold between 0 and 1, or None")
    if basis == "image":
        singles = [
            pca_rgb([x[i : i + 1] for x in features], "shared", foreground, clip, size) for i in range(len(features[0]))
        ]
        return [torch.cat([single[m] for single in singles]) for m in range(len(features))]
    pictures: list[Tensor] = []
    reference: Tensor | None = None
    for x in features:
        masks = None if foreground is None else _foreground(x, foreground)
        scores = _scores(x, masks)
        if reference is None:
            reference = scores
        else:
            scores = _like(scores, reference)
        pictures.append(_colours(scores, masks, clip, size))
    return pictures


def _scores(x: Tensor, mask: Tensor | None) -> Tensor:
    """``x: [N, H, W, C]`` to scores ``[N, H, W, 3]`` on components fitted where ``mask: [N, H, W]``."""
    mean, axes = principal_components(x.flatten(0, 2) if mask is None else x[mask])
    return (x.double() - mean) @ axes.T


def _foreground(x: Tensor, threshold: float) -> Tensor:
    mean, axes = principal_components(x.flatten(0, 2))
    score = (x.double() - mean) @ axes[0]
    low, high = score.amin(), score.amax()
    mask = (score - low) / (high - low).clamp_min(torch.finfo(score.dtype).tiny) > threshold
    border = torch.ones_like(mask[0])
    border[1:-1, 1:-1] = False
    flipped = (high - score) / (high - low).clamp_min(torch.finfo(score.dtype).tiny) > threshold
    inverted = mask[:, border].double().mean() > flipped[:, border].double().mean()
    chosen = flipped if inverted else mask
    return chosen if int(chosen.sum()) >= 3 else torch.ones_like(mask)


def _like(scores: Tensor, reference: Tensor) -> Tensor:
    """Reorder and flip the components of ``scores`` to correlate best with ``reference``, both ``[N, H, W, 3]``."""
    target = reference.permute(0, 3, 1, 2)
    if target.shape[-2:] != scores.shape[1:3]:
        target = F.interpolate(target, size=tuple(scores.shape[1:3]), mode="bilinear", align_corners=False)
    a, b = (_standard(t.flatten(0, 2)) for t in (target.permute(0, 2, 3, 1), scores))
    correlation = a.T @ b / len(a)
    strength: list[list[float]] = correlation.abs().tolist()
    orders = [list(order) for order in itertools.permutations(range(3))]
    order = max(orders, key=lambda p: sum(strength[i][p[i]] for i in range(3)))
    signs = torch.where(correlation[range(3), order] < 0, -1.0, 1.0)
    return scores[..., order] * signs


def _standard(x: Tensor) -> Tensor:
    x = x - x.mean(0)
    return x / x.std(0).clamp_min(torch.finfo(x.dtype).tiny)


def _colours(scores: Tensor, mask: Tensor | None, clip: float, size: int | None) -> Tensor:
    inside = scores.flatten(0, 2) if mask is None else scores[mask]
    ordered = inside.sort(0).values
    low, high = (ordered[round(share * (len(ordered) - 1))] for share in (clip, 1 - clip))
    if size is not None:
        scores = _upsampled(scores, size, "bicubic")
        mask = None if mask is None else _upsampled(mask[..., None].double(), size, "nearest")[..., 0] > 0
    rgb = ((scores - low) / (high - low).clamp_min(torch.finfo(scores.dtype).tiny)).clamp(0, 1)
    return (rgb if mask is None else rgb * mask[..., None]).float()


def _upsampled(x: Tensor, size: int, mode: str) -> Tensor:
    """``x: [N, H, W, K]`` to ``[N, size, size, K]``."""
    corners = None if mode == "nearest" else False
    return F.interpolate(x.permute(0, 3, 1, 2), (size, size), mode=mode, align_corners=corners).permute(0, 2, 3, 1)
