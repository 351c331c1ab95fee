"""LaSt-ViT: [CLS] replaced by the patch features that are stable under a low-pass filter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..codebases.vit import ViT
from ..errors import UnsupportedModelError
from ..registry import register_mechanism
from ..swap import add_layer
from .base import Mechanism

__all__ = ["VARIANTS", "LastViT", "low_pass", "selected_features", "smoothed_features", "stable_features"]


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


def selected_features(x: Tensor, k: int = 1, sigma: float | None = None) -> Tensor:
    """One feature per image from its patches, as the authors' code does since commit 8c126e0.

    Each channel averages the ``k`` patches with the highest x / |x' - x|, where x' is x low-passed along channels with
    a filter whose centre is one bin off for an even number of channels; what is averaged is x itself.

    Args:
        x: ``[B, N, C]``, patch features.
        k: patches a channel keeps; all where there are fewer.
        sigma: width of the filter, None: sqrt(C).

    Returns:
        ``[B, C]``
    """
    score = x.float() / (low_pass(x, sigma, _off_centre(x)) - x.float()).abs()
    index = score.topk(min(k, x.shape[1]), dim=1).indices
    return x.gather(1, index).mean(dim=1)


def smoothed_features(x: Tensor, sigma: float | None = None) -> Tensor:
    """One feature per image from its patches, as the authors' code did in 2025: the mean of all, low-passed.

    Their commits 434f6ce to cac8b9f, cls_pretrain/conf.py, compute a selection and do not use it; the filter is that of
    ``selected_features``.

    Args:
        x: ``[B, N, C]``, patch features.
        sigma: width of the filter, None: sqrt(C).

    Returns:
        ``[B, C]``
    """
    return low_pass(x, sigma, _off_centre(x)).mean(dim=1)


def _off_centre(x: Tensor) -> int:
    """Bins between frequency zero and the centre of the authors' kernel, which is laid out from -C // 2 + 1."""
    channels = x.shape[-1]
    return (channels - 1) // 2 - channels // 2


VARIANTS: dict[str, Callable[..., Tensor]] = {
    "paper": stable_features,
    "434f6ce": smoothed_features,
    "8c126e0": selected_features,
}
"""What ``last_vit`` computes, under the name of the paper or of the commit of ChengShiest/LAST-ViT that brought it."""
OPTIONS = {"paper": ("k", "sigma", "eps"), "434f6ce": ("sigma",), "8c126e0": ("k", "sigma")}


@register_mechanism("last_vit")
class LastViT(Mechanism):
    """[CLS] output becomes, channel by channel, the mean of the k patches that a low-pass filter changes least.

    Shi et al., "Vision Transformers Need More Than Registers", CVPR 2026 (arXiv 2602.22394). No parameters; acts
    on the output of the final norm and changes it at once.

    Three things bear the name, and their outputs have little in common: the paper's Equations 4 to 6; the authors'
    public code (ChengShiest/LAST-ViT, cls_pretrain/conf.py) from its commit 434f6ce of June 2025, which averages the
    low-passed features of all patches; and that code since 8c126e0 of 2026-03-31, with which their released weights are
    evaluated. A patch that names none gets 8c126e0, and its record says so. A file that names none was written before
    there was a choice: it holds the paper's, or with ``published=true`` that of 434f6ce.

    Args:
        k: patches a channel keeps; by default 7 for the paper's (which reports 1 and 7) and 1 for the code's.
        sigma: width of the Gaussian in frequency bins; None: the square root of the number of channels.
        eps: of the stability's denominator; the code has none.
        published: the older name of ``variant=434f6ce``.
        variant: "paper", "434f6ce" or "8c126e0".
    """

    adds_parameters = False

    def __init__(
        self,
        k: int | None = None,
        sigma: float | None = None,
        eps: float = 1e-6,
        published: bool = False,
        variant: str | None = None,
    ) -> None:
        variant = str(self.settled({"published": published} | ({"variant": variant} if variant else {}))["variant"])
        if variant not in VARIANTS:
            raise ValueError(f"last_vit: variant={variant!r}; choose from {', '.join(VARIANTS)}")
        k = (7 if variant == "paper" else 1) if k is None else k
        width = 1.0 if sigma is None else sigma
        if not isinstance(k, int) or k < 1 or not isinstance(width, (int, float)) or width <= 0:
            raise ValueError(f"last_vit: k={k}, sigma={sigma}; k is at least 1 and sigma above 0, k a whole number")
        if variant == "8c126e0" and eps != 1e-6:
            raise ValueError(f"last_vit: eps={eps} is of the paper's Equation 5; the code of 8c126e0 has none")
        self.variant, self.options = variant, {"k": k, "sigma": sigma, "eps": eps}

    @classmethod
    def settled(cls, params: Mapping[str, Any], *, new: bool = False) -> dict[str, Any]:
        """With ``variant`` in place of ``published``; files that say neither are the paper's, new patches 8c126e0.

        Raises:
            ValueError: both are given and differ.
        """
        said = dict(params)
        published, variant = said.pop("published", None), said.get("variant")
        if published and variant not in (None, "434f6ce"):
            raise ValueError(f"last_vit: published=true is variant=434f6ce, not {variant}; leave out one of them")
        meant = "434f6ce" if published else "8c126e0" if new and published is None else "paper"
        return said | {"variant": meant if variant is None else variant}

    def check(self, vit: ViT) -> None:
        untied = [name for name, norm in zip(vit.known.cls_norms, vit.cls_norms(), strict=True) if norm is not None]
        if untied:
            raise UnsupportedModelError(
                f"last_vit: {type(vit.root).__qualname__} norms [CLS] apart from patches ({', '.join(untied)}); build "
                "it with untie_cls_and_patch_norms=False and untie_global_and_local_cls_norm=False"
            )

    def apply(self, vit: ViT) -> None:
        vit.norm.attn_plugins_last_vit = {"prefix": vit.prefix, "variant": self.variant, "options": self.options}
        add_layer(vit.norm, _replaces_cls)


def _replaces_cls(base: Any) -> dict[str, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        """``x: [B, N, C]``, all tokens, to the same shape."""
        y = base.forward(self, x)
        how = self.attn_plugins_last_vit
        # Models that were pickled before there was a choice have no variant.
        variant = how.get("variant") or ("434f6ce" if how["published"] else "paper")
        options = {name: how["options"][name] for name in OPTIONS[variant]}
        token = VARIANTS[variant](y[:, how["prefix"] :], **options)
        return torch.cat([token[:, None].to(y.dtype), y[:, 1:]], dim=1)

    return {"forward": forward}
