"""Per-layer patch and [CLS] features of any ViT, read from its own unchanged forward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModelError

__all__ = ["ViTFeatures", "center_pad", "evenly_spaced"]

# Blocks and final norm: of DINOv1/2/3, timm and lightly-train first, then of transformers and torchvision.
_BLOCKS = (
    "blocks",
    "encoder.layer",
    "model.layer",
    "layer",
    "layers",
    "encoder.layers",
    "vision_model.encoder.layers",
)
_NORMS = ("norm", "layernorm", "vision_model.post_layernorm", "post_layernorm", "encoder.ln")
_WIDTHS = ("embed_dim", "config.hidden_size", "hidden_dim")
_PATCH_SIZES = (
    "patch_embed.patch_size",
    "patch_size",
    "config.patch_size",
    "config.vision_config.patch_size",
)
# DINOv2, hub/depthers.py: not the rounding one would guess, so written out.
_FOUR_LAYERS = {12: (2, 5, 8, 11), 24: (4, 11, 17, 23), 40: (9, 19, 29, 39)}


def evenly_spaced(depth: int) -> tuple[int, ...]:
    """Four evenly spaced layers, 0-based, ending in the last: DINOv2's own for 12, 24 and 40 blocks.

    Raises:
        ValueError: fewer than four blocks.
    """
    if depth < 4:
        raise ValueError(f"four layers were asked for, the backbone has {depth}; name out_indices, e.g. [{depth - 1}]")
    return _FOUR_LAYERS.get(depth, tuple(round(depth * part / 4) - 1 for part in (1, 2, 3, 4)))


def center_pad(images: Tensor, multiple: int) -> Tensor:
    """Zero-pad H and W to multiples of the patch size, the odd pixel at the end (DINOv2, hub/utils.py).

    Args:
        images: `[B, 3, H, W]`.
        multiple: patch size in pixels.
    """
    pads: list[int] = []
    for size in (images.shape[-1], images.shape[-2]):
        extra = -size % multiple
        pads += [extra // 2, extra - extra // 2]
    return nn.functional.pad(images, pads) if any(pads) else images


class ViTFeatures:
    """Reads a ViT's block outputs while its own forward runs, so that any patched model can be read.

    Patch tokens are the last `h·w` tokens of a block's output and [CLS] is the first; whatever stands between
    (registers) is dropped.

    Args:
        model: a ViT of DINOv1, v2 or v3, timm, transformers or torchvision.

    Attributes:
        depth: number of blocks.
        embed_dim: channels of a token.
        patch_size: pixels.

    Raises:
        UnsupportedModelError: no list of blocks, patch size, width or final norm was found.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        path, found = _first(model, _BLOCKS)
        if not isinstance(found, nn.ModuleList | nn.Sequential):
            raise UnsupportedModelError(
                f"{type(model).__name__} has no list of blocks under any of {', '.join(_BLOCKS)}; "
                "features can be read from DINO, timm, transformers and torchvision ViTs"
            )
        self._container = path, found
        # DINOv2 trains with its blocks in chunks, each padded in front with identities.
        nested = any(isinstance(item, nn.ModuleList) for item in found)
        self.blocks: list[nn.Module] = (
            [block for chunk in found for block in chunk.children() if not isinstance(block, nn.Identity)]
            if nested
            else list(found)
        )
        _, norm = _first(model, _NORMS)
        if not isinstance(norm, nn.Module):
            raise UnsupportedModelError(f"{type(model).__name__} has no final norm under any of {', '.join(_NORMS)}")
        self.norm = norm
        _, patch_size = _first(model, _PATCH_SIZES)
        if patch_size is None:
            raise UnsupportedModelError(
                f"{type(model).__name__} tells its patch size nowhere: {', '.join(_PATCH_SIZES)}"
            )
        self.patch_size = int(patch_size[0]) if isinstance(patch_size, Sequence) else int(patch_size)
        _, embed_dim = _first(model, _WIDTHS)
        if embed_dim is None:
            raise UnsupportedModelError(f"{type(model).__name__} tells its width nowhere: {', '.join(_WIDTHS)}")
        self.embed_dim = int(embed_dim)

    @property
    def depth(self) -> int:
        return len(self.blocks)

    def stop_after(self, layer: int) -> None:
        """Drop the blocks behind `layer`, whose features nobody asks for (they stay where blocks are chunked)."""
        path, found = self._container
        if len(found) == self.depth:
            parent, _, name = path.rpartition(".")
            owner = attrgetter(parent)(self.model) if parent else self.model
            setattr(owner, name, found[: layer + 1])
        self.blocks = self.blocks[: layer + 1]

    def __call__(self, images: Tensor, layers: Sequence[int], norm: bool = True) -> list[tuple[Tensor, Tensor]]:
        """Features of the given layers; equal to the upstream `get_intermediate_layers(reshape=True)`.

        Args:
            images: `[B, 3, H, W]`, normalised; H and W are multiples of the patch size.
            layers: 0-based block indices.
            norm: apply the model's final norm to every layer's tokens.

        Returns:
            For each layer, patch tokens `[B, C, H/patch, W/patch]` and [CLS] `[B, C]`.
        """
        h, w = (size // self.patch_size for size in images.shape[-2:])
        outputs: dict[int, Tensor] = {}

        def keep(index: int) -> Callable[[nn.Module, object, object], None]:
            def hook(module: nn.Module, args: object, output: object) -> None:
                outputs[index] = _tokens(output)

            return hook

        handles = [self.blocks[index].register_forward_hook(keep(index)) for index in layers]
        try:
            self._forward(images)
        finally:
            for handle in handles:
                handle.remove()
        features = []
        for index in layers:
            tokens = self._final_norm(outputs[index], h * w) if norm else outputs[index]
            if tokens.shape[1] <= h * w:
                raise UnsupportedModelError(f"{type(self.model).__name__} has no [CLS] token: {tokens.shape[1]} tokens")
            patches = tokens[:, -h * w :].transpose(1, 2).unflatten(2, (h, w))
            features.append((patches.contiguous(), tokens[:, 0]))
        return features

    def _forward(self, images: Tensor) -> None:
        positions = getattr(self.model, "official_positions", None)
        if positions is not None:
            positions.prepare(images)
        if hasattr(self.model, "forward_features"):
            self.model.forward_features(images)
        elif hasattr(self.model, "config"):
            # transformers' ViTs refuse another image size than they were trained at unless asked to resample;
            # those without absolute positions do not know the argument.
            resample = {"interpolate_pos_encoding": True} if _takes(self.model, "interpolate_pos_encoding") else {}
            self.model(pixel_values=images, **resample)
        else:
            self.model(images)

    def _final_norm(self, tokens: Tensor, patches: int) -> Tensor:
        # DINOv3 may train [CLS] and storage tokens with a norm of their own.
        cls_norm: nn.Module | None = getattr(self.model, "cls_norm", None)
        if cls_norm is not None:
            prefix = tokens.shape[1] - patches
            return torch.cat([cls_norm(tokens[:, :prefix]), self.norm(tokens[:, prefix:])], dim=1)
        return self.norm(tokens)


def _first(model: nn.Module, paths: Sequence[str]) -> tuple[str, Any]:
    """The first of the dotted paths that exists, and what is there; ("", None) if none does."""
    for path in paths:
        try:
            return path, attrgetter(path)(model)
        except AttributeError:
            continue
    return "", None


def _tokens(output: object) -> Tensor:
    while isinstance(output, list | tuple):
        output = output[0]
    if not isinstance(output, Tensor):
        raise UnsupportedModelError(f"a block returned {type(output).__name__}, not tokens")
    return output


def _takes(model: nn.Module, argument: str) -> bool:
    import inspect

    return argument in inspect.signature(model.forward).parameters
