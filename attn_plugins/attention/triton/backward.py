"""The backward kernels of the general case: queries' gradients, then keys' and values'.

With s, p and u = s^(power - 1) as in ``rows``, g_ij = dO_i . v_j and delta_i = sum_j u_ij g_ij / sum_j u_ij:

    dS_ij = u_ij (g_ij - delta_i)      dQ = scale dS K      dK = scale dS^T Q      dV = p^T dO

Each program owns the rows that it writes, so no order of additions depends on timing. With SKIP, tiles in which no
weight is positive end after their scores.
"""

import triton
import triton.language as tl

from .rows import ENTMAX15, GENERAL, add_product, excess, load_rows, locate, mass, product, slope, visible

__all__ = ["backward_keys_kernel", "backward_queries_kernel"]


@triton.jit
def _accumulate_queries(
    query, grad, shift, tau, acc, base, total, weighted, spread, tilt, k, v, rows, first,
    stride_kn, stride_vn, scale, power, n_keys, key_mask,
    BOUND: tl.constexpr, CAUSAL: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
    FAMILY: tl.constexpr, ALPHA_GRAD: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_N: tl.constexpr, SKIP: tl.constexpr,
):  # fmt: skip
    """Add the BLOCK_N keys from ``first`` on to the sums of ``backward_queries_kernel``."""
    cols = first + tl.arange(0, BLOCK_N)
    keys = load_rows(k, cols, stride_kn, n_keys, BOUND, HEAD_DIM, BLOCK_D)
    values = load_rows(v, cols, stride_vn, n_keys, BOUND, VALUE_DIM, BLOCK_V)
    x = product(query, tl.trans(keys), PRECISION) * scale
    x = visible(x, rows[:, None], cols[None, :], n_keys, key_mask, BOUND, CAUSAL, MASKED)
    s = excess(x, tau[:, None])
    alive = tl.max(tl.max(s, 1), 0) > 0 if SKIP else True
    if alive:
        u = slope(s, power, FAMILY)
        g = product(grad, tl.trans(values), PRECISION) - shift[:, None]
        ug = u * g
        total += tl.sum(u, 1)
        weighted += tl.sum(ug, 1)
        acc = add_product(acc, ug.to(keys.dtype), keys, PRECISION)
        base = add_product(base, u.to(keys.dtype), keys, PRECISION)
        if ALPHA_GRAD:
            w = s * u * (1 - tl.log(tl.where(s == 0, 1.0, s)))
            spread += tl.sum(w, 1)
            tilt += tl.sum(w * g, 1)
    return acc, base, total, weighted, spread, tilt


