"""How far each head is from softmax's output, and how sparse it is, as a function of the factor on its scores."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention.reference import attention_scores
from ..codebases.base import NORMALIZER
from ..functional.scale import HeadScale
from ..patching.sites import Site

__all__ = ["Curves", "measured"]

LOWEST, HIGHEST, POINTS = 0.01, 8.0, 18
DEPTH = 1.0
"""Logarithm of the last layer's weight over the first's. At 80 % zeros a DINOv2 ViT-S/14 keeps more of its features
with 1 than with 0, -1, or one common factor on the nearest ones (``integration/adapt``)."""
FINER = 8
"""Points of the interpolated curves between two that were computed."""
QUERIES = 64
"""Of an image's, at most, evenly spaced from [CLS] on: rows of a head are alike enough."""


@dataclass(frozen=True)
class Curves:
    """Of every head of every layer.

    Attributes:
        logs: ``[G]``, logarithms of the factors that were tried.
        error: ``[L, H, G]``, root mean square distance of the head's output to softmax's, relative to that.
        zeros: ``[L, H, G]``, share of weights that are exactly zero.
    """

    logs: Tensor
    error: Tensor
    zeros: Tensor

    def finer(self) -> Curves:
        """Interpolated in the logarithm: the error smoothly, or its least would always be at a point that was tried."""
        points = (len(self.logs) - 1) * FINER + 1
        zeros = F.interpolate(self.zeros, points, mode="linear", align_corners=True)
        error = F.interpolate(self.error.unsqueeze(-2), (1, points), mode="bicubic", align_corners=True).squeeze(-2)
        return Curves(torch.linspace(float(self.logs[0]), float(self.logs[-1]), points), error, zeros)

    def reach(self) -> tuple[float, float]:
        """The least and the largest share of zeros over all heads."""
        return float(self.zeros[..., 0].mean()), float(self.zeros[..., -1].mean())

    def nearest(self) -> Tensor:
        """``[L, H]``, the logarithms at which heads are nearest to softmax."""
        fine = self.finer()
        return fine.logs[fine.error.argmin(-1)]

    def at_zeros(self, share: float) -> Tensor:
        """``[L, H]``, the logarithms with the least weighted sum of errors at this share of zeros over all heads.

        That sum has one price of a zero for all heads (Lagrange's multiplier), which is found by bisection. Errors of
        later layers weigh more, up to e**``DEPTH`` times.

        Raises:
            ValueError: no factor that was tried makes so many or so few zeros.
        """
        fine = self.finer()
        low, high = self.reach()
        if not low <= share <= high:
            raise ValueError(
                f"sparsity={share}: factors from {LOWEST} to {HIGHEST} give {low:.1%} to {high:.1%} zeros on "
                "these images"
            )
        weights = torch.linspace(0, DEPTH, len(fine.error)).exp().view(-1, 1, 1)
        lowest, highest = -20.0, 10.0  # of the price, as powers of two
        for _ in range(60):
            middle = (lowest + highest) / 2
            chosen = (weights * fine.error - 2**middle * fine.zeros).argmin(-1)
            found = float(fine.zeros.gather(-1, chosen.unsqueeze(-1)).mean())
            lowest, highest = (lowest, middle) if found > share else (middle, highest)
        return fine.logs[chosen]


class _Trying(HeadScale):
    """In a layer's place: tries all factors on the scores that come along, and goes on with the best."""

    def __init__(self, scaled: HeadScale) -> None:
        super().__init__(scaled.inner, len(scaled.log_scale))
        self.to(scaled.log_scale.device)
        self.plugin = scaled.plugin
        self.logs = torch.linspace(math.log(LOWEST), math.log(HIGHEST), POINTS)
        self.error = self.zeros = torch.zeros(0)

    def factor(self, call: Any) -> Tensor:
        if call.lengths is not None:
            raise ValueError("calibration takes batches of images of one size, and a layer got a packed batch")
        self._try(attention_scores(call), call.value)
        return super().factor(call)

    def forward(self, scores: Tensor, dim: int = -1) -> Tensor:
        self._try(scores if dim in (-1, scores.dim() - 1) else scores.movedim(dim, -1), None)
        return super().forward(scores, dim)

    def _try(self, scores: Tensor, values: Tensor | None) -> None:
        """``scores: [B, H, N, S]``, ``values: [B, H, S, D]``; without values weights are compared."""
        step = -(-scores.shape[-2] // QUERIES)
        off = torch.zeros(self.log_scale.shape[0], POINTS, dtype=torch.float64)
        zeros, size = torch.zeros_like(off), torch.zeros_like(off[:, 0])
        for image in range(len(scores)):
            rows = scores[image, :, ::step].float()
            given = None if values is None else values[image].float()
            wanted = _output(rows.softmax(-1), given)
            size += wanted.square().mean((-1, -2)).double().cpu()
            for point, log in enumerate(self.logs):
                weights = self.inner(rows * log.exp(), dim=-1)
                off[:, point] += (_output(weights, given) - wanted).square().mean((-1, -2)).double().cpu()
                zeros[:, point] += (weights == 0).double().mean((-1, -2)).cpu() / len(scores)
        self.error = (off / size.unsqueeze(-1)).sqrt().float()
        self.zeros = zeros.float()
        own = Curves(self.logs, self.error.unsqueeze(0), self.zeros.unsqueeze(0))
        self.log_scale.copy_(own.nearest()[0])


def _output(weights: Tensor, values: Tensor | None) -> Tensor:
    return weights if values is None else weights @ values


@contextlib.contextmanager
def _trying(sites: Sequence[Site]) -> Iterator[list[_Trying]]:
    kept = [site.module._modules[NORMALIZER] for site in sites]
    tried = [_Trying(scaled) for scaled in _heads(kept)]
    try:
        for site, module in zip(sites, tried, strict=True):
            site.module._modules[NORMALIZER] = module
        yield tried
    finally:
        for site, before in zip(sites, kept, strict=True):
            site.module._modules[NORMALIZER] = before


def _heads(modules: Sequence[nn.Module | None]) -> list[HeadScale]:
    return [module for module in modules if isinstance(module, HeadScale)]


def measured(sites: Sequence[Site], run: Callable[[Tensor], Any], batches: Sequence[Tensor]) -> Curves:
    """The curves of a patched model on images, errors averaged over batches, zeros those of the first.

    Every layer goes on with each head's best, so that it is fitted on what those before it make of the images. Further
    passes, on what the chosen factors make of them, were tried and lost as much as they won.

    Args:
        sites: attention layers with a factor for each head.
        run: runs the model on a batch.
        batches: ``[B, 3, H, W]`` each.
    """
    every = []
    for images in batches:
        with torch.no_grad(), _trying(sites) as tried:
            run(images)
        every.append(tried)
        missed = [site.path for site, one in zip(sites, tried, strict=True) if not one.error.numel()]
        if missed:
            raise ValueError(f"the model computed no attention in {missed} on these images: nothing to fit them on")
    errors = [torch.stack([one.error for one in tried]) for tried in every]
    zeros = torch.stack([one.zeros for one in every[0]])
    return Curves(every[0][0].logs, torch.stack(errors).mean(0), zeros)
