"""Drawn cases of `attention` and of the normalizers, over everything that they take, against the entmax package."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import entmax as peer
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

import attn_plugins
from attn_plugins.functional import EntmaxAlpha, entmax

INF = float("inf")
COUNTS = [500, pytest.param(5000, marks=pytest.mark.nightly)]
# What a result of this type is rounded to, twice over; scores are computed in float32 or better.
EPSILON = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
LAYOUTS = ("contiguous", "heads last", "every other", "broadcast", "offset", "reversed storage")
MASKS = ("none", "none", "bool", "float", "float with -inf", "causal", "keys", "head", "empty rows")


def drawn(count: int, case: st.SearchStrategy[Any], check: Callable[[Any], str], say: Callable[[str], None]) -> None:
    """Check `count` drawn cases and say how many of each kind there were."""
    kinds: Counter[str] = Counter()

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(case)
    def each(one: Any) -> None:
        kinds[check(one)] += 1

    each()
    assert kinds.total() >= count
    say(f"{kinds.total()} drawn cases, 0 wrong: {dict(kinds.most_common())}")


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values in other strides."""
    if layout == "heads last" and x.dim() >= 3:
        return x.transpose(-3, -2).contiguous().transpose(-3, -2)
    if layout == "every other":
        return torch.stack([x, torch.full_like(x, float("nan"))], -1).flatten(-2)[..., ::2]
    if layout == "offset":
        return torch.cat([x.new_full((1,), float("nan")), x.flatten()])[1:].view(x.shape)
    if layout == "reversed storage":
        return x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim())))
    if layout == "broadcast" and x.dim() >= 2:
        return x[:1].expand(x.shape)
    return x.contiguous()


@dataclass(frozen=True)
class Attention:
    """One call of `attention`."""

    seed: int
    lead: tuple[int, ...]
    queries: int
    keys: int
    dim: int
    value_dim: int
    groups: int
    alpha: float
    learned: bool
    mask: str
    scale: float | None
    sharpness: float
    dtype: torch.dtype
    layout: tuple[str, str, str]
    backend: str
    gradient: bool


ATTENTION = st.builds(
    Attention,
    seed=st.integers(0, 2**31),
    lead=st.sampled_from([(1, 1), (2, 3), (1, 4), (3, 2), (2, 2, 2), (3,), ()]),
    queries=st.integers(1, 40),
    keys=st.integers(1, 70),
    dim=st.integers(1, 24),
    value_dim=st.integers(1, 24),
    groups=st.sampled_from([1, 1, 1, 2]),
    alpha=st.sampled_from([1.0, 1.5, 2.0, 1.5, 2.0, 1.1, 1.33, 1.9]),
    learned=st.booleans(),
    mask=st.sampled_from(MASKS),
    scale=st.sampled_from([None, None, 0.0, 0.3, 2.0, -1.0]),
    sharpness=st.sampled_from([0.01, 1.0, 10.0]),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16]),
    layout=st.tuples(*[st.sampled_from(LAYOUTS)] * 3),
    backend=st.sampled_from(["auto", "auto", "reference"]),
    gradient=st.booleans(),
)


def masked(case: Attention) -> tuple[dict[str, Any], Tensor]:
    """The arguments, and what they add to the scores."""
    full = (*case.lead, case.queries, case.keys)
    zero = torch.zeros(full, dtype=torch.float64)
    noise = randn(case.seed + 3, *full)
    keep = noise > -0.5
    if case.mask in ("bool", "empty rows"):
        keep[..., 0] = True
        if case.mask == "empty rows":
            keep[..., ::2, :] = False
        return {"attn_mask": keep}, zero.masked_fill(~keep, -INF)
    if case.mask == "causal":
        return {"is_causal": True}, zero + torch.full((case.queries, case.keys), -INF, dtype=torch.float64).triu(1)
    if case.mask == "none":
        return {}, zero
    bias = {
        "float": noise,
        "float with -inf": noise.masked_fill(~keep, -INF).index_fill(-1, torch.tensor([0]), 0.0),
        "keys": noise[..., :1, :],
        "head": noise[(0,) * max(len(case.lead) - 1, 0)],
    }[case.mask].to(case.dtype)
    return {"attn_mask": bias}, zero + bias.double()


def weights(scores: Tensor, alpha: float) -> Tensor:
    """Rows of the entmax package; of rows without a key nothing."""
    empty = (scores == -INF).all(-1, keepdim=True)
    scores = scores.masked_fill(empty, 0.0)
    p = scores.softmax(-1) if alpha == 1 else peer.entmax_bisect(scores, alpha, dim=-1, n_iter=70)
    return p.masked_fill(empty, 0.0)


