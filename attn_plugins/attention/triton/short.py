"""The backward kernel of short rows: a whole head in one program."""

import triton
import triton.language as tl

from .rows import ENTMAX15, GENERAL, add_product, excess, load_rows, locate, mass, product, slope

__all__ = ["backward_short_kernel"]


@triton.jit
def backward_short_kernel(
    q, k, v, dout, taus, dq, dk, dv, alphas, key_mask, tiles,
    stride_qb, stride_qh, stride_qn,
    stride_kb, stride_kh, stride_kn,
    stride_vb, stride_vh, stride_vn,
    stride_gb, stride_gh, stride_gn,
    stride_dqb, stride_dqh, stride_dqn,
    stride_dkb, stride_dkh, stride_dkn,
    stride_dvb, stride_dvh, stride_dvn,
    scale, factor, tokens, n_keys, heads, n_tiles,
    FAMILY: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    CAUSAL: tl.constexpr, MASKED: tl.constexpr, PACKED: tl.constexpr, PRECISION: tl.constexpr,
    LENGTH: tl.constexpr, BLOCK_M: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """dQ, dK and dV of one head of one sequence with up to TILE keys.

    Keys, values and both accumulators stay on chip while blocks of queries pass, so scores are computed once (five
    matrix products, not seven) and delta comes exactly from the tile. Tiles are transposed, ``[keys, queries]``.
    Arguments as in ``backward``; one program a sequence and head.
    """
    batch, head, start, n_queries, n_keys, _ = locate(tiles, n_tiles, tokens, n_keys, 1, heads, 1, PACKED)
    q += batch * stride_qb + head * stride_qh + start * stride_qn
    k += batch * stride_kb + head * stride_kh + start * stride_kn
    v += batch * stride_vb + head * stride_vh + start * stride_vn
    dout += batch * stride_gb + head * stride_gh + start * stride_gn
    dq += batch * stride_dqb + head * stride_dqh + start * stride_dqn
    dk += batch * stride_dkb + head * stride_dkh + start * stride_dkn
    dv += batch * stride_dvb + head * stride_dvh + start * stride_dvn
    row = (batch * heads + head) * tokens + start
    power = 2.0 if FAMILY == ENTMAX15 else 1.0
    if FAMILY == GENERAL:
        alpha = tl.load(alphas + head)
        power = 1 / (alpha - 1)
        scale *= alpha - 1

    cols = tl.arange(0, TILE)
    dims = tl.arange(0, BLOCK_D)
    vdims = tl.arange(0, BLOCK_V)
    keep = cols < n_keys
    seen = keep
    if MASKED:
        seen = keep & (tl.load(key_mask + batch * n_keys + cols, mask=keep, other=0) != 0)
    keys = load_rows(k, cols, stride_kn, n_keys, True, HEAD_DIM, BLOCK_D)
    values = load_rows(v, cols, stride_vn, n_keys, True, VALUE_DIM, BLOCK_V)
    acc_k = tl.zeros([TILE, BLOCK_D], tl.float32)
    acc_v = tl.zeros([TILE, BLOCK_V], tl.float32)
    for first in range(0, n_queries, BLOCK_M):
        rows = first + tl.arange(0, BLOCK_M)
        query = load_rows(q, rows, stride_qn, n_queries, True, HEAD_DIM, BLOCK_D)
        grad = load_rows(dout, rows, stride_gn, n_queries, True, VALUE_DIM, BLOCK_V)
        tau = tl.load(taus + row + rows, mask=rows < n_queries, other=float("inf"))
        x = product(keys, tl.trans(query), PRECISION) * scale
        x = tl.where(seen[:, None], x, float("-inf"))
        if CAUSAL:
            x = tl.where(cols[:, None] <= rows[None, :], x, float("-inf"))
        s = excess(x, tau[None, :])
        u = slope(s, power, FAMILY)
        acc_v = add_product(acc_v, mass(s, power, FAMILY).to(grad.dtype), grad, PRECISION)
        g = product(values, tl.trans(grad), PRECISION)
        total = tl.sum(u, 0)
        delta = tl.sum(u * g, 0) / tl.where(total == 0, 1.0, total)
        ds = (u * (g - delta[None, :])).to(query.dtype)
        acc_k = add_product(acc_k, ds, query, PRECISION)
        turned = product(tl.trans(keys), ds, PRECISION) * factor
        tl.store(
            dq + rows[None, :] * stride_dqn + dims[:, None],
            turned.to(dq.dtype.element_ty),
            mask=(rows < n_queries)[None, :] & (dims < HEAD_DIM)[:, None],
        )
    tl.store(
        dk + cols[:, None] * stride_dkn + dims[None, :],
        (acc_k * factor).to(dk.dtype.element_ty),
        mask=keep[:, None] & (dims < HEAD_DIM)[None, :],
    )
    tl.store(
        dv + cols[:, None] * stride_dvn + vdims[None, :],
        acc_v.to(dv.dtype.element_ty),
        mask=keep[:, None] & (vdims < VALUE_DIM)[None, :],
    )
