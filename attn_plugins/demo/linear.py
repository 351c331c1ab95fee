"""A linear head on cached patch features: mIoU, and how far it depends on which images were drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Score", "fit", "score"]

STEPS, BATCH, RATE = 600, 4096, 1e-2
RESAMPLED = 1000


@dataclass(frozen=True)
class Score:
    """mIoU in percent, over the classes that are shown, and its 95 % interval over images (bootstrap)."""

    miou: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.miou:.1f} ({self.low:.1f} to {self.high:.1f})"


def fit(features: Tensor, labels: Tensor, classes: int) -> Callable[[Tensor], Tensor]:
    """Logistic regression on standardised patch features; the same at every call.

    Args:
        features: ``[N, P, C]``.
        labels: ``[N, P]``.
        classes: how many there are.

    Returns:
        From features ``[M, P, C]`` to classes ``[M, P]``.
    """
    x, y = features.flatten(0, 1), labels.flatten()
    mean, std = x.mean(0), x.std(0).clamp_min(1e-6)
    x = (x - mean) / std
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(x.shape[1], classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.AdamW(head.parameters(), lr=RATE, weight_decay=1e-4)
    for step in range(STEPS):
        chosen = torch.randint(len(x), (BATCH,), generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / STEPS)
        optimizer.zero_grad()
        F.cross_entropy(head(x[chosen]), y[chosen]).backward()
        optimizer.step()

    @torch.no_grad()
    def predict(others: Tensor) -> Tensor:
        classes: Tensor = head((others - mean) / std).argmax(-1)
        return classes

    return predict


def score(found: Tensor, truth: Tensor, classes: int) -> Score:
    """Of predictions ``[M, P]`` against the truth ``[M, P]``, both patch by patch."""
    one, other = F.one_hot(found, classes).bool(), F.one_hot(truth, classes).bool()
    both, either, shown = ((x.sum(1).double()) for x in (one & other, one | other, other))  # [M, classes] each

    def miou(images: Tensor) -> Tensor:
        inside, around, there = (counts[images].sum(-2) for counts in (both, either, shown))
        shares = torch.where(there > 0, inside / around.clamp_min(1), 0)
        return 100 * shares.sum(-1) / (there > 0).sum(-1)

    generator = torch.Generator().manual_seed(0)
    drawn = miou(torch.randint(len(found), (RESAMPLED, len(found)), generator=generator))
    low, high = torch.quantile(drawn, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Score(miou(torch.arange(len(found))).item(), low, high)
