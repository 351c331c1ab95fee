"""What the record of a codebase is made of: plain data and callables, which ``base`` puts together."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..swap import Overrides

__all__ = [
    "ARCHITECTURES",
    "Builder",
    "Built",
    "Features",
    "OwnRegisters",
    "Parts",
    "Shape",
    "StateDict",
    "is_common",
    "is_head",
]

ARCHITECTURES = {
    (192, 12): ("vit_tiny", 3),
    (384, 12): ("vit_small", 6),
    (768, 12): ("vit_base", 12),
    (1024, 24): ("vit_large", 16),
    (1152, 27): ("vit_so400m", 18),
    (1280, 32): ("vit_huge2", 20),
    (1536, 40): ("vit_giant2", 24),
    (4096, 40): ("vit_7b", 32),
}
"""{(embed_dim, depth): (name, heads)}, as the DINO codebases call them. Head size is 64, in the 7B model 128."""

# What only training or a classifier needs: DINO's heads, timm's, MAE's decoder, iBOT's mask.
_HEADS = re.compile(r"(?:head|head_dist|fc|fc_norm|dino_head|ibot_head|masked_embed|decoder_\w+)(?:\.|$)")


def is_head(plain: str) -> bool:
    """Whether a key of an unwrapped model is a head's, or of what only training needs."""
    return _HEADS.match(plain) is not None


@dataclass(frozen=True)
class OwnRegisters:
    """What a codebase's trainer does with register tokens that its ViTs are built with.

    Attributes:
        std: standard deviation of the normal distribution that they start from.
        decay: whether its parameter groups give them weight decay.
    """

    std: float
    decay: bool


@dataclass(frozen=True)
class Parts:
    """How to tell a ViT from its attributes, what its parts are called, and how further tokens enter it.

    Where several names are given for a part, the first that a block has is the one.

    Attributes:
        marks: attributes that every ViT of this kind has.
        blocks: path of the list of blocks.
        norm: path of the final norm.
        cls_token: path of the [CLS] parameter.
        norm1: of a block, the norm before its attention.
        norm2: the norm before its MLP.
        attention: its attention.
        mlp: its MLP.
        qkv: of an attention, the linear layer before the heads; ``apart`` are the three of attentions without it.
        projection: the linear layer after the heads.
        layer_scales: of a block, the LayerScale modules of both branches.
        registers: the number of register tokens of its own, read from the instance.
        option: what its constructor calls them.
        own_registers: how its own trainer starts and decays them; None where it has none, or says nothing of them.
        others: the number of further tokens before the patches (a distillation token).
        enter: (path, class layer) of each module that has to change for further registers to enter. The layers find
            them in ``self.attn_plugins_registers`` (``registers``).
        uncounted: whether tokens are counted where registers cannot be told of.
        packs: class layer of blocks that pack batches into one row of tokens, which notes their sizes.
        scales: class layer of blocks that read their LayerScale's parameter instead of calling it, which calls it.
        cls_norms: attributes that hold final norms of [CLS]'s own, or None: of all crops, and of local crops.
        refuses: why token mechanisms cannot change this one; empty if they can.
    """

    marks: tuple[str, ...]
    blocks: str = "blocks"
    norm: str = "norm"
    cls_token: str = "cls_token"
    norm1: tuple[str, ...] = ("norm1",)
    norm2: tuple[str, ...] = ("norm2",)
    attention: tuple[str, ...] = ("attn",)
    mlp: tuple[str, ...] = ("mlp",)
    qkv: str = "qkv"
    apart: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    projection: tuple[str, ...] = ("proj",)
    layer_scales: tuple[str, ...] = ("ls1", "ls2")
    registers: Callable[[Any], int] = lambda root: 0
    option: str = ""
    own_registers: OwnRegisters | None = None
    others: Callable[[Any], int] = lambda root: 0
    enter: tuple[tuple[str, Overrides], ...] = ()
    uncounted: Callable[[Any], bool] = lambda root: False
    packs: Overrides | None = None
    scales: Overrides | None = None
    cls_norms: tuple[str, ...] = ()
    refuses: Callable[[Any], str] = lambda root: ""


def _forward(model: Any, images: Tensor) -> None:
    positions = getattr(model, "official_positions", None)  # of DINO's architectures that timm has built
    if positions is not None:
        positions.prepare(images)
    if hasattr(model, "forward_features"):
        model.forward_features(images)
    else:
        model(images)


