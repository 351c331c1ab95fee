"""A ViT with token mechanisms written out plainly from a state dict: what the mechanisms are compared with."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OWN = ".attn_plugins_specialization"


class Plain:
    """Forward of a DINOv1 or timm ViT (8-pixel patches, 3 heads) from its tensors alone.

    Args:
        model: gives the state dict; names are read, no module is called.
        halves: context broadcasting.
    """

    def __init__(self, model: nn.Module, heads: int = 3, eps: float = 1e-6, halves: bool = False) -> None:
        self.p = dict(model.state_dict())
        self.heads, self.eps, self.halves = heads, eps, halves
        self.depth = len({name.split(".")[1] for name in self.p if name.startswith("blocks.")})
        self.registers = self.p.get("attn_plugins_registers.register_tokens.bias")
        self.prefix = 1 + (0 if self.registers is None else self.registers.shape[1])

    def kinds(self, name: str, x: Tensor, function: Callable[[Tensor, str], Tensor]) -> Tensor:
        """Apply ``function(tokens, name of the parameters)`` to [CLS] with registers and to patches, one by one."""
        out = []
        for index in range(x.shape[1]):
            own = index < self.prefix and any(key.startswith(name + OWN) for key in self.p)
            out.append(function(x[:, index], name + OWN if own else name))
        return torch.stack(out, dim=1)

    def norm(self, name: str, x: Tensor) -> Tensor:
        def layer_norm(t: Tensor, key: str) -> Tensor:
            return F.layer_norm(t, t.shape[-1:], self.p[key + ".weight"], self.p[key + ".bias"], self.eps)

        return self.kinds(name, x, layer_norm)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return self.kinds(name, x, lambda t, key: F.linear(t, self.p[key + ".weight"], self.p[key + ".bias"]))

    def scale(self, name: str, x: Tensor) -> Tensor:
        if name + ".gamma" not in self.p:
            return x
        return self.kinds(name, x, lambda t, key: t * self.p[key + ".gamma"])

    def attend(self, block: str, x: Tensor) -> Tensor:
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for t in self.linear(block + "attn.qkv", x).chunk(3, dim=-1)
        )
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        out = (weights @ v).transpose(1, 2).flatten(2)
        gate = block + "attn.proj.attn_plugins_gated"
        if gate + ".weight" in self.p:
            out = out * 2 * torch.sigmoid(F.linear(x, self.p[gate + ".weight"], self.p[gate + ".bias"]))
        return self.linear(block + "attn.proj", out)

    def feed_forward(self, block: str, x: Tensor) -> Tensor:
        y = self.linear(block + "mlp.fc2", F.gelu(self.linear(block + "mlp.fc1", x)))
        scale = self.p.get(block + "mlp.attn_plugins_cb_s.gamma")
        if scale is not None:
            y = y + scale * y.sum(dim=1, keepdim=True) / y.shape[1]
        if self.halves:
            y = 0.5 * y + 0.5 * y.sum(dim=1, keepdim=True) / y.shape[1]
        return y

    def __call__(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` to all tokens after the final norm, registers left out: ``[B, 1 + N, C]``."""
        patches = F.conv2d(images, self.p["patch_embed.proj.weight"], self.p["patch_embed.proj.bias"], stride=8)
        x = torch.cat([self.p["cls_token"].expand(len(images), -1, -1), patches.flatten(2).transpose(1, 2)], 1)
        x = x + self.p["pos_embed"]
        if self.registers is not None:
            x = torch.cat([x[:, :1], self.registers.expand(len(x), -1, -1), x[:, 1:]], 1)
        for index in range(self.depth):
            block = f"blocks.{index}."
            x = x + self.scale(block + "ls1", self.attend(block, self.norm(block + "norm1", x)))
            x = x + self.scale(block + "ls2", self.feed_forward(block, self.norm(block + "norm2", x)))
        x = self.norm("norm", x)
        return torch.cat([x[:, :1], x[:, self.prefix :]], 1)
