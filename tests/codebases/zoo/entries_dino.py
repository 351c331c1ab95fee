"""DINO, MAE and their relatives: a joint qkv projection, with what each of them returns and takes besides."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entry import DIM, HEADS, SIDE, TOKENS, Normalize, Zoo, attend, merge, one, qkv_of, rope, tokens

ZOO = Zoo()


class Qkv(nn.Module):
    """The parts that all of these have under these names."""

    def __init__(self, dim: int = DIM, num_heads: int = HEADS, bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(0.0)


def plain(m: Any, normalize: Normalize, x: Tensor, bias: Any = 0.0) -> tuple[Tensor, Tensor]:
    """Output and map of the textbook attention."""
    q, k, v = qkv_of(m.qkv(x))
    weights = normalize(q @ k.mT * m.scale + bias)
    return m.proj(merge(weights @ v)), weights


class DinoV1(Qkv):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attn = (q @ k.transpose(-2, -1)) * self.scale
        attn = attn.softmax(dim=-1)
        attn = self.attn_drop(attn)
        x = (attn @ v).transpose(1, 2).reshape(B, N, C)
        return self.proj_drop(self.proj(x)), attn


ZOO.add("dino-v1", DinoV1, one)(plain)


class DinoV1Fork(Qkv):
    """Its forward takes a mask that is added for all heads: [B, N], 1 for tokens that nobody may look at."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attn = (q @ k.transpose(-2, -1)) * self.scale
        if mask is not None:
            attn = attn - 1e4 * mask[:, None, None].to(attn.dtype)
        attn = attn.softmax(dim=-1)
        attn = self.attn_drop(attn)
        x = (attn @ v).transpose(1, 2).reshape(B, N, C)
        return self.proj_drop(self.proj(x)), attn


@ZOO.add("ibot", DinoV1Fork, lambda: (tokens(), torch.arange(TOKENS).expand(2, -1) % 4 == 1))
def ibot(m: Any, normalize: Normalize, x: Tensor, mask: Tensor) -> Any:
    return plain(m, normalize, x, -1e4 * mask[:, None, None].to(x.dtype))


