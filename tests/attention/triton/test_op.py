"""The kernels as a torch operator: opcheck, torch.compile, checkpointing, FSDP, and what is kept for the backward."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers.triton_cases import DEVICE, qkv
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

from attn_plugins import attention
from attn_plugins.attention.triton.op import entmax_attention


def run(q: Tensor, k: Tensor, v: Tensor, **kwargs: Any) -> Tensor:
    out: Tensor = attention(q, k, v, normalizer="entmax15", backend="triton", **kwargs)
    return out


class Block(nn.Module):
    """A projection, attention, a projection: ``[B, N, C]`` to the same."""

    def __init__(self, dim: int = 32, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        out: Tensor = self.proj(run(q, k, v).transpose(1, 2).flatten(2))
        return out


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"alphas": True},
        {"key_mask": True},
        {"lengths": [12, 12, 6]},
        {"causal": True},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_opcheck(options: dict[str, Any]) -> None:
    q, k, v = qkv(1, 2, 30, 16)
    alphas = torch.tensor([1.3, 1.6], device=DEVICE, requires_grad=True) if "alphas" in options else None
    key_mask = (torch.arange(30, device=DEVICE) < 21).to(torch.uint8)[None] if "key_mask" in options else None
    args = (q, k, v, 1.5, alphas, key_mask, options.get("lengths"), options.get("causal", False), 0.25)
    torch.library.opcheck(entmax_attention, args)


@pytest.mark.slow
def test_compiles_to_one_graph() -> None:
    block = Block().to(DEVICE)
    x = torch.randn(2, 20, 32, device=DEVICE, requires_grad=True)
    eager = torch.autograd.grad(block(x).square().sum(), x)[0]
    compiled = torch.compile(block, fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(x).square().sum(), x)[0], eager, atol=1e-4, rtol=1e-4)


def test_checkpointing_gives_the_same_gradients() -> None:
    block = Block().to(DEVICE)
    x = torch.randn(2, 20, 32, device=DEVICE, requires_grad=True)
    plain = torch.autograd.grad(block(x).sum(), x)[0]
    assert torch.equal(torch.autograd.grad(checkpoint(block, x, use_reentrant=False).sum(), x)[0], plain)


def test_fully_sharded(tmp_path: Path) -> None:
    backend = "nccl" if DEVICE == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        block = Block().to(DEVICE)
        x = torch.randn(2, 20, 32, device=DEVICE)
        plain = block(x).detach()
        mesh = dist.device_mesh.init_device_mesh(DEVICE, (1,))
        fully_shard(block, mesh=mesh)
        out = block(x)
        out.sum().backward()
        torch.testing.assert_close(out.detach(), plain)
        assert all(p.grad is not None for p in block.parameters())
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_what_is_kept_grows_with_the_rows_not_with_their_square() -> None:
    """Besides its inputs, a call keeps the output and one float per row."""
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    q, k, v = qkv(1, 2, 200, 16)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        out = run(q, k, v)
    inputs = {t.data_ptr() for t in (q, k, v)}
    extra = sum(size for pointer, size in kept.items() if pointer not in inputs)
    assert extra == out.numel() * 4 + 2 * 200 * 4


def test_views_of_a_projection_are_read_in_place_and_heads_merge_without_a_copy() -> None:
    q, k, v = qkv(2, 2, 20, 16)
    base = q.untyped_storage().data_ptr()
    kept = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        out = run(q, k, v)
    assert not any(t.is_contiguous() for t in (q, k, v))
    assert sum(t.untyped_storage().data_ptr() == base for t in kept) == 3
    assert out.transpose(1, 2).flatten(2).untyped_storage().data_ptr() == out.untyped_storage().data_ptr()


def test_a_gradient_of_any_layout() -> None:
    q, k, v = qkv(1, 2, 20, 16)
    out = run(q, k, v)
    expanded = torch.autograd.grad(out.sum(), (q, k, v), retain_graph=True)
    dense = torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
    assert all(torch.equal(a, b) for a, b in zip(expanded, dense, strict=True))


def test_autocast_casts_as_sdpa_does() -> None:
    q, k, v = qkv(1, 2, 20, 16)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        assert run(q, k, v).dtype == torch.bfloat16