@dataclass(frozen=True)
class Features:
    """Where a model tells what is needed to read features layer by layer; of several paths the first that exists.

    Attributes:
        blocks: paths of the list of blocks.
        norm: paths of the final norm.
        width: paths of the number of channels.
        patch_size: paths of the patch size in pixels.
        cls_norm: path of a final norm that is [CLS]'s and the registers' own; empty if there is none.
        run: runs the blocks on ``images: [B, 3, H, W]``; what it returns is not asked for.
    """

    blocks: tuple[str, ...] = ("blocks",)
    norm: tuple[str, ...] = ("norm",)
    width: tuple[str, ...] = ("embed_dim",)
    patch_size: tuple[str, ...] = ("patch_embed.patch_size", "patch_size")
    cls_norm: str = ""
    run: Callable[[Any, Tensor], None] = _forward


@dataclass(frozen=True)
class Shape:
    """What the tensors alone tell about a ViT.

    Attributes:
        codebase: whose modules have these keys: ``dino``, ``dinov2``, ``dinov3``, ``timm``, ``mae`` or
            ``transformers``. DINOv1, iBOT and timm name theirs alike; a classifier decides for timm. lightly-train's
            own models are DINOv2's or DINOv3's.
        architecture: ``vit_small``, …; ``vit(embed_dim=…, depth=…)`` where nobody has named it.
        num_heads: attention heads of that architecture; None where the shape leaves it open.
        grid: side of the position embedding's grid, in patches; None where positions are rotary or no square grid.
        positions: tokens that have a position embedding; None where positions are rotary.
        registers: native register (storage) tokens.
        ffn: ``mlp`` or ``swiglu``.
        layer_scale: whether blocks scale their residuals.
        chunks: block chunks of the saved model (DINOv2's ``block_chunks``), 0 for a plain list.
        problem: why this is no Vision Transformer that is known here; None if it is one.
    """

    codebase: str
    architecture: str
    embed_dim: int
    depth: int
    num_heads: int | None
    patch_size: int
    grid: int | None
    positions: int | None
    registers: int
    ffn: str
    layer_scale: bool
    chunks: int
    problem: str | None = None


@dataclass(frozen=True)
class StateDict:
    """What the keys of a state dict are called; by default as DINO's, timm's and their many forks call them.

    Attributes:
        is_ours: ``is_ours(keys, heads)``: whether keys with one of these stems, and those of heads, are this
            codebase's.
        called: what ``identify`` calls the codebase; empty for its name.
        stems: weight of the patch embedding, ``[C, 3, P, P]``.
        cls_token: [CLS], any shape.
        registers: register tokens, ``[1, num, C]``.
        positions: position embedding, ``[1, N, C]``.
        block: pattern of a key inside a block; its group is the block's index.
        mlp: ends the key of a block's MLP that is no SwiGLU.
        layer_scale: key of the first block's LayerScale.
        architectures: ``{(embed_dim, depth): (name, heads)}``.
    """

    is_ours: Callable[[Collection[str], Collection[str]], bool] = lambda keys, heads: True
    called: str = ""
    stems: tuple[str, ...] = ("patch_embed.proj.weight",)
    cls_token: tuple[str, ...] = ("cls_token",)
    registers: tuple[str, ...] = ("register_tokens", "storage_tokens", "reg_token")
    positions: tuple[str, ...] = ("pos_embed",)
    block: str = r"(?:blocks|(?:model\.|encoder\.)?layers?)\.(\d+)\."
    mlp: str = "0.mlp.fc1.weight"
    layer_scale: str = "blocks.0.ls1.gamma"
    architectures: Mapping[tuple[int, int], tuple[str, int]] = field(default_factory=lambda: ARCHITECTURES)


Built = tuple[nn.Module, Callable[[dict[str, Tensor]], dict[str, Tensor]], dict[str, Any]]
"""A model, what turns a checkpoint's keys into its own, and all arguments that it was built with."""


def is_common(name: str) -> bool:
    """Whether an architecture has one of the names that the DINO codebases share."""
    return any(name == known for known, _ in ARCHITECTURES.values())


@dataclass(frozen=True)
class Builder:
    """How a ViT is built to fit a checkpoint.

    Attributes:
        family: its part of an architecture's name: ``FAMILY/NAME``.
        build: ``build(name, shape, repo, options)``: a ViT sized as ``shape`` tells (None: the architecture's own
            sizes), by the code in the checkout ``repo`` where there is such a thing; ``options`` are further
            arguments of the constructor and win. Raises ``ValueError`` for a name it does not know.
        may_be_told: whether a file may choose this NAME. What the user names is built without being asked.
        told: (NAME, arguments) that a ``config.json`` beside the weights tells, or None.
        fitting: the NAMEs whose parameters have the names and shapes of a checkpoint's.
    """

    family: str
    build: Callable[[str, Shape | None, str | os.PathLike[str] | None, Mapping[str, Any]], Built]
    may_be_told: Callable[[str], bool] = is_common
    told: Callable[[Mapping[str, Any]], tuple[str, Any] | None] = lambda config: None
    fitting: Callable[[Mapping[str, Tensor], Shape], list[str]] = lambda tensors, shape: []
