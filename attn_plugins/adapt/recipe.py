"""What a distillation does: every option of ``attn_plugins.adapt.distil`` and of ``attn-plugins adapt``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ..params import ORDERS

__all__ = ["AMP", "STARTS", "TRAINED", "Recipe"]

STARTS = ("calibrated", "patched")
TRAINED = ("all", "attention", "qkv+norms", "lora")
AMP = ("off", "bf16", "fp16")
STEPS = 300
"""Where neither steps nor minutes are given."""


def _said(default: Any, help: str, **more: Any) -> Any:
    """A field, and what the command says of it."""
    return field(default=default, metadata={"help": help, **more})


@dataclass(frozen=True)
class Recipe:
    """How a backbone is distilled; every field is an option of the command.

    Raises:
        ValueError: a value is out of range, none of the words, or contradicts another.
    """

    steps: int | None = _said(None, f"optimizer steps (default: {STEPS})", kind=int)
    minutes: float | None = _said(None, "instead: as many steps as fit, by the time of the first", kind=float)
    batch: int = _said(16, "pictures a step, over all processes")
    sizes: tuple[int, ...] = _said((), "sides in pixels, one after another step by step (default: 14 patches)")
    lr: float = _said(3e-5, "learning rate at its highest")
    scale_lr: float = _said(1e-3, "of factors on scores and of a learned alpha")
    weight_decay: float = _said(0.04, "of matrices; biases, norms, factors and alpha have none")
    layer_decay: float = _said(1.0, "factor on the rate for each block below the last")
    warmup: int = _said(10, "steps to the highest rate, from which a cosine goes down to nothing")
    clip: float = _said(3.0, "largest norm of the gradient")
    normed: float = _said(1.0, "weight of the loss on the last layer's patches, after its norm")
    cls: float = _said(1.0, "weight of the same on [CLS]")
    blocks: float = _said(1.0, "weight of the loss on outputs of several blocks")
    layers: tuple[int, ...] = _said((), "those blocks, from 0 (default: four, evenly spaced, as 2 5 8 11 of 12)")
    start: str = _said("calibrated", "where the student begins", choices=STARTS)
    sparsity: float | None = _said(None, "of that calibration: share of weights that shall be zero", kind=float)
    factor: float = _said(1.0, "of that calibration: one more factor on all scores; above 1 is sparser")
    anneal: str | None = _said(None, "raise alpha from softmax, layers in this order", choices=ORDERS)
    anneal_share: float = _said(0.5, "share of the steps in which alpha gets there")
    hold: bool = _said(True, "with scale=learnable: keep the mean logarithm of all factors, and so the sparsity")
    train: str = _said("all", "which parameters train, beside those of plugins", choices=TRAINED)
    lora_rank: int = _said(8, "of --train lora (peft); merged into the weights at the end")
    crop: float = _said(0.4, "least share of a picture's area in a random crop; 1: no crops")
    flip: float = _said(0.5, "probability of a mirrored picture")
    mask: float = _said(0.0, "probability that a tenth to a half of the patches are grey, for student and teacher")
    amp: str = _said("off", "autocast; fp16 scales its loss", choices=AMP)
    seed: int = _said(0, "of crops, order and what plugins draw")

    def __post_init__(self) -> None:
        if self.steps is not None and self.minutes is not None:
            raise ValueError(f"steps={self.steps} and minutes={self.minutes} are two budgets; give one of them")
        for name in ("steps", "batch", "lora_rank"):
            self._check(name, getattr(self, name) is None or getattr(self, name) >= 1, "a number of 1 or more")
        for name in ("lr", "scale_lr", "clip", "factor", "minutes"):
            value = getattr(self, name)
            self._check(name, value is None or 0 < value < math.inf, "a number above 0")
        for name in ("weight_decay", "warmup", "normed", "cls", "blocks", "seed"):
            self._check(name, 0 <= getattr(self, name) < math.inf, "a number of 0 or more")
        for name in ("layer_decay", "anneal_share", "crop"):
            self._check(name, 0 < getattr(self, name) <= 1, "above 0 and at most 1")
        for name in ("flip", "mask"):
            self._check(name, 0 <= getattr(self, name) <= 1, "a probability")
        self._check("sizes", all(size >= 1 for size in self.sizes), "numbers of pixels")
        for name, words in (("start", STARTS), ("train", TRAINED), ("amp", AMP), ("anneal", (*ORDERS, None))):
            self._check(name, getattr(self, name) in words, f"one of {', '.join(map(str, words))}")
        if not self.normed + self.cls + self.blocks:
            raise ValueError("normed, cls and blocks are all 0: there is nothing to learn; give one of them a weight")
        calibration = {"sparsity": self.sparsity is not None, "factor": self.factor != 1}
        said = [name for name, given in calibration.items() if given]
        if self.start == "patched" and said:
            raise ValueError(f"{said[0]} belongs to a calibration; leave it out, or say start='calibrated'")

    def _check(self, name: str, holds: bool, wanted: str) -> None:
        if not holds:
            raise ValueError(f"{name}={getattr(self, name)!r}; give {wanted}")

    def rate(self, step: int, steps: int) -> float:
        """What the learning rate is multiplied by at ``step`` of ``steps``: up a line, down a cosine."""
        warmup = min(self.warmup, steps // 2)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2
