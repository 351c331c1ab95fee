"""A codebase that the package has never heard of: a tiny ViT whose parts have names of their own, and its record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import attn_plugins
from attn_plugins.codebases import Adapter, Builder, Built, Codebase, Features, Parts, Shape, StateDict, inserted


class Mixer(nn.Module):
    """Attention with a softmax spelled out in exponentials, which nothing but an adapter can answer."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.to_qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        weights = torch.exp(q @ k.mT / q.shape[-1] ** 0.5)
        out: Tensor = self.out((weights @ v / weights.sum(-1, keepdim=True)).transpose(1, 2).flatten(2))
        return out


class Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.by


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.widen, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.narrow(self.widen(x).relu())
        return out


class Stage(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.before, self.mixer, self.scale_a = nn.LayerNorm(width), Mixer(width, num_heads), Scale(width)
        self.between, self.ffn = nn.LayerNorm(width), FeedForward(width)
        self.scale_b = Scale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale_a(self.mixer(self.before(x)))
        out: Tensor = x + self.scale_b(self.ffn(self.between(x)))
        return out


class ToyViT(nn.Module):
    def __init__(self, width: int = 32, depth: int = 3, patch: int = 8, side: int = 4, n_memory: int = 0) -> None:
        super().__init__()
        self.width, self.patch, self.n_memory = width, patch, n_memory
        self.stem = nn.Conv2d(3, width, patch, patch)
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.where = nn.Parameter(torch.randn(1, 1 + side * side, width))
        self.memory = nn.Parameter(torch.randn(1, n_memory, width)) if n_memory else None
        self.stages = nn.ModuleList(Stage(width, 4) for _ in range(depth))
        self.final = nn.LayerNorm(width)

    def embed(self, images: Tensor) -> Tensor:
        patches = self.stem(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(images), -1, -1), patches], dim=1) + self.where
        memory = [] if self.memory is None else [self.memory.expand(len(images), -1, -1)]
        return torch.cat([x[:, :1], *memory, x[:, 1:]], dim=1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, 3, H, W]`` to [CLS] ``[B, C]`` and patches ``[B, N, C]``."""
        x = self.embed(images)
        for stage in self.stages:
            x = stage(x)
        x = self.final(x)
        return x[:, 0], x[:, 1 + self.n_memory :]


def _answers(base: Any) -> dict[str, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        out = attn_plugins.attention(*self.split(x), normalizer=self.attn_plugins_normalizer)
        result: Tensor = self.out(out.transpose(1, 2).flatten(2))
        return result

    return {"forward": forward}


def _memory_enters(base: Any) -> dict[str, Any]:
    def embed(self: Any, images: Tensor) -> Tensor:
        return inserted(self, base.embed(self, images))

    return {
        "embed": embed,
        "n_memory": property(lambda self: vars(self)["n_memory"] + self.attn_plugins_registers.tokens.shape[1]),
    }


def _build(name: str, shape: Shape | None, repo: Any, options: Mapping[str, Any]) -> Built:
    if name != "tiny":
        raise ValueError(f"toy has no {name!r}, only tiny")
    sizes = {} if shape is None else {"patch": shape.patch_size, "side": shape.grid, "n_memory": shape.registers}
    return ToyViT(**{**sizes, **options}), dict, {**sizes, **options}


TOY = Codebase(
    "toy",
    adapters=(Adapter("toy", lambda cls: issubclass(cls, Mixer), _answers),),
    vits=(
        Parts(
            ("class_token", "n_memory", "stages"),
            blocks="stages",
            norm="final",
            cls_token="class_token",
            norm1=("before",),
            norm2=("between",),
            attention=("mixer",),
            mlp=("ffn",),
            qkv="to_qkv",
            projection=("out",),
            layer_scales=("scale_a", "scale_b"),
            registers=lambda root: vars(root)["n_memory"],
            option="n_memory",
            enter=(("", _memory_enters),),
        ),
    ),
    features=Features(("stages",), ("final",), ("width",), ("patch",)),
    state=StateDict(
        stems=("stem.weight",),
        cls_token=("class_token",),
        registers=("memory",),
        positions=("where",),
        block=r"stages\.(\d+)\.",
        mlp="0.ffn.widen.weight",
        layer_scale="stages.0.scale_a.by",
        architectures={(32, 3): ("tiny", 4)},
    ),
    building=Builder("toy", _build, may_be_told=lambda name: name == "tiny"),
    constructor=("stem", "stages", "class_token"),
)
