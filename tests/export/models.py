"""Tiny models with attention of three kinds (SDPA, nn.MultiheadAttention, softmax) and scores far from uniform."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import attn_plugins

SPECS = ("softmax", "entmax15", "sparsemax", "entmax:alpha=1.3", "entmax_alpha")


class Attention(nn.Module):
    """Softmax between two products, as research code writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(24, 72)
        self.proj = nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 3, 8).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * 8**-0.5).softmax(dim=-1)
        out: Tensor = self.proj((weights @ v).transpose(1, 2).reshape(b, n, c))
        return out


class HandWritten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 24, 8, 8)
        self.first, self.second, self.norm = Attention(), Attention(), nn.LayerNorm(24)

    def forward(self, image: Tensor) -> Tensor:
        x = self.embed(image).flatten(2).transpose(1, 2)
        x = x + self.first(self.norm(x))
        out: Tensor = self.norm(x + self.second(self.norm(x)))
        return out


def timm_vit() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=0)


def encoder_layer() -> nn.Module:
    return nn.TransformerEncoderLayer(24, 3, 32, batch_first=True, dropout=0.0)


MODELS: dict[str, Callable[[], nn.Module]] = {"timm": timm_vit, "mha": encoder_layer, "softmax": HandWritten}
# The heads of a hand-written softmax are not known, so it takes no normalizer with a parameter per head.
CASES = [(name, spec) for name in MODELS for spec in SPECS if (name, spec) != ("softmax", "entmax_alpha")]
CASES.append(("timm", "entmax15+registers:num=2"))


def build(name: str, spec: str | None) -> tuple[nn.Module, Tensor]:
    """A model in eval mode, patched with ``spec`` if there is one, and an input with a batch of 2."""
    torch.manual_seed(0)
    model = MODELS[name]()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=1.5 * parameter[0].numel() ** -0.5)
    if spec is not None:
        attn_plugins.patch(model, spec)
        for path, parameter in model.named_parameters():
            if path.endswith("normalizer.logit"):
                nn.init.uniform_(parameter.data, -1, 1)
    return model.eval(), torch.randn(2, 9, 24) if name == "mha" else torch.randn(2, 3, 32, 32)
