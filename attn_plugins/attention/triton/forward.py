"""The forward kernel: threshold and output of one block of queries."""

import triton
import triton.language as tl

from .rows import (
    ENTMAX15,
    GENERAL,
    add_product,
    carry,
    excess,
    load_rows,
    locate,
    mass,
    newton,
    product,
    refine,
    sums,
    visible,
)

__all__ = ["MAX_EVALUATIONS", "forward_kernel"]

MAX_EVALUATIONS: tl.constexpr = tl.constexpr(32)


@triton.jit
def _scores(
    query, k, rows, first, stride, scale, n_keys, key_mask,
    BOUND: tl.constexpr, CAUSAL: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Scaled scores of ``query: [M, D]`` with the SIZE keys from ``first`` on: ``[M, SIZE]``, -inf where unseen."""
    cols = first + tl.arange(0, SIZE)
    keys = load_rows(k, cols, stride, n_keys, BOUND, WIDTH, BLOCK)
    x = product(query, tl.trans(keys), PRECISION) * scale
    return visible(x, rows[:, None], cols[None, :], n_keys, key_mask, BOUND, CAUSAL, MASKED)


@triton.jit
def forward_kernel(
    q, k, v, out, taus, alphas, key_mask, tiles,
    stride_qb, stride_qh, stride_qn,
    stride_kb, stride_kh, stride_kn,
    stride_vb, stride_vh, stride_vn,
    stride_ob, stride_oh, stride_on,
    scale, tolerance, tokens, n_keys, heads, n_tiles,
    FAMILY: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    CAUSAL: tl.constexpr, MASKED: tl.constexpr, PACKED: tl.constexpr, PRECISION: tl.constexpr,
    LENGTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """``out = entmax(scale * q k^T) v`` and the threshold of every row.

    A block of queries keeps the scores of its last 1..TILE keys on chip. Where rows are longer (up to LENGTH), the
    keys before those come in full blocks of BLOCK_N, whose scores are computed again in every pass; only the tile
    on chip needs a bound check. Passes: one that finds a close lower bound of tau from running tangents (long rows
    only), a few evaluations of Newton's method, and the output.

    Args:
        q, k, v, out: ``[B, H, N, D]``, ``[B, H, S, D]``, ``[B, H, S, Dv]``, ``[B, H, N, Dv]``; last stride 1.
        taus: ``[B, H, N]`` float32, contiguous.
        alphas: ``[H]`` float32, read if FAMILY is GENERAL.
        key_mask: ``[B, S]`` uint8, contiguous, read if MASKED.
        tiles: ``[n_tiles, 3]`` int32, read if PACKED, as in ``locate``.
        scale: factor on the scores, times alpha - 1 unless FAMILY is GENERAL.
        tolerance: largest error of ``sum p`` at which the search ends.
        tokens, n_keys: N and S.
    """
    STREAM: tl.constexpr = TILE < LENGTH
    batch, head, start, n_queries, n_keys, block = locate(
        tiles, n_tiles, tokens, n_keys, tokens, heads, BLOCK_M, PACKED
    )
    q += batch * stride_qb + head * stride_qh + start * stride_qn
    k += batch * stride_kb + head * stride_kh + start * stride_kn
    v += batch * stride_vb + head * stride_vh + start * stride_vn
    out += batch * stride_ob + head * stride_oh + start * stride_on
    taus += (batch * heads + head) * tokens + start
    key_mask += batch * n_keys
    power = 2.0 if FAMILY == ENTMAX15 else 1.0
    if FAMILY == GENERAL:
        alpha = tl.load(alphas + head)
        power = 1 / (alpha - 1)
        scale *= alpha - 1

    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    query = load_rows(q, rows, stride_qn, n_queries, True, HEAD_DIM, BLOCK_D)
    last = n_keys
    if CAUSAL:
        last = tl.minimum(n_keys, (block + 1) * BLOCK_M)
    tail = 0
    if STREAM:
        tail = tl.maximum(tl.cdiv(last - TILE, BLOCK_N), 0) * BLOCK_N
    x = _scores(query, k, rows, tail, stride_kn, scale, n_keys, key_mask,
                True, CAUSAL, MASKED, PRECISION, HEAD_DIM, BLOCK_D, TILE)  # fmt: skip
    top = tl.max(x, 1)
    tau = tl.where(top == float("-inf"), -1e30, top - 1)

    if STREAM:
        total, steepness = sums(x, tau, power, FAMILY)
        for first in range(0, tail, BLOCK_N):
            y = _scores(query, k, rows, first, stride_kn, scale, n_keys, key_mask,
                        False, CAUSAL, MASKED, PRECISION, HEAD_DIM, BLOCK_D, BLOCK_N)  # fmt: skip
            top = tl.maximum(top, tl.max(y, 1))
            climbed = tl.maximum(tau + tl.maximum(newton(total, steepness, power, FAMILY), 0.0), top - 1)
            total, steepness = carry(total, steepness, climbed - tau, power, FAMILY)
            tau = climbed
            more, steeper = sums(y, tau, power, FAMILY)
            total += more
            steepness += steeper
        tau += tl.maximum(newton(total, steepness, power, FAMILY), 0.0)

    tau0, norm0, inverse0 = tau, tl.zeros_like(tau), tl.zeros_like(tau)
    evaluations = 0
    searching = True
    while searching:
        total, steepness = sums(x, tau, power, FAMILY)
        if STREAM:
            for first in range(0, tail, BLOCK_N):
                y = _scores(query, k, rows, first, stride_kn, scale, n_keys, key_mask,
                            False, CAUSAL, MASKED, PRECISION, HEAD_DIM, BLOCK_D, BLOCK_N)  # fmt: skip
                more, steeper = sums(y, tau, power, FAMILY)
                total += more
                steepness += steeper
        better, norm, inverse, error = refine(tau, top, total, steepness, tau0, norm0, inverse0, power, FAMILY)
        tau0, norm0, inverse0, tau = tau, norm, inverse, better
        evaluations += 1
        searching = (tl.max(error, 0) > tolerance) & (evaluations < MAX_EVALUATIONS)

    p = mass(excess(x, tau[:, None]), power, FAMILY)
    total = tl.sum(p, 1)
    values = load_rows(v, tail + tl.arange(0, TILE), stride_vn, n_keys, True, VALUE_DIM, BLOCK_V)
    acc = product(p.to(values.dtype), values, PRECISION)
    if STREAM:
        for first in range(0, tail, BLOCK_N):
            y = _scores(query, k, rows, first, stride_kn, scale, n_keys, key_mask,
                        False, CAUSAL, MASKED, PRECISION, HEAD_DIM, BLOCK_D, BLOCK_N)  # fmt: skip
            weights = mass(excess(y, tau[:, None]), power, FAMILY)
            total += tl.sum(weights, 1)
            block_v = load_rows(v, first + tl.arange(0, BLOCK_N), stride_vn, n_keys, False, VALUE_DIM, BLOCK_V)
            acc = add_product(acc, weights.to(block_v.dtype), block_v, PRECISION)

    empty = top == float("-inf")  # every key of the row is masked: output and gradients are zero
    acc /= tl.where(empty, 1.0, total)[:, None]
    dims = tl.arange(0, BLOCK_V)
    tl.store(
        out + rows[:, None] * stride_on + dims[None, :],
        acc.to(out.dtype.element_ty),
        mask=(rows < n_queries)[:, None] & (dims < VALUE_DIM)[None, :],
    )
    tl.store(taus + rows, tl.where(empty, float("inf"), tau), mask=rows < n_queries)
