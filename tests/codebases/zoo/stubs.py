"""Attention functions of packages that are not installed, by their names and arguments; they compute on the CPU.

As the real ones they show nothing of what they compute to torch: no product and no softmax is called. xformers'
raises, as the real one does on a CPU.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from typing import Any

import torch
from torch import Tensor


def _kernel(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    """q: [..., N, D], k and v: [..., S, D], as sums of elementwise products and powers."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = scale * (q[..., :, None, :] * k[..., None, :, :]).sum(-1)
    powers = torch.exp(scores - scores.amax(-1, keepdim=True))
    return ((powers / powers.sum(-1, keepdim=True))[..., None] * v[..., None, :, :]).sum(-2)


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
) -> Tensor:
    """[B, N, H, D] each."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return _kernel(q, k, v, softmax_scale).transpose(1, 2)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
) -> Tensor:
    """[total, H, D] each, sequences one after the other."""
    outs = []
    for i in range(len(cu_seqlens_q) - 1):
        rows, keys = (slice(int(c[i]), int(c[i + 1])) for c in (cu_seqlens_q, cu_seqlens_k))
        outs.append(flash_attn_func(q[rows][None], k[keys][None], v[keys][None], 0.0, softmax_scale)[0])
    return torch.cat(outs)


def sageattn(q: Tensor, k: Tensor, v: Tensor, tensor_layout: str = "HND", sm_scale: float | None = None) -> Tensor:
    """[B, H, N, D] each."""
    return _kernel(q, k, v, sm_scale)


def na2d_qk(query: Tensor, key: Tensor, kernel_size: int) -> Any:
    """[B, heads, H, W, D] each -> [B, heads, H, W, neighbours]; here the neighbourhood is the whole grid."""
    return (query.flatten(2, 3)[:, :, :, None] * key.flatten(2, 3)[:, :, None]).sum(-1).unflatten(2, query.shape[2:4])


def na2d_av(attn: Tensor, value: Tensor, kernel_size: int) -> Tensor:
    """[B, heads, H, W, neighbours] and values [B, heads, H, W, D] -> [B, heads, H, W, D]."""
    return (attn[..., None] * value.flatten(2, 3)[:, :, None, None]).sum(-2)


def memory_efficient_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_bias: Any = None, p: float = 0.0, scale: float | None = None
) -> Tensor:
    """[B, N, H, D] each; what the real one raises without a GPU."""
    raise NotImplementedError("No operator found for `memory_efficient_attention_forward` with inputs on the CPU")


class SeqInfo:
    """Starts of sequences that lie one after the other, as xformers keeps them."""

    def __init__(self, lengths: list[int]) -> None:
        self.seqstart_py = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
        self.seqstart = torch.tensor(self.seqstart_py, dtype=torch.int32)
        self.max_seqlen, self.min_seqlen = max(lengths), min(lengths)


class BlockDiagonalMask:
    """Queries of a sequence see the keys of theirs."""

    def __init__(self, q_lengths: list[int], k_lengths: list[int] | None = None) -> None:
        self.q_seqinfo, self.k_seqinfo = SeqInfo(q_lengths), SeqInfo(k_lengths or q_lengths)
        self._batch_sizes: list[int] | None = None

    def materialize(self, shape: tuple[int, ...], dtype: Any = torch.float32, device: Any = "cpu") -> Tensor:
        mask = torch.full(shape[-2:], float("-inf"), dtype=dtype, device=device)
        starts = (self.q_seqinfo.seqstart_py, self.k_seqinfo.seqstart_py)
        for q0, q1, k0, k1 in zip(starts[0], starts[0][1:], starts[1], starts[1][1:], strict=False):
            mask[q0:q1, k0:k1] = 0.0
        return mask.expand(shape)


class LowerTriangularMask:
    """A query sees the keys up to its own place."""

    def materialize(self, shape: tuple[int, ...], dtype: Any = torch.float32, device: Any = "cpu") -> Tensor:
        return torch.full(shape, float("-inf"), dtype=dtype, device=device).triu(1)


_HOMES: dict[str, tuple[Any, ...]] = {
    "flash_attn": (flash_attn_func, flash_attn_varlen_func),
    "flash_attn.flash_attn_interface": (flash_attn_func, flash_attn_varlen_func),
    "sageattention": (sageattn,),
    "sageattention.core": (sageattn,),
    "natten": (),
    "natten.functional": (na2d_qk, na2d_av),
    "xformers": (),
    "xformers.ops": (memory_efficient_attention, LowerTriangularMask),
    "xformers.ops.fmha": (memory_efficient_attention,),
    "xformers.ops.fmha.attn_bias": (BlockDiagonalMask, LowerTriangularMask),
}


def _modules() -> dict[str, types.ModuleType]:
    modules = {name: types.ModuleType(name) for name in _HOMES}
    for name, members in _HOMES.items():
        modules[name].__spec__ = ModuleSpec(name, None)  # importlib.util.find_spec asks for one
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, modules[name])
        for member in members:
            member.__module__ = name  # the last home is where it is defined, as in the packages
            setattr(modules[name], member.__name__, member)
    return modules


MODULES = _modules()


@contextmanager
def installed() -> Iterator[None]:
    """Within this context the packages can be imported."""
    before = {name: sys.modules.get(name) for name in MODULES}
    sys.modules.update(MODULES)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