def check_attention(case: Attention) -> str:
    groups = case.groups if len(case.lead) >= 1 else 1
    kv_lead = case.lead if groups == 1 else (*case.lead[:-1], case.lead[-1])
    lead = case.lead if groups == 1 else (*case.lead[:-1], case.lead[-1] * groups)
    case_full = Attention(**{**vars(case), "lead": lead})
    q = laid_out(randn(case.seed, *lead, case.queries, case.dim).mul(case.sharpness).to(case.dtype), case.layout[0])
    k = laid_out(randn(case.seed + 1, *kv_lead, case.keys, case.dim).to(case.dtype), case.layout[1])
    v = laid_out(randn(case.seed + 2, *kv_lead, case.keys, case.value_dim).to(case.dtype), case.layout[2])
    q, k, v = (x.requires_grad_(case.gradient) for x in (q.detach(), k.detach(), v.detach()))
    arguments, bias = masked(case_full)
    normalizer: Any = f"entmax:alpha={case.alpha}" if case.alpha != 1 else "softmax"
    heads = lead[-1] if lead else 1
    if case.learned and 1.05 < case.alpha < 1.95 and lead:
        normalizer = EntmaxAlpha(heads, init=case.alpha)
    out = attn_plugins.attention(
        q, k, v, normalizer=normalizer, scale=case.scale, enable_gqa=groups > 1, backend=case.backend, **arguments
    )
    q64, k64, v64 = (x.detach().double().requires_grad_(case.gradient) for x in (q, k, v))
    rk, rv = (x.repeat_interleave(groups, -3) if groups > 1 else x for x in (k64, v64))
    scores = q64 @ rk.transpose(-2, -1) * (case.dim**-0.5 if case.scale is None else case.scale)
    alpha = float(normalizer.alpha.detach()[0]) if isinstance(normalizer, EntmaxAlpha) else case.alpha
    wanted = weights(scores + bias, alpha) @ rv
    assert out.shape == wanted.shape and out.dtype == case.dtype
    # A score is rounded by its own size, and moves the weights by that much at most, for every key.
    size = float(scores.detach().abs().max()) if scores.numel() else 0.0
    room = float(v64.detach().abs().max()) * (EPSILON[case.dtype] + 3e-7 * (1 + size) * case.keys**0.5)
    if case.dtype == torch.float64:
        room = float(v64.detach().abs().max()) * 1e-9 * (1 + size)
    elif case.dtype in (torch.float16, torch.bfloat16):
        room *= 1 + size  # scores are of that type too
    assert (out.double() - wanted).abs().max() <= room, float((out.double() - wanted).abs().max()) / room
    if case.gradient and case.alpha <= 1.5 and case.dtype in (torch.float32, torch.float64):
        grad = randn(case.seed + 4, *out.shape)
        found = torch.autograd.grad(out, (q, k, v), grad.to(case.dtype))
        right = torch.autograd.grad(wanted, (q64, k64, v64), grad)
        for a, b in zip(found, right, strict=True):
            assert (a.double() - b).abs().max() <= (1 + b.abs().max()) * (1 + size) * 2e-3
    return f"{case.mask}, {str(case.dtype).removeprefix('torch.')}"


@pytest.mark.slow
@pytest.mark.parametrize("count", COUNTS)
def test_attention(count: int, say: Callable[[str], None]) -> None:
    drawn(count, ATTENTION, check_attention, say)


@dataclass(frozen=True)
class Rows:
    """One call of a normalizer."""

    seed: int
    shape: tuple[int, ...]
    dim: int
    alpha: float
    spread: float
    shift: float
    ties: bool
    share: float
    dtype: torch.dtype
    layout: str


ROWS = st.builds(
    Rows,
    seed=st.integers(0, 2**31),
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple)
    | st.tuples(st.integers(1, 4), st.integers(1, 400)),
    dim=st.integers(0, 3),
    alpha=st.sampled_from([1.0, 1.5, 2.0, 1.05, 1.2, 1.75, 2.5]) | st.floats(1.02, 3.0),
    spread=st.sampled_from([0.0, 1e-3, 1.0, 10.0, 1e3]),
    shift=st.sampled_from([0.0, 100.0, -1e4]),
    ties=st.booleans(),
    share=st.sampled_from([0.0, 0.0, 0.3, 0.9, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16]),
    layout=st.sampled_from(LAYOUTS),
)


def check_rows(case: Rows) -> str:
    dim = case.dim % len(case.shape)
    z = randn(case.seed, *case.shape) * case.spread
    z = ((z * 4).round() / 4 if case.ties else z) + case.shift
    z = z.masked_fill(torch.rand(z.shape, generator=torch.Generator().manual_seed(case.seed)) < case.share, -INF)
    z = laid_out(z.to(case.dtype), case.layout)
    p = attn_plugins.functional.softmax(z, dim) if case.alpha == 1 else entmax(z, case.alpha, dim)
    assert p.shape == z.shape and p.dtype == case.dtype and (p >= 0).all()
    expected = weights(z.double().movedim(dim, -1), case.alpha).movedim(-1, dim)
    # A score is rounded by its own size; d^(1 / (alpha - 1)) turns that into more at the edge of the support.
    size = 1 + float(z.double().masked_fill(z == -INF, 0).abs().max())
    rounded = (2e-16 if case.dtype == torch.float64 else 1e-7) * size * max(case.alpha - 1, 1)
    room = EPSILON[case.dtype] + 8 * rounded ** min(1.0, 1 / max(case.alpha - 1, 1e-9))
    assert (p.double() - expected).abs().max() <= room, float((p.double() - expected).abs().max()) / room
    assert (p[z == -INF] == 0).all()
    kind = "softmax" if case.alpha == 1 else "sparsemax" if case.alpha == 2 else "entmax"
    return f"{kind}, {str(case.dtype).removeprefix('torch.')}"


@pytest.mark.slow
@pytest.mark.parametrize("count", COUNTS)
def test_normalizers(count: int, say: Callable[[str], None]) -> None:
    drawn(count, ROWS, check_rows, say)
