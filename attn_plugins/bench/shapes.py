"""Attention of many shapes, kinds and scores beside torch's softmax kernel, as ratios."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention import attention
from ..functional import EntmaxAlpha
from ..machine import machine
from ..text import columns
from .timing import Clock, in_turns, wall_clock

__all__ = ["Case", "bench_shapes", "cases", "cpu_clock", "read_qkv", "shapes_table"]

TOKENS = (37, 50, 197, 201, 257, 785, 1025, 1370, 2305)
DIMS = (32, 48, 80, 96, 128)
NORMALIZERS = ("sparsemax", "entmax:alpha=1.25", "entmax_alpha")
KINDS = ("masked", "packed", "causal")
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        name: what a table calls it.
        query, key, value: ``[B, H, N, D]``.
        normalizer: spec string; of ``entmax_alpha``, each head has learned another alpha, from 1.1 to 1.9.
        kind: "masked" (a tenth of the keys of every image is hidden), "packed" (sequences of a third and two thirds),
            "causal", or "".
        scale: factor on the scores; 1/sqrt(D) if None.
    """

    name: str
    query: Tensor
    key: Tensor
    value: Tensor
    normalizer: str = "entmax15"
    kind: str = ""
    scale: float | None = None

    def softmax(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Torch's kernel, of the same relation between queries and keys."""
        mask = self._block_mask() if self.kind == "packed" else self._mask()
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=self.kind == "causal", scale=self.scale)

    def ours(self, q: Tensor, k: Tensor, v: Tensor, backend: str = "auto") -> Tensor:
        """``attn_plugins.attention``."""
        normalizer: Any = _learned(q.shape[1]) if self.normalizer == "entmax_alpha" else self.normalizer
        mask: Any = self._lengths() if self.kind == "packed" else self._mask()
        options: dict[str, Any] = {"is_causal": self.kind == "causal", "scale": self.scale, "backend": backend}
        output: Tensor = attention(q, k, v, attn_mask=mask, normalizer=normalizer, **options)
        return output

    def _mask(self) -> Tensor | None:
        if self.kind != "masked":
            return None
        batch, keys = self.key.shape[0], self.key.shape[-2]
        return (torch.rand(batch, 1, 1, keys, generator=torch.Generator().manual_seed(1)) > 0.1).to(self.key.device)

    def _lengths(self) -> list[int]:
        tokens = self.key.shape[-2]
        return [tokens // 3, tokens - tokens // 3]

    def _block_mask(self) -> Tensor:
        sequence = torch.repeat_interleave(torch.arange(2), torch.tensor(self._lengths()))
        return (sequence[:, None] == sequence).to(self.key.device)


@functools.cache
def _learned(heads: int) -> EntmaxAlpha:
    """At its start every alpha is 1.5, which costs what entmax15 does."""
    module = EntmaxAlpha(heads)
    with torch.no_grad():
        module.logit.copy_(torch.linspace(0.1, 0.9, heads).logit())
    return module


def cases(tokens: Iterable[int] = TOKENS, device: str = "cpu") -> list[Case]:
    """Random scores: every length in fp32 and bf16; at 197 tokens every head size, kind and normalizer; and at 1370.

    The batch is such that about 4,000 queries are computed, in six heads.
    """
    made: list[Case] = []

    def add(
        name: str,
        n: int,
        dim: int = 64,
        dtype: torch.dtype = torch.float32,
        normalizer: str = "entmax15",
        kind: str = "",
    ) -> None:
        generator = torch.Generator().manual_seed(n)
        batch = 1 if kind == "packed" else max(1, 4096 // n)
        q, k, v = (torch.randn(batch, 6, n, dim, generator=generator).to(device, dtype) for _ in range(3))
        made.append(Case(f"B {batch}, N {n}{name}", q, k, v, normalizer, kind))

    for n in tokens:
        add("", n)
        add(", bf16", n, dtype=torch.bfloat16)
    for n in {197, 1370} & set(tokens):
        for normalizer in NORMALIZERS:
            add(f", {normalizer}", n, normalizer=normalizer)
    for dim in DIMS if 197 in tokens else ():
        add(f", d {dim}", 197, dim)
    for kind in KINDS if 197 in tokens else ():
        add(f", {kind}", 197, kind=kind)
    return made


def read_qkv(path: Path, normalizers: Iterable[str] = ("entmax15",)) -> list[Case]:
    """The layers in a file of ``qkv.write_qkv``, each with each normalizer.

    Raises:
        ValueError: it is no such file.
    """
    from .qkv import read_layers

    return [
        Case(f"{layer}, {normalizer}", q, k, v, normalizer, scale=scale)
        for layer, (q, k, v, scale) in read_layers(path).items()
        for normalizer in normalizers
    ]


def cpu_clock(function: Callable[[], object]) -> float:
    """A ``timing.Clock`` of this thread's processor time: what other programs take does not count."""
    started = time.thread_time()
    function()
    return (time.thread_time() - started) * 1e3


def bench_shapes(
    compared: Sequence[Case],
    repeats: int = 10,
    clock: Clock = wall_clock,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Time forward, and forward with backward, of each case and of softmax in turns, after a check of its output.

    Returns:
        The machine, and a row a case: share of non-zero weights, milliseconds, and ratios of the medians.

    Raises:
        RuntimeError: a kernel differs from the reference by more than rounding.
    """
    rows = []
    for done, case in enumerate(compared):
        progress(done, len(compared))
        q, k, v = inputs = tuple(t.requires_grad_() for t in (case.query, case.key, case.value))
        nonzero = _check(case)
        row: dict[str, Any] = {"case": case.name, "nonzero": nonzero}
        with torch.no_grad():
            forward = {"softmax": lambda: case.softmax(q, k, v), "ours": lambda: case.ours(q, k, v)}  # noqa: B023
            row |= _row("forward", in_turns(forward, repeats, clock=clock))
        grad = torch.randn_like(case.ours(q, k, v))
        both = {
            name: lambda run=run: torch.autograd.grad(run(q, k, v), inputs, grad)  # noqa: B023
            for name, run in (("softmax", case.softmax), ("ours", case.ours))
        }
        row |= _row("forward_backward", in_turns(both, repeats, clock=clock))
        rows.append(row)
    progress(len(compared), len(compared))
    threads = torch.get_num_threads()
    timed = "processor time" if clock is cpu_clock else "wall time"
    return {"machine": machine(), "threads": threads, "clock": timed, "repeats": repeats, "rows": rows}


def _row(name: str, timings: Mapping[str, Any]) -> dict[str, float]:
    ours, softmax = timings["ours"].median, timings["softmax"].median
    return {f"{name}_ms": ours, f"{name}_softmax_ms": softmax, f"{name}_ratio": ours / softmax}


@torch.no_grad()
def _check(case: Case) -> float:
    """Compare one image with the reference; returns the share of weights that are not zero (NaN of packed ones)."""
    q, k, v = (t[:1] for t in (case.query, case.key, case.value))
    first = Case(case.name, q, k, v, case.normalizer, case.kind, case.scale)
    found, expected = first.ours(q, k, v), first.ours(q.float(), k.float(), v.float(), backend="reference")
    error = float((found.float() - expected).abs().max())
    if not error <= TOLERANCE[q.dtype] * max(1.0, float(v.abs().max())):
        raise RuntimeError(f"{case.name}: our kernel differs from the reference by {error:.1e}")
    if case.kind:
        return float("nan")
    spread = torch.eye(k.shape[-2], device=k.device).expand(1, k.shape[1], -1, -1)
    return float((first.ours(q.float(), k.float(), spread) > 0).float().mean())


def shapes_table(result: Mapping[str, Any]) -> str:
    """A line a case: non-zero weights, and ours as a multiple of softmax."""
    where = ", ".join(f"{key} {value}" for key, value in result["machine"].items() if value is not None)
    rows = [("ours / F.scaled_dot_product_attention", "non-zero %", "forward", "forward + backward", "ms")]
    for row in result["rows"]:
        share = "-" if row["nonzero"] != row["nonzero"] else f"{100 * row['nonzero']:.1f}"
        ratios = (f"{row['forward_ratio']:.2f}", f"{row['forward_backward_ratio']:.2f}")
        rows.append((row["case"], share, *ratios, f"{row['forward_backward_ms']:.1f}"))
    how = f"{result['threads']} threads, {result['clock']}, medians of {result['repeats']}, in turns"
    return "\n".join([where, how, *columns(rows, numbers=True)])
