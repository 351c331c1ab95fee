"""entmax whose alpha a schedule moves during training, from softmax to its target."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..params import ORDERS
from ..record import decode, encode
from ..registry import register_normalizer
from .alpha import MIN_ALPHA
from .entmax import entmax, entmax_alpha
from .plain import sizes

__all__ = ["NAME", "ORDERS", "SHAPES", "EntmaxAnneal", "annealed", "stand"]

SHAPES = ("linear", "cosine")
NAME = "entmax_anneal"
_MILLION = 1_000_000


@register_normalizer(NAME)
class EntmaxAnneal(nn.Module):
    """entmax whose alpha goes from ``start`` to ``alpha`` as the model trains; ``attn_plugins.Anneal`` steps it.

    At 1 it is softmax, exactly and by softmax's own kernels; at its end it is what ``entmax:alpha=`` is. Between 1 and
    1.01 no float32 kernel has correct digits, so alpha stays 1 there and then jumps. Adds no parameters. The state dict
    holds the step and alpha, so a run that stopped half way says so, goes on, and is evaluated with the alpha it had.

    Args:
        num_heads: heads of the attention layer.
        steps: optimizer steps from ``start`` to ``alpha``, those of ``warmup`` not counted.
        alpha: where it ends, in [1.01, 2].
        start: where it begins: 1, or in [1.01, 2].
        warmup: steps at ``start`` beforehand.
        shape: ``linear``, or ``cosine`` (slow at both ends).
        order: ``together``; or one layer after another, each in its share of the steps: ``deep_first`` (the last layer
            begins) or ``shallow_first``.

    Raises:
        ValueError: a number is out of range, or a word is none of these.
    """

    def __init__(
        self,
        num_heads: int,
        steps: int,
        alpha: float = 1.5,
        start: float = 1.0,
        warmup: int = 0,
        shape: str = "linear",
        order: str = "together",
    ) -> None:
        super().__init__()
        if num_heads < 1:
            raise ValueError(f"num_heads is 1 or more, got {num_heads}")
        for name, count, least in (("steps", steps, 1), ("warmup", warmup, 0)):
            if not isinstance(count, int) or count < least:
                raise ValueError(f"entmax_anneal: {name} is a whole number of {least} or more, got {count!r}")
        for name, value in (("alpha", alpha), ("start", start)):
            if not (MIN_ALPHA <= value <= 2 or (name == "start" and value == 1)):
                raise ValueError(f"entmax_anneal: {name}={value!r} is not in [{MIN_ALPHA}, 2] (or start=1, softmax)")
        for name, word, words in (("shape", shape, SHAPES), ("order", order, ORDERS)):
            if word not in words:
                raise ValueError(f"entmax_anneal: {name}={word!r} is none of {', '.join(words)}")
        self.num_heads, self.steps, self.end, self.start = num_heads, steps, float(alpha), float(start)
        self.warmup, self.shape, self.order = warmup, shape, order
        self.step, self.place, self.layers = 0, 0, 1
        self.value = self.start
        # What compiled code reads, which a number would make anew at every step. Bytes, the highest first: no cast to
        # half precision (FSDP's of buffers, .half()) touches whole numbers, and DINOv3 fills all others with 2**31.
        self.register_buffer("millionths", torch.zeros(num_heads, 3, dtype=torch.uint8), persistent=False)
        self.millionths: Tensor
        self.set_step(0)
        _LIVE.add(self)

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        _LIVE.add(self)

    def at(self, step: int) -> float:
        """alpha after ``step`` optimizer steps."""
        done = (step - self.warmup) / self.steps
        if self.order != "together":
            turn = self.place if self.order == "shallow_first" else self.layers - 1 - self.place
            done = done * self.layers - turn
        done = min(max(done, 0.0), 1.0)
        if done == 1:
            return self.end
        share = done if self.shape == "linear" else (1 - math.cos(math.pi * done)) / 2
        value = round((self.start + (self.end - self.start) * share) * _MILLION) / _MILLION
        return 1.0 if value < MIN_ALPHA else value

    def set_step(self, step: int) -> None:
        """Make alpha that of after ``step`` steps."""
        self.step = step
        self._set(self.at(step))

    def set_place(self, place: int, layers: int) -> None:
        """Which of how many layers this is, for orders that go layer by layer."""
        self.place, self.layers = place, layers
        self._set(self.at(self.step))

    def _set(self, value: float) -> None:
        self.value = value
        # What torch.compile guards: it compiles three times in a whole run, and not at every step.
        self.moving = value not in (1.0, self.end)
        self.softmax = value == 1.0
        with torch.no_grad():
            for place, byte in enumerate(round(value * _MILLION).to_bytes(3, "big")):
                self.millionths[:, place].fill_(byte)

    def reset_parameters(self) -> None:
        """Write anew what ``to_empty`` has left empty."""
        self._set(self.value)

    @property
    def alpha(self) -> float | Tensor:
        """1.0 at softmax, the target at the end, and ``[num_heads]`` in between: kernels dispatch on it."""
        if self.moving:
            high, middle, low = self.millionths.to(torch.float32).unbind(-1)
            return (65536 * high + 256 * middle + low) / _MILLION
        return 1.0 if self.softmax else self.end

    def forward(self, scores: Tensor, dim: int = -1) -> Tensor:
        """Weights ``[..., H, N, S]`` of scores ``[..., H, N, S]``.

        Raises:
            ValueError: while alpha moves: dimension -3 is not the heads, or ``dim`` is not one of the last two.
        """
        alpha = self.alpha
        if isinstance(alpha, float):
            return entmax(scores, alpha, dim)
        if isinstance(scores, Tensor):
            shape = tuple(sizes(scores))
            if len(shape) < 3 or shape[-3] != self.num_heads:
                raise ValueError(f"scores are [..., {self.num_heads} heads, N, S], got shape {shape}")
            if dim - scores.dim() * (dim >= 0) not in (-1, -2):
                raise ValueError(f"rows lie along dim -1 or -2 of [..., H, N, S], got dim={dim}")
        return entmax_alpha(scores, alpha.view(-1, 1, 1), dim)

    def get_extra_state(self) -> Tensor:
        """Step, alpha, place and number of layers, as a record is kept: no cast of a state dict changes it."""
        told = {"step": f"{self.step:012d}", "alpha": f"{self.value:.6f}"}  # of one length, for distributed checkpoints
        return encode({"spec": NAME, **told, "place": f"{self.place:04d}", "layers": f"{self.layers:04d}"})

    def set_extra_state(self, state: Tensor) -> None:
        """Go on where the file stopped.

        Raises:
            ValueError: the record is damaged, or its alpha is not what this schedule gives at its step; nothing was
                changed.
        """
        told = decode(state)
        step, place, layers = int(told["step"]), int(told["place"]), int(told["layers"])
        before = self.place, self.layers
        self.place, self.layers = place, layers
        if f"{self.at(step):.6f}" != told["alpha"]:
            self.place, self.layers = before
            raise ValueError(
                f"these weights had alpha {told['alpha']} at step {step}, and this schedule gives {self.at(step)} "
                "there: give it the steps, warmup, shape and order that they were trained with"
            )
        self.set_step(step)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, alpha={self.value:g} at step {self.step}, {self.end:g} at its end"


_LIVE: weakref.WeakSet[EntmaxAnneal] = weakref.WeakSet()


def annealed() -> list[EntmaxAnneal]:
    """All that are alive in this process, of copies of models too."""
    return list(_LIVE)


def stand(state: Mapping[str, Tensor]) -> tuple[list[float], int]:
    """alpha of each annealed layer in a state dict, and after how many steps; ([], 0) without such layers.

    Raises:
        ValueError: a record in it is damaged.
    """
    told = [decode(tensor) for key, tensor in state.items() if key.endswith("_extra_state")]
    mine = [record for record in told if record["spec"] == NAME]
    return [float(record["alpha"]) for record in mine], max((int(record["step"]) for record in mine), default=0)
