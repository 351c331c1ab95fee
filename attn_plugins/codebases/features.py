"""Per-layer patch and [CLS] features of any ViT, read from its own unchanged forward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from .base import CODEBASES
from .parts import Features
from .vit import unchunked

__all__ = ["ViTFeatures", "center_pad", "evenly_spaced"]

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
        images: ``[B, 3, H, W]``.
        multiple: patch size in pixels.
    """
    pads: list[int] = []
    for size in (images.shape[-1], images.shape[-2]):
        extra = -size % multiple
        pads += [extra // 2, extra - extra // 2]
    return nn.functional.pad(images, pads)


class ViTFeatures:
    """Reads a ViT's block outputs while its own forward runs, so that any patched model can be read.

    Patch tokens are the last ``h·w`` tokens of a block's output and [CLS] is the first; whatever stands between
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
        self._places = places = _places(model)
        path, found = _first(model, places.blocks)
        if not isinstance(found, nn.ModuleList | nn.Sequential):
            raise UnsupportedModelError(
                f"{type(model).__name__} has no list of blocks under any of {', '.join(places.blocks)}; "
                "features can be read from DINO, timm, transformers and torchvision ViTs"
            )
        self._container = path, found
        self.blocks = unchunked(found)
        _, norm = _first(model, places.norm)
        if not isinstance(norm, nn.Module):
            raise UnsupportedModelError(
                f"{type(model).__name__} has no final norm under any of {', '.join(places.norm)}"
            )
        self.norm = norm
        _, patch_size = _first(model, places.patch_size)
        if patch_size is None:
            raise UnsupportedModelError(
                f"{type(model).__name__} tells its patch size nowhere: {', '.join(places.patch_size)}"
            )
        self.patch_size = int(patch_size[0]) if isinstance(patch_size, Sequence) else int(patch_size)
        _, embed_dim = _first(model, places.width)
        if embed_dim is None:
            raise UnsupportedModelError(f"{type(model).__name__} tells its width nowhere: {', '.join(places.width)}")
        self.embed_dim = int(embed_dim)

    @property
    def depth(self) -> int:
        return len(self.blocks)

    @property
    def final_norms(self) -> list[nn.Module]:
        """The norms above the blocks: one, or [CLS]'s own beside it."""
        _, cls_norm = _first(self.model, (self._places.cls_norm,))
        return [self.norm, *([cls_norm] if isinstance(cls_norm, nn.Module) else [])]

    def stop_after(self, layer: int) -> None:
        """Drop the blocks behind ``layer``, whose features nobody asks for (they stay where blocks are chunked)."""
        path, found = self._container
        if len(found) == self.depth:
            parent, _, name = path.rpartition(".")
            owner = attrgetter(parent)(self.model) if parent else self.model
            setattr(owner, name, found[: layer + 1])
        self.blocks = self.blocks[: layer + 1]

    def __call__(self, images: Tensor, layers: Sequence[int], norm: bool = True) -> list[tuple[Tensor, Tensor]]:
        """Features of the given layers; equal to the upstream ``get_intermediate_layers(reshape=True)``.

        Args:
            images: ``[B, 3, H, W]``, normalised; H and W are multiples of the patch size.
            layers: 0-based block indices.
            norm: apply the model's final norm to every layer's tokens.

        Returns:
            For each layer, patch tokens ``[B, C, H/patch, W/patch]`` and [CLS] ``[B, C]``.
        """
        h, w = (size // self.patch_size for size in images.shape[-2:])
        outputs: dict[int, Tensor] = {}
        self.visit(images, outputs.__setitem__, layers)
        features = []
        for index in layers:
            tokens = self.final_norm(outputs[index], h * w) if norm else outputs[index]
            patches = tokens[:, -h * w :].transpose(1, 2).unflatten(2, (h, w))
            features.append((patches.contiguous(), tokens[:, 0]))
        return features

    def visit(self, images: Tensor, seen: Callable[[int, Tensor], None], layers: Sequence[int] | None = None) -> None:
        """Run the model and show the blocks' outputs as they are computed: who keeps none holds one layer's.

        Args:
            images: as in calling.
            seen: called as ``seen(layer, tokens)`` with all tokens ``[B, N, C]``, before any norm.
            layers: 0-based block indices; None: all.

        Raises:
            UnsupportedModelError: the model has no [CLS] token.
        """
        h, w = (size // self.patch_size for size in images.shape[-2:])

        def show(index: int) -> Callable[[nn.Module, object, object], None]:
            def hook(module: nn.Module, args: object, output: object) -> None:
                tokens = _tokens(output)
                if tokens.shape[1] <= h * w:
                    raise UnsupportedModelError(
                        f"{type(self.model).__name__} has no [CLS] token: {tokens.shape[1]} tokens"
                    )
                seen(index, tokens)

            return hook

        chosen = range(self.depth) if layers is None else layers
        handles = [self.blocks[index].register_forward_hook(show(index)) for index in dict.fromkeys(chosen)]
        try:
            self._places.run(self.model, images)
        finally:
            for handle in handles:
                handle.remove()

    def final_norm(self, tokens: Tensor, patches: int) -> Tensor:
        """The final norm of a block's output ``[B, N, C]``, of which the last ``patches`` tokens are patches."""
        _, cls_norm = _first(self.model, (self._places.cls_norm,))
        if cls_norm is not None:
            prefix = tokens.shape[1] - patches
            return torch.cat([cls_norm(tokens[:, :prefix]), self.norm(tokens[:, prefix:])], dim=1)
        normed: Tensor = self.norm(tokens)
        return normed


def _places(model: nn.Module) -> Features:
    """Where the codebase that the model has all the names of says to look, or else wherever any of them does."""
    known = [codebase.features for codebase in reversed(CODEBASES.values()) if codebase.features is not None]
    for places in known:
        own = (places.blocks, places.norm, places.width, places.patch_size)
        if all(_first(model, paths)[0] for paths in (*own, *([(places.cls_norm,)] if places.cls_norm else []))):
            return places
    return Features(
        _anywhere(places.blocks for places in known),
        _anywhere(places.norm for places in known),
        _anywhere(places.width for places in known),
        _anywhere(places.patch_size for places in known),
    )


def _anywhere(paths: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(path for some in paths for path in some))


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
