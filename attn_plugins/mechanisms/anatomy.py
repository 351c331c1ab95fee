"""Where each codebase keeps the parts of its ViT that token mechanisms change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from torch import nn

from ..errors import UnsupportedModelError

__all__ = ["ViT", "find_vits"]


@dataclass(frozen=True)
class Codebase:
    """How to tell a ViT of one codebase from its attributes, and what its parts are called.

    Attributes:
        name: for messages.
        marks: attributes that every ViT of it has.
        registers: the number of its own register tokens, read from the instance.
        option: what its constructor calls them.
        others: the number of further tokens before the patches (a distillation token).
        blocks: path of the list of blocks.
        norm: path of the final norm.
        cls_token: path of the [CLS] parameter.
    """

    name: str
    marks: tuple[str, ...]
    registers: Callable[[Any], int]
    option: str
    others: Callable[[Any], int] = lambda model: 0
    blocks: str = "blocks"
    norm: str = "norm"
    cls_token: str = "cls_token"


def _own(name: str) -> Callable[[Any], int]:
    # Read from the instance: a patched class may answer with its own registers added.
    return lambda model: int(vars(model).get(name) or 0)


def _timm_registers(model: Any) -> int:
    return 0 if model.reg_token is None else model.reg_token.shape[1]


def _timm_others(model: Any) -> int:
    return int(vars(model)["num_prefix_tokens"]) - 1 - _timm_registers(model)


def _transformers(*marks: str, **paths: str) -> Codebase:
    return Codebase(
        "transformers",
        ("config", "embeddings", *marks),
        lambda model: int(getattr(model.config, "num_register_tokens", 0) or 0),
        "config.num_register_tokens",
        lambda model: int(getattr(model.embeddings, "distillation_token", None) is not None),
        cls_token="embeddings.cls_token",
        **paths,
    )


_DINO = "prepare_tokens_with_masks"
_TIMM = ("_pos_embed", "num_prefix_tokens")
CODEBASES = (
    Codebase("dinov2", (_DINO, "num_register_tokens"), _own("num_register_tokens"), "num_register_tokens"),
    Codebase("dinov3", (_DINO, "n_storage_tokens"), _own("n_storage_tokens"), "n_storage_tokens"),
    Codebase("dinov1", ("prepare_tokens", "get_last_selfattention"), lambda model: 0, ""),
    Codebase("timm", (*_TIMM, "rope"), _timm_registers, "num_reg_tokens", _timm_others),  # Eva, and DINOv3 there
    Codebase("timm", _TIMM, _timm_registers, "reg_tokens", _timm_others),
    _transformers("layers", "layernorm", blocks="layers", norm="layernorm"),
    _transformers("encoder", "layernorm", blocks="encoder.layer", norm="layernorm"),
    _transformers("rope_embeddings", blocks="model.layer"),
)
TRANSFORMERS = {"vit", "vit_msn", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit"}
"""Model types whose tokens are [CLS], perhaps a distillation token, registers and patches, and nothing else."""


@dataclass
class ViT:
    """One ViT inside a model.

    Attributes:
        root: the module that embeds the image, runs the blocks and norms the result.
        codebase: whose it is.
        blocks: its blocks, in order.
        norm: its final norm.
        registers: register tokens that its own codebase gave it.
        others: further tokens before the patches.
        extra: tokens that the spec's mechanisms add after [CLS].
    """

    root: Any
    codebase: Codebase
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
        """``[1, 1, C]``"""
        return attrgetter(self.codebase.cls_token)(self.root)

    def part(self, block: nn.Module, *names: str) -> nn.Module:
        """The first of ``names`` that ``block`` has.

        Raises:
            UnsupportedModelError: it has none of them.
        """
        for name in names:
            found = getattr(block, name, None)
            if isinstance(found, nn.Module):
                return found
        parts = ", ".join(name for name, _ in block.named_children())
        raise UnsupportedModelError(
            f"{type(block).__qualname__} of {type(self.root).__qualname__} has no {' or '.join(names)}; it has "
            f"{parts}. Token mechanisms know the blocks of DINOv1, v2, v3, lightly-train, timm and transformers"
        )

    def norm1(self, block: nn.Module) -> Any:
        return self.part(block, "norm1", "layernorm_before")

    def norm2(self, block: nn.Module) -> nn.Module:
        return self.part(block, "norm2", "layernorm_after")

    def attention(self, block: nn.Module) -> nn.Module:
        return self.part(block, "attn", "attention")

    def projection(self, block: nn.Module) -> Any:
        """The linear layer after the heads."""
        return self.part(self.attention(block), "proj", "o_proj")

    def qkv(self, block: nn.Module) -> list[nn.Module]:
        """The linear layers before the heads: one, or three."""
        attention = self.attention(block)
        if isinstance(getattr(attention, "qkv", None), nn.Module):
            return [attention.qkv]  # type: ignore[list-item]
        return [self.part(attention, name) for name in ("q_proj", "k_proj", "v_proj")]

    def layer_scales(self, block: nn.Module) -> list[nn.Module]:
        """LayerScale of the two branches, none where the model has none."""
        names = ("ls1", "ls2", "layer_scale1", "layer_scale2")
        found = [getattr(block, name, None) for name in names]
        return [module for module in found if isinstance(module, nn.Module) and list(module.parameters())]


def find_vits(model: nn.Module) -> list[ViT]:
    """Every ViT in ``model`` that token mechanisms can change.

    Raises:
        UnsupportedModelError: there is none, or one without [CLS] token.
    """
    found = []
    for module in model.modules():
        codebase = next((known for known in CODEBASES if all(hasattr(module, mark) for mark in known.marks)), None)
        if codebase is not None:
            found.append(_dissect(module, codebase))
    if not found:
        raise UnsupportedModelError(
            f"{type(model).__qualname__} has no ViT that token mechanisms know (DINOv1, v2, v3, lightly-train, timm "
            "and transformers ViTs): use a normalizer alone, or pass the ViT itself"
        )
    return found


def _dissect(root: Any, codebase: Codebase) -> ViT:
    if codebase.name == "transformers" and root.config.model_type not in TRANSFORMERS:
        raise UnsupportedModelError(
            f"token mechanisms do not know transformers' model type {root.config.model_type!r}, only "
            f"{', '.join(sorted(TRANSFORMERS))}; use a normalizer alone"
        )
    try:
        blocks, norm, cls_token = (
            attrgetter(path)(root) for path in (codebase.blocks, codebase.norm, codebase.cls_token)
        )
    except AttributeError as error:
        raise UnsupportedModelError(
            f"{type(root).__qualname__} looks like a ViT of {codebase.name}, but {error}; token mechanisms "
            "cannot be applied"
        ) from error
    if cls_token is None:
        raise UnsupportedModelError(f"{type(root).__qualname__} has no [CLS] token, which token mechanisms go by")
    # DINOv2 trains with its blocks in chunks, each padded in front with identities.
    nested = any(isinstance(item, nn.ModuleList) for item in blocks)
    flat = (
        [block for chunk in blocks for block in chunk if not isinstance(block, nn.Identity)] if nested else list(blocks)
    )
    return ViT(root, codebase, flat, norm, codebase.registers(root), codebase.others(root))
