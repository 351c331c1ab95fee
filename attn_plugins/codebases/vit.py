"""The ViTs inside a model, and the parts of them that token mechanisms change."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from torch import nn

from ..errors import UnsupportedModelError
from .base import CODEBASES, Codebase
from .parts import Parts

__all__ = ["ViT", "find_vits", "unchunked"]


@dataclass
class ViT:
    """One ViT inside a model.

    Attributes:
        root: the module that embeds the image, runs the blocks and norms the result.
        known: what its codebase says of its parts.
        blocks: its blocks, in order.
        norm: its final norm.
        registers: register tokens that its own codebase gave it.
        others: further tokens before the patches.
        extra: tokens that the spec's mechanisms add after [CLS].
    """

    root: Any
    known: Parts = field(repr=False)
    blocks: list[nn.Module] = field(repr=False)
    norm: Any = field(repr=False)
    registers: int = 0
    others: int = 0
    extra: int = 0

    @property
    def prefix(self) -> int:
        """Number of tokens before the patches: [CLS], ``registers``, ``others`` and ``extra``."""
        return 1 + self.registers + self.others + self.extra

    @property
    def cls_token(self) -> nn.Parameter:
        """``[1, 1, C]``."""
        token: nn.Parameter = attrgetter(self.known.cls_token)(self.root)
        return token

    def part(self, block: nn.Module, *names: str) -> nn.Module:
        """The first of ``names`` that ``block`` has.

        Raises:
            UnsupportedModelError: it has none of them, or one that peft has wrapped.
        """
        for name in names:
            found = getattr(block, name, None)
            if isinstance(found, nn.Module):
                if isinstance(found._modules.get("base_layer"), nn.Module):
                    raise UnsupportedModelError(
                        f"{name} of {type(block).__qualname__} is wrapped by an adapter ({type(found).__qualname__}), "
                        "which undoes what a token mechanism does to it: patch first, then add adapters (LoRA)"
                    )
                return found
        parts = ", ".join(name for name, _ in block.named_children())
        raise UnsupportedModelError(
            f"{type(block).__qualname__} of {type(self.root).__qualname__} has no {' or '.join(names)}; it has "
            f"{parts}. Token mechanisms know the blocks of DINOv1, v2, v3, lightly-train, timm and transformers"
        )

    def norm1(self, block: nn.Module) -> Any:
        return self.part(block, *self.known.norm1)

    def norm2(self, block: nn.Module) -> nn.Module:
        return self.part(block, *self.known.norm2)

    def mlp(self, block: nn.Module) -> nn.Module:
        return self.part(block, *self.known.mlp)

    def attention(self, block: nn.Module) -> nn.Module:
        return self.part(block, *self.known.attention)

    def projection(self, block: nn.Module) -> Any:
        """The linear layer after the heads."""
        return self.part(self.attention(block), *self.known.projection)

    def qkv(self, block: nn.Module) -> list[nn.Module]:
        """The linear layers before the heads: one, or three."""
        attention = self.attention(block)
        if isinstance(getattr(attention, self.known.qkv, None), nn.Module):
            return [self.part(attention, self.known.qkv)]
        return [self.part(attention, name) for name in self.known.apart]

    def layer_scales(self, block: nn.Module) -> list[nn.Module]:
        """LayerScale of the two branches, none where the model has none."""
        found = [getattr(block, name, None) for name in self.known.layer_scales]
        return [module for module in found if isinstance(module, nn.Module) and list(module.parameters())]

    def cls_norms(self) -> list[nn.Module | None]:
        """Final norms of [CLS]'s own, for all crops and for local crops; None where it has none."""
        return [getattr(self.root, name, None) for name in self.known.cls_norms]


def find_vits(model: nn.Module) -> list[ViT]:
    """Every ViT in ``model`` that token mechanisms can change.

    Raises:
        UnsupportedModelError: there is none, or one without [CLS] token.
    """
    known = [(codebase, parts) for codebase in reversed(CODEBASES.values()) for parts in codebase.vits]
    found = []
    for module in model.modules():
        marked = (pair for pair in known if all(_has(module, mark) for mark in pair[1].marks))
        found += [_dissect(module, *pair) for pair in list(marked)[:1]]
    if not found:
        raise UnsupportedModelError(
            f"{type(model).__qualname__} has no ViT that token mechanisms know (DINOv1, v2, v3, lightly-train, timm "
            "from 0.6 and transformers ViTs): use a normalizer alone, or pass the ViT itself"
        )
    return found


def _has(module: nn.Module, name: str) -> bool:
    """Whether it is the module's own: wrappers (peft's, torch.compile's) answer with what the model inside has."""
    held = (*vars(module), *module._parameters, *module._buffers, *module._modules)
    return name in held or inspect.getattr_static(type(module), name, None) is not None


def _dissect(root: Any, codebase: Codebase, known: Parts) -> ViT:
    reason = known.refuses(root)
    if reason:
        raise UnsupportedModelError(f"{reason}; use a normalizer alone")
    try:
        blocks, norm, cls_token = (attrgetter(path)(root) for path in (known.blocks, known.norm, known.cls_token))
    except AttributeError as error:
        raise UnsupportedModelError(
            f"{type(root).__qualname__} looks like a ViT of {codebase.name}, but {error}; token mechanisms "
            "cannot be applied"
        ) from error
    if cls_token is None:
        raise UnsupportedModelError(f"{type(root).__qualname__} has no [CLS] token, which token mechanisms go by")
    return ViT(root, known, unchunked(blocks), norm, known.registers(root), known.others(root))


def unchunked(blocks: Iterable[Any]) -> list[nn.Module]:
    """The blocks in order; DINOv2 trains with them in chunks, each padded in front with identities."""
    if not any(isinstance(item, nn.ModuleList) for item in blocks):
        return list(blocks)
    return [block for chunk in blocks for block in chunk.children() if not isinstance(block, nn.Identity)]
