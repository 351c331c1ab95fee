"""Device functions shared by the kernels: one row's weights and the search for its threshold.

A row of scaled scores ``x = (alpha - 1) * scale * q.k`` has weights ``p_j = s_j^power`` with ``s_j = [x_j - tau]_+``
and ``power = 1 / (alpha - 1)``; tau makes them sum to one. The search is Newton's method on the *norm*

    phi(tau) = (sum_j s_j^power)^(1/power) - 1

rather than on the sum: phi is convex and decreasing for alpha <= 2, and linear where all s_j are equal, so the steps
are exact there, never pass the root from below, and are always at least as long as Newton's on the sum (for power 2:
2 * |s| / (|s| + 1) times as long). For power 1 this is Michelot's projection on the simplex.
"""

import triton
import triton.language as tl

__all__ = [
    "ENTMAX15",
    "GENERAL",
    "SPARSEMAX",
    "carry",
    "excess",
    "load_rows",
    "locate",
    "mass",
    "newton",
    "refine",
    "slope",
    "sums",
    "visible",
]

SPARSEMAX: tl.constexpr = tl.constexpr(0)
ENTMAX15: tl.constexpr = tl.constexpr(1)
GENERAL: tl.constexpr = tl.constexpr(2)


@triton.jit
def locate(tiles, n_tiles, n_queries, n_keys, n_rows, heads, BLOCK: tl.constexpr, PACKED: tl.constexpr):
    """Which sequence, head and block of BLOCK of its ``n_rows`` rows this program works on.

    Packed programs read ``tiles: [n_tiles, 3]`` (start, length, block), longest sequences first.

    Returns:
        ``(batch, head, start, n_queries, n_keys, block)``; ``start`` is the sequence's first token.
    """
    program = tl.program_id(0)
    start = tl.zeros((), tl.int64)
    if PACKED:
        instances = tl.num_programs(0) // n_tiles
        tile = tiles + program // instances * 3
        instance = program % instances
        start += tl.load(tile)
        n_queries = tl.load(tile + 1)
        n_keys = n_queries
        block = tl.load(tile + 2)
    else:
        n_blocks = tl.cdiv(n_rows, BLOCK)
        block = program % n_blocks
        instance = program // n_blocks
    head = instance % heads
    batch = (instance // heads).to(tl.int64)
    return batch, head, start, n_queries, n_keys, block


# The interpreter has no bfloat16 product (it multiplies the bits as integers): there, operands are widened first.
_INTERPRETED: tl.constexpr = tl.constexpr(not isinstance(locate, triton.runtime.JITFunction))


@triton.jit
def load_rows(base, at, stride, count, BOUND: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Rows ``at: [M]`` of a matrix as ``[M, BLOCK]``; zeros past ``count`` rows (if BOUND) and WIDTH columns."""
    dims = tl.arange(0, BLOCK)
    pointers = base + at[:, None] * stride + dims[None, :]
    if BOUND:
        return tl.load(pointers, mask=(at < count)[:, None] & (dims < WIDTH)[None, :], other=0.0)
    elif WIDTH == BLOCK:
        return tl.load(pointers)
    else:
        return tl.load(pointers, mask=(dims < WIDTH)[None, :], other=0.0)


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    """``a b`` in float32."""
    if _INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def add_product(acc, a, b, PRECISION: tl.constexpr):
    """``acc + a b`` in float32."""
    if _INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def visible(x, rows, cols, n_keys, key_mask, BOUND: tl.constexpr, CAUSAL: tl.constexpr, MASKED: tl.constexpr):
    """Scores ``x: [M, N]`` with -inf where query ``rows: [M, 1]`` does not see key ``cols: [1, N]``."""
    if BOUND:
        x = tl.where(cols < n_keys, x, float("-inf"))
    if CAUSAL:
        x = tl.where(cols <= rows, x, float("-inf"))
    if MASKED:
        x = tl.where(tl.load(key_mask + cols, mask=cols < n_keys, other=0) != 0, x, float("-inf"))
    return x


@triton.jit
def excess(x, tau):
    """``[x - tau]_+``; a NaN stays one, so that it reaches the output."""
    return tl.maximum(x - tau, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def slope(s, power, FAMILY: tl.constexpr):
    """``s^(power - 1)`` on the support, zero elsewhere: what a key's weight gains per unit of score."""
    if FAMILY == SPARSEMAX:
        return tl.where(s == 0, 0.0, 1.0)
    elif FAMILY == ENTMAX15:
        return s
    else:
        return tl.where(s == 0, 0.0, tl.exp2((power - 1) * tl.log2(tl.where(s == 0, 1.0, s))))


@triton.jit
def mass(s, power, FAMILY: tl.constexpr):
    """``s^power``: the weight of a key."""
    if FAMILY == SPARSEMAX:
        return s
    else:
        return s * slope(s, power, FAMILY)


@triton.jit
def sums(x, tau, power, FAMILY: tl.constexpr):
    """``(sum_j s_j^power, sum_j s_j^(power - 1))`` of the scores ``x: [M, N]`` at ``tau: [M]``: two ``[M]``."""
    s = excess(x, tau[:, None])
    return tl.sum(mass(s, power, FAMILY), 1), tl.sum(slope(s, power, FAMILY), 1)


@triton.jit
def norm_of(total, power, FAMILY: tl.constexpr):
    """``total^(1 / power)``; kept away from zero, where a row has no keys at all."""
    if FAMILY == SPARSEMAX:
        norm = total
    elif FAMILY == ENTMAX15:
        norm = tl.sqrt(total)
    else:
        norm = tl.exp2(tl.log2(tl.maximum(total, 1e-30)) / power)
    return tl.maximum(norm, 1e-30)


@triton.jit
def newton(total, steepness, power, FAMILY: tl.constexpr):
    """Newton's step on phi, from ``total = sum s^power`` and ``steepness = sum s^(power - 1)``: ``[M]``."""
    norm = norm_of(total, power, FAMILY)
    return (norm - 1) * (total / norm) / tl.maximum(steepness, 1e-30)


@triton.jit
def carry(total, steepness, step, power, FAMILY: tl.constexpr):
    """Lower bounds of both sums after tau has grown by ``step``, without seeing the keys again.

    phi lies above its tangent; following the tangent scales the norm by ``1 - step * steepness / total``.
    """
    shrink = tl.maximum(1 - step * (steepness / tl.maximum(total, 1e-30)), 0.0)
    if FAMILY == SPARSEMAX:
        return total * shrink, tl.where(shrink == 0, 0.0, steepness)
    elif FAMILY == ENTMAX15:
        return total * shrink * shrink, steepness * shrink
    else:
        return total * mass(shrink, power, FAMILY), steepness * slope(shrink, power, FAMILY)


@triton.jit
def refine(tau, top, total, steepness, tau0, norm0, inverse0, power, FAMILY: tl.constexpr):
    """The next tau from this evaluation and the previous one, and how far off it may be.

    Newton's step uses the tangent here. With the previous evaluation too, the cubic that has both values and both
    slopes (inverse Hermite interpolation of tau as a function of phi) is read where phi is zero. It is taken when it
    lies beyond Newton's point, a lower bound of the root, and below the row's maximum.

    Args:
        tau, top, total, steepness: ``[M]``, the evaluation at ``tau``; ``top`` is the row's maximum.
        tau0, norm0, inverse0: ``[M]``, the previous evaluation; ``norm0 = 0`` when there is none.

    Returns:
        ``(next tau, norm, inverse slope, error)``: error bounds ``|sum p - 1|`` after the step by what the two
        estimates differ by.
    """
    norm = norm_of(total, power, FAMILY)
    inverse = -(total / norm) / tl.maximum(steepness, 1e-30)
    first = tau - (norm - 1) * inverse
    rise = norm - norm0
    usable = (norm0 > 0) & (tl.abs(rise) > 1e-4)
    u = (1 - norm0) / tl.where(usable, rise, 1.0)
    v = 1 - u
    # Relative to tau: where u is large its weights cancel, and so would the digits of tau itself.
    second = tau + v * v * (1 + 2 * u) * (tau0 - tau) + u * v * rise * (v * inverse0 - u * inverse)
    gap = tl.where(usable, tl.abs(second - first), 1e30)
    best = tl.where(usable & (second > first) & (second < top), second, first)
    error = tl.minimum(power * steepness * gap, tl.abs(total - 1))
    # At the resolution of float32 there is nothing left to gain; a row without keys has no root.
    error = tl.where((tl.abs(best - tau) <= 2.4e-7 * tl.abs(tau)) | (total == 0), 0.0, error)
    return best, norm, inverse, error