@triton.jit
def backward_queries_kernel(
    q, k, v, out, dout, taus, deltas, dq, dalphas, alphas, key_mask, tiles,
    stride_qb, stride_qh, stride_qn,
    stride_kb, stride_kh, stride_kn,
    stride_vb, stride_vh, stride_vn,
    stride_ob, stride_oh, stride_on,
    stride_gb, stride_gh, stride_gn,
    stride_dqb, stride_dqh, stride_dqn,
    scale, factor, tokens, n_keys, heads, n_tiles,
    FAMILY: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    CAUSAL: tl.constexpr, MASKED: tl.constexpr, PACKED: tl.constexpr, PRECISION: tl.constexpr,
    ALPHA_GRAD: tl.constexpr,
    LENGTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SKIP: tl.constexpr,
):  # fmt: skip
    """dQ and delta of one block of queries (and each row's share of dL/dalpha), in one pass over the keys.

    delta is known only at the end, so the pass sums ``u (g - shift) k`` and ``u k`` apart. ``shift = dO . O`` is the
    p-weighted mean of g, close to the u-weighted mean delta: what is left to subtract is small, and so is what
    rounding the products to the inputs' precision costs.

    Args:
        q, k, v, out, dout, dq: as in the forward kernel; dout has the shape of out, dq that of q.
        taus, deltas, dalphas: ``[B, H, N]`` float32, contiguous; dalphas is written if ALPHA_GRAD.
        scale: factor on the scores, times alpha - 1 unless FAMILY is GENERAL.
        factor: factor on the scores alone.
        LENGTH: no row is longer; only the choice of blocks depends on it.
    """
    batch, head, start, n_queries, n_keys, block = locate(
        tiles, n_tiles, tokens, n_keys, tokens, heads, BLOCK_M, PACKED
    )
    q += batch * stride_qb + head * stride_qh + start * stride_qn
    k += batch * stride_kb + head * stride_kh + start * stride_kn
    v += batch * stride_vb + head * stride_vh + start * stride_vn
    out += batch * stride_ob + head * stride_oh + start * stride_on
    dout += batch * stride_gb + head * stride_gh + start * stride_gn
    dq += batch * stride_dqb + head * stride_dqh + start * stride_dqn
    row = (batch * heads + head) * tokens + start
    key_mask += batch * n_keys
    power = 2.0 if FAMILY == ENTMAX15 else 1.0
    if FAMILY == GENERAL:
        alpha = tl.load(alphas + head)
        power = 1 / (alpha - 1)
        scale *= alpha - 1

    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = rows < n_queries
    query = load_rows(q, rows, stride_qn, n_queries, True, HEAD_DIM, BLOCK_D)
    grad = load_rows(dout, rows, stride_gn, n_queries, True, VALUE_DIM, BLOCK_V)
    output = load_rows(out, rows, stride_on, n_queries, True, VALUE_DIM, BLOCK_V)
    shift = tl.sum(grad.to(tl.float32) * output.to(tl.float32), 1)
    tau = tl.load(taus + row + rows, mask=inside, other=float("inf"))

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    base = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    weighted = tl.zeros([BLOCK_M], tl.float32)
    spread = tl.zeros([BLOCK_M], tl.float32)
    tilt = tl.zeros([BLOCK_M], tl.float32)
    last = n_keys
    if CAUSAL:
        last = tl.minimum(n_keys, (block + 1) * BLOCK_M)
    whole = last // BLOCK_N * BLOCK_N
    for first in range(0, whole, BLOCK_N):
        acc, base, total, weighted, spread, tilt = _accumulate_queries(
            query, grad, shift, tau, acc, base, total, weighted, spread, tilt, k, v, rows, first,
            stride_kn, stride_vn, scale, power, n_keys, key_mask, False, CAUSAL, MASKED, PRECISION,
            FAMILY, ALPHA_GRAD, HEAD_DIM, VALUE_DIM, BLOCK_D, BLOCK_V, BLOCK_N, SKIP)  # fmt: skip
    if whole < last:
        acc, base, total, weighted, spread, tilt = _accumulate_queries(
            query, grad, shift, tau, acc, base, total, weighted, spread, tilt, k, v, rows, whole,
            stride_kn, stride_vn, scale, power, n_keys, key_mask, True, CAUSAL, MASKED, PRECISION,
            FAMILY, ALPHA_GRAD, HEAD_DIM, VALUE_DIM, BLOCK_D, BLOCK_V, BLOCK_N, SKIP)  # fmt: skip

    rest = weighted / tl.where(total == 0, 1.0, total)
    tl.store(deltas + row + rows, shift + rest, mask=inside)
    if ALPHA_GRAD:
        tl.store(dalphas + row + rows, (tilt - rest * spread) * power * power, mask=inside)
    acc = (acc - rest[:, None] * base) * factor
    dims = tl.arange(0, BLOCK_D)
    tl.store(
        dq + rows[:, None] * stride_dqn + dims[None, :],
        acc.to(dq.dtype.element_ty),
        mask=inside[:, None] & (dims < HEAD_DIM)[None, :],
    )