class Stego(Qkv):
    """Returns the q, k, v as well, whatever ``return_qkv`` says."""

    def forward(self, x: Tensor, return_qkv: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attn = (q @ k.transpose(-2, -1)) * self.scale
        attn = attn.softmax(dim=-1)
        attn = self.attn_drop(attn)
        x = (attn @ v).transpose(1, 2).reshape(B, N, C)
        x = self.proj(x)
        x = self.proj_drop(x)
        return x, attn, qkv


@ZOO.add("stego", Stego, one)
def stego(m: Any, normalize: Normalize, x: Tensor) -> Any:
    return *plain(m, normalize, x), torch.stack(qkv_of(m.qkv(x)))


class MapOnFlag(Qkv):
    def forward(self, x: Tensor, return_attention: bool = False) -> Any:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attn = (q @ k.transpose(-2, -1)) * self.scale
        attn = attn.softmax(dim=-1)
        attn = self.attn_drop(attn)
        x = (attn @ v).transpose(1, 2).reshape(B, N, C)
        x = self.proj_drop(self.proj(x))
        if return_attention:
            return x, attn
        return x


@ZOO.add("tinymim", MapOnFlag, one)
def tinymim(m: Any, normalize: Normalize, x: Tensor) -> Any:
    return plain(m, normalize, x)[0]


@ZOO.add("tinymim with map", MapOnFlag, lambda: (tokens(), True))
def tinymim_map(m: Any, normalize: Normalize, x: Tensor, flag: bool) -> Any:
    return plain(m, normalize, x)


class Grid(Qkv):
    """VOLO's second stage: tokens come as [B, H, W, C]."""

    def forward(self, x: Tensor) -> Any:
        B, H, W, C = x.shape
        qkv = self.qkv(x).reshape(B, H * W, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attn = (q @ k.transpose(-2, -1)) * self.scale
        attn = attn.softmax(dim=-1)
        attn = self.attn_drop(attn)
        x = (attn @ v).transpose(1, 2).reshape(B, H, W, C)
        return self.proj_drop(self.proj(x))


@ZOO.add("volo", Grid, lambda: (tokens(2, SIDE, SIDE, DIM),))
def volo(m: Any, normalize: Normalize, x: Tensor) -> Any:
    return plain(m, normalize, x.flatten(1, 2))[0].unflatten(1, x.shape[1:3])


class HeadsFirst(Qkv):
    """Each head has its own q, k, v side by side, as in Megatron's layout."""

    def forward(self, x: Tensor) -> Any:
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, self.num_heads, 3, C // self.num_heads).permute(3, 0, 2, 1, 4)
        attn = self.attn_drop(((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1))
        return self.proj_drop(self.proj((attn @ v).transpose(1, 2).reshape(B, N, C)))


@ZOO.add("head-first qkv", HeadsFirst, one)
def heads_first(m: Any, normalize: Normalize, x: Tensor) -> Any:
    per_head = [attend(normalize, *part.chunk(3, -1)) for part in m.qkv(x).chunk(HEADS, -1)]
    return m.proj(torch.cat(per_head, -1))


class Mae(Qkv):
    """timm 0.4: q scaled nowhere else than in the scores, no fused path."""

    def forward(self, x: Tensor) -> Any:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        attn = (q @ k.transpose(-2, -1)) * self.scale
        attn = attn.softmax(dim=-1)
        attn = self.attn_drop(attn)
        x = (attn @ v).transpose(1, 2).reshape(B, N, C)
        x = self.proj(x)
        return self.proj_drop(x)


@ZOO.add("mae", Mae, one)
def mae(m: Any, normalize: Normalize, x: Tensor) -> Any:
    return plain(m, normalize, x)[0]


class DinoV2(Qkv):
    """q is scaled before the product, once."""

    def forward(self, x: Tensor, attn_bias: Any = None) -> Any:
        if attn_bias is not None:
            raise AssertionError("xFormers is required for using nested tensors")
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0] * self.scale, qkv[1], qkv[2]
        attn = q @ k.transpose(-2, -1)
        attn = self.attn_drop(attn.softmax(dim=-1))
        return self.proj_drop(self.proj((attn @ v).transpose(1, 2).reshape(B, N, C)))


ZOO.add("dinov2 without xformers", DinoV2, one)(mae)


def _rotate(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    return rope(q), rope(k)


class DinoV3(Qkv):
    """One method computes attention for a batch and for a list of batches of crops."""

    def compute_attention(self, qkv: Tensor, turn: bool) -> Tensor:
        B, N, _ = qkv.shape
        q, k, v = torch.unbind(qkv.reshape(B, N, 3, self.num_heads, -1), 2)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        if turn:
            q, k = _rotate(q, k)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, -1)

    def forward(self, x: Tensor, turn: bool = True) -> Any:
        return self.proj_drop(self.proj(self.compute_attention(self.qkv(x), turn)))


class DinoV3List(DinoV3):
    def forward_list(self, xs: list[Tensor], turn: bool = True) -> list[Tensor]:
        flat = self.qkv(torch.cat([x.flatten(0, 1) for x in xs]))
        parts = flat.split([x.shape[0] * x.shape[1] for x in xs])
        ys = [self.compute_attention(p.unflatten(0, x.shape[:2]), turn) for p, x in zip(parts, xs, strict=True)]
        return [self.proj(y) for y in ys]


class ListBlock(nn.Module):
    """DINOv3's block, which calls a method of the attention and not the attention itself."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(DIM), DinoV3List()

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        ys = self.attn.forward_list([3 * self.norm1(x) for x in xs])
        return [x + y for x, y in zip(xs, ys, strict=True)]


@ZOO.add("dinov3", DinoV3, one)
def dinov3(m: Any, normalize: Normalize, x: Tensor) -> Any:
    q, k, v = qkv_of(m.qkv(x))
    return m.proj(merge(attend(normalize, rope(q), rope(k), v)))


@ZOO.add("dinov3 crops", ListBlock, lambda: ([tokens(), tokens(3, 4, DIM)],), sites=("attn",))
def dinov3_list(m: Any, normalize: Normalize, xs: list[Tensor]) -> Any:
    return [x + dinov3(m.attn, normalize, 3 * m.norm1(x)) for x in xs]


class LayerScaleBlock(nn.Module):
    """DeiT-III: LayerScale as a parameter of the block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(DIM), Mae()
        self.gamma_1 = nn.Parameter(torch.full((DIM,), 0.1))

    def forward(self, x: Tensor) -> Any:
        return x + self.gamma_1 * self.attn(3 * self.norm1(x))


@ZOO.add("deit-iii", LayerScaleBlock, one, sites=("attn",))
def deit3(m: Any, normalize: Normalize, x: Tensor) -> Any:
    return x + m.gamma_1 * plain(m.attn, normalize, 3 * m.norm1(x))[0]


class Recorded(Qkv):
    """DeiT's explainability forks and vissl's: the map is kept on the module by a setter."""

    attn_map: Tensor | None = None

    def save_attn(self, attn: Tensor) -> None:
        self.attn_map = attn

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        dots = torch.einsum("bhid,bhjd->bhij", q, k) * self.scale
        attn = F.softmax(dots, dim=-1)
        self.save_attn(attn)
        out = torch.einsum("bhij,bhjd->bhid", self.attn_drop(attn), v)
        return self.proj(out.permute(0, 2, 1, 3).flatten(2)), self.attn_map


ZOO.add("vissl, map kept", Recorded, one)(plain)
