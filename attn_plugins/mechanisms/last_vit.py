"""LaSt-ViT: [CLS] replaced by the patch features that are stable under a low-pass filter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..codebases.vit import ViT
from ..errors import UnsupportedModelError
from ..registry import register_mechanism
from ..swap import add_layer
from .base import Mechanism

__all__ = ["LastViT", "low_pass", "stable_features"]


def low_pass(x: Tensor, sigma: float | None = None, offset: int = 0) -> Tensor:
    """Gaussian low-pass filter along channels, in float32.

    Args:
        x: ``[..., C]``.
        sigma: width in frequency bins; None: sqrt(C).
        offset: bins that the Gaussian's centre lies above frequency zero.
    """
    channels = x.shape[-1]
    bins = torch.arange(channels, device=x.device)  # fftfreq's, which ONNX does not know
    bins = torch.where(bins < (channels + 1) // 2, bins, bins - channels)
    # Cut open at the Nyquist frequency, as a filter that was laid out from the lowest to the highest bin is.
    gain = torch.exp(-0.5 * ((bins - offset) / (sigma or channels**0.5)) ** 2)
    filtered: Tensor = torch.fft.ifft(torch.fft.fft(x.float()) * gain)
    return filtered.real


def stable_features(x: Tensor, k: int = 7, sigma: float | None = None, eps: float = 1e-6) -> Tensor:
    """One feature per image from its patches, Equations 4 to 6.

    Each channel averages the ``k`` patches with the highest S = x' / (|x' - x| + eps), where x' is x low-passed
    along channels; what is averaged is x itself.

    Args:
        x: ``[B, N, C]``, patch features.
        k: patches a channel keeps; all where there are fewer.
        sigma: width of the filter, None: sqrt(C).
        eps: of the quotient.

    Returns:
        ``[B, C]``
    """
    smooth = low_pass(x, sigma)
    stability = smooth / ((smooth - x).abs() + eps)
    index = stability.topk(min(k, x.shape[1]), dim=1).indices
    return x.gather(1, index).mean(dim=1)


@register_mechanism("last_vit")
class LastViT(Mechanism):
    """[CLS] output becomes, channel by channel, the mean of the k patches that a low-pass filter changes least.

    Shi et al., "Vision Transformers Need More Than Registers", CVPR 2026 (arXiv 2602.22394). No parameters; acts
    on the output of the final norm and changes it at once.

    Args:
        k: patches a channel keeps (the authors report 1 and 7).
        sigma: width of the Gaussian in frequency bins; None: the square root of the number of channels.
        eps: of the stability's denominator.
        published: do what the authors' public code does instead (their issue 6): it computes a selection with x
            as the numerator, does not use it, and averages the low-passed features of all patches, with a filter
            whose centre is one bin off for an even number of channels.
    """

    adds_parameters = False

    def __init__(self, k: int = 7, sigma: float | None = None, eps: float = 1e-6, published: bool = False) -> None:
        width = 1.0 if sigma is None else sigma
        if not isinstance(k, int) or k < 1 or not isinstance(width, (int, float)) or width <= 0:
            raise ValueError(f"last_vit: k={k}, sigma={sigma}; k is at least 1 and sigma above 0, k a whole number")
        self.options = {"k": k, "sigma": sigma, "eps": eps}
        self.published = published

    def check(self, vit: ViT) -> None:
        untied = [name for name, norm in zip(vit.known.cls_norms, vit.cls_norms(), strict=True) if norm is not None]
        if untied:
            raise UnsupportedModelError(
                f"last_vit: {type(vit.root).__qualname__} norms [CLS] apart from patches ({', '.join(untied)}); build "
                "it with untie_cls_and_patch_norms=False and untie_global_and_local_cls_norm=False"
            )

    def apply(self, vit: ViT) -> None:
        vit.norm.attn_plugins_last_vit = {"prefix": vit.prefix, "published": self.published, "options": self.options}
        add_layer(vit.norm, _replaces_cls)


def _replaces_cls(base: Any) -> dict[str, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        """``x: [B, N, C]``, all tokens, to the same shape."""
        y = base.forward(self, x)
        how = self.attn_plugins_last_vit
        patches, sigma = y[:, how["prefix"] :], how["options"]["sigma"]
        if how["published"]:
            offset = (y.shape[-1] - 1) // 2 - y.shape[-1] // 2
            token = low_pass(patches, sigma, offset).mean(dim=1)
        else:
            token = stable_features(patches, **how["options"])
        return torch.cat([token[:, None].to(y.dtype), y[:, 1:]], dim=1)

    return {"forward": forward}
