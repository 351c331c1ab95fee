"""What an entry of the zoo is, and the plain arithmetic that references are written in.

A reference takes the module's own weights and recomputes its output step by step, with ``normalize`` where the
codebase has a softmax over keys. It calls the module's projections and norms, never its attention, and nothing of
attn_plugins.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import entmax
import torch
from torch import Tensor, nn

DIM, HEADS, SIDE = 24, 3, 3
TOKENS = SIDE * SIDE

Normalize = Callable[[Tensor], Tensor]
"""``scores [..., N, S] -> weights [..., N, S]``, over the last dimension."""


@dataclass(frozen=True)
class Entry:
    """One codebase's attention.

    Attributes:
        name: of the codebase or of the way of writing.
        build: makes the module; its random weights come from the global generator.
        inputs: makes the positional arguments of a forward.
        reference: ``(module, normalize, *inputs) -> output``, structured as the module's own output.
        sites: modules with attention, as paths below the built module; "" is the module itself.
        layers: handed to ``patch``, for pooling heads, which are patched only by name.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Any, ...]]
    reference: Callable[..., Any]
    sites: tuple[str, ...] = ("",)
    layers: str | None = None


class Host(nn.Module):
    """The model around one attention module."""

    attn: Any

    def __init__(self, attn: nn.Module) -> None:
        super().__init__()
        self.attn = attn

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.attn(*args, **kwargs)


class Zoo(list[Entry]):
    """Entries; ``zoo.add(...)`` decorates a reference."""

    def add(
        self,
        name: str,
        build: Callable[[], nn.Module],
        inputs: Callable[[], tuple[Any, ...]],
        sites: tuple[str, ...] = ("",),
        layers: str | None = None,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def register(reference: Callable[..., Any]) -> Callable[..., Any]:
            self.append(Entry(name, build, inputs, reference, sites, layers))
            return reference

        return register


def built(build: Callable[[], nn.Module], dtype: torch.dtype = torch.float64) -> Host:
    """The module in a model, in eval mode, with no parameter left constant: a forgotten bias or gate would not show."""
    torch.manual_seed(0)
    model = Host(build()).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1 and (parameter == parameter.flatten()[0]).all():
                parameter.add_(0.5 * torch.randn_like(parameter))
    return model


def made(inputs: Callable[[], tuple[Any, ...]], dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
    """The arguments of a forward; floating tensors have ``dtype`` and ask for gradients."""
    torch.manual_seed(1)
    return tuple(_leaf(value, dtype) for value in inputs())


def _leaf(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, list):
        return [_leaf(item, dtype) for item in value]
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().clone().to(dtype).requires_grad_()
    return value


def tensors(output: Any) -> list[Tensor]:
    """All tensors of an output or of arguments, however nested."""
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output if isinstance(output, (list, tuple)) else ()
    return [tensor for value in values for tensor in tensors(value)]


def softmax(scores: Tensor) -> Tensor:
    """Written out, so that nothing that replaces torch's reaches it."""
    powers = (scores - scores.amax(-1, keepdim=True)).exp()
    return powers / powers.sum(-1, keepdim=True)


def entmax15(scores: Tensor) -> Any:
    """The entmax package's; it cannot take the infinities of masks."""
    return entmax.entmax15(scores.clamp(min=-1e4), dim=-1)


def attend(
    normalize: Normalize, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, bias: Any = 0.0
) -> Tensor:
    """q: [..., N, D], k: [..., S, D], v: [..., S, Dv]; scale is 1/sqrt(D) if None, bias is added to the scores."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return normalize(scale * q @ k.mT + bias) @ v


def split(x: Tensor, heads: int = HEADS) -> Tensor:
    """[B, N, C] -> [B, heads, N, C / heads]."""
    return torch.stack(x.chunk(heads, -1), 1)


def merge(x: Tensor) -> Tensor:
    """[B, heads, N, D] -> [B, N, heads * D]."""
    return torch.cat(x.unbind(1), -1)


def qkv_of(projected: Tensor, heads: int = HEADS) -> tuple[Tensor, Tensor, Tensor]:
    """[B, N, 3 C], q before k before v -> three [B, heads, N, D]."""
    q, k, v = (split(part, heads) for part in projected.chunk(3, -1))
    return q, k, v


def tokens(*shape: int, scale: float = 3.0) -> Tensor:
    """Random tokens whose scores are far enough apart that entmax sets some weights to zero."""
    return scale * torch.randn(*(shape or (2, TOKENS, DIM)))


def one() -> tuple[Tensor]:
    """The usual argument: x [2, 9, 24]."""
    return (tokens(),)


def rope(x: Tensor, base: float = 100.0) -> Tensor:
    """x: [..., N, D] turned by its position: the second half of D is the imaginary part."""
    positions = torch.arange(x.shape[-2], dtype=x.dtype)
    angles = positions[:, None] * base ** -torch.linspace(0, 1, x.shape[-1] // 2, dtype=x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


def user_warnings(caught: list[warnings.WarningMessage]) -> list[str]:
    """Texts of the UserWarnings among what was caught."""
    return [str(item.message) for item in caught if issubclass(item.category, UserWarning)]