@triton.jit
def backward_keys_kernel(
    q, k, v, dout, taus, deltas, dk, dv, alphas, key_mask, tiles,
    stride_qb, stride_qh, stride_qn,
    stride_kb, stride_kh, stride_kn,
    stride_vb, stride_vh, stride_vn,
    stride_gb, stride_gh, stride_gn,
    stride_dkb, stride_dkh, stride_dkn,
    stride_dvb, stride_dvh, stride_dvn,
    scale, factor, tokens, n_keys, heads, n_tiles,
    FAMILY: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    CAUSAL: tl.constexpr, MASKED: tl.constexpr, PACKED: tl.constexpr, PRECISION: tl.constexpr,
    LENGTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SKIP: tl.constexpr,
):  # fmt: skip
    """dK and dV of one block of keys, in one pass over the queries. Needs deltas from the queries' kernel.

    Tiles are transposed, ``[keys, queries]``, so that both products take their left operand from registers. Rows
    past the last query have tau = inf, hence no weight; hidden and padded keys are dropped when they are stored.
    """
    batch, head, start, n_queries, n_keys, block = locate(
        tiles, n_tiles, tokens, n_keys, n_keys, heads, BLOCK_N, PACKED
    )
    q += batch * stride_qb + head * stride_qh + start * stride_qn
    k += batch * stride_kb + head * stride_kh + start * stride_kn
    v += batch * stride_vb + head * stride_vh + start * stride_vn
    dout += batch * stride_gb + head * stride_gh + start * stride_gn
    dk += batch * stride_dkb + head * stride_dkh + start * stride_dkn
    dv += batch * stride_dvb + head * stride_dvh + start * stride_dvn
    row = (batch * heads + head) * tokens + start
    power = 2.0 if FAMILY == ENTMAX15 else 1.0
    if FAMILY == GENERAL:
        alpha = tl.load(alphas + head)
        power = 1 / (alpha - 1)
        scale *= alpha - 1

    cols = block * BLOCK_N + tl.arange(0, BLOCK_N)
    keys = load_rows(k, cols, stride_kn, n_keys, True, HEAD_DIM, BLOCK_D)
    values = load_rows(v, cols, stride_vn, n_keys, True, VALUE_DIM, BLOCK_V)
    acc_k = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    acc_v = tl.zeros([BLOCK_N, BLOCK_V], tl.float32)
    begin = 0
    if CAUSAL:
        begin = block * BLOCK_N // BLOCK_M * BLOCK_M
    for first in range(begin, n_queries, BLOCK_M):
        rows = first + tl.arange(0, BLOCK_M)
        inside = rows < n_queries
        query = load_rows(q, rows, stride_qn, n_queries, True, HEAD_DIM, BLOCK_D)
        grad = load_rows(dout, rows, stride_gn, n_queries, True, VALUE_DIM, BLOCK_V)
        tau = tl.load(taus + row + rows, mask=inside, other=float("inf"))
        delta = tl.load(deltas + row + rows, mask=inside, other=0.0)
        x = product(keys, tl.trans(query), PRECISION) * scale
        if CAUSAL:
            x = tl.where(cols[:, None] <= rows[None, :], x, float("-inf"))
        s = excess(x, tau[None, :])
        alive = tl.max(tl.max(s, 1), 0) > 0 if SKIP else True
        if alive:
            u = slope(s, power, FAMILY)
            acc_v = add_product(acc_v, mass(s, power, FAMILY).to(grad.dtype), grad, PRECISION)
            g = product(values, tl.trans(grad), PRECISION)
            ds = u * (g - delta[None, :])
            acc_k = add_product(acc_k, ds.to(query.dtype), query, PRECISION)

    keep = cols < n_keys
    if MASKED:
        seen = tl.load(key_mask + batch * n_keys + cols, mask=keep, other=0) != 0
        acc_k = tl.where(seen[:, None], acc_k, 0.0)
        acc_v = tl.where(seen[:, None], acc_v, 0.0)
    dims = tl.arange(0, BLOCK_D)
    vdims = tl.arange(0, BLOCK_V)
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
