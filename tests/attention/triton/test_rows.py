"""The threshold on rows made to be hard: it is exact, in a bounded number of evaluations."""

import pytest
import torch
from helpers.triton_cases import DEVICE, weights
from torch import Tensor

from attn_plugins import attention
from attn_plugins.attention.triton import naive

N = 197


def rows(kind: str, n: int = N) -> Tensor:
    """Scores ``[8, n]`` float32."""
    noise = torch.randn(8, n)
    first, rest = torch.zeros(8, 1), (8, n - 1)
    return {
        "normal": noise,
        "flat": noise * 0.05,
        "sharp": noise * 20,
        "spread of 1e4": noise * 1e4,
        "all equal": torch.full((8, n), 3.0),
        "ties": torch.randint(0, 3, (8, n)).float(),
        "one dominant": torch.cat([first + 1e4, noise[:, 1:]], 1),
        "two that tie at the top": torch.cat([first + 50, first + 50, noise[:, 2:]], 1),
        "one, and all others at the edge of its support": torch.cat([first, torch.full(rest, -1.99)], 1),
        "support of one": torch.cat([first, torch.full(rest, -2.01)], 1),
        "arithmetic": torch.linspace(-5, 5, n).expand(8, n),
        "logarithmic": -torch.logspace(-6, 3, n).expand(8, n),
        "heavy tails": noise / torch.rand(8, n).clamp(min=1e-3),
        "steps": -torch.floor(torch.rand(8, n) * 6) / 3,
    }[kind]


KINDS = [
    "normal",
    "flat",
    "sharp",
    "spread of 1e4",
    "all equal",
    "ties",
    "one dominant",
    "two that tie at the top",
    "one, and all others at the edge of its support",
    "support of one",
    "arithmetic",
    "logarithmic",
    "heavy tails",
    "steps",
]


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_hard_rows(kind: str) -> None:
    """Queries are the scores and keys the unit vectors, so the output is the weights themselves."""
    n = 128  # float32 keeps 32 keys on chip and streams the other 96
    x = rows(kind, n).to(DEVICE)
    unit = torch.eye(n, device=DEVICE)[None, None]
    for name, alpha in (("entmax15", 1.5), ("sparsemax", 2.0)):
        p = attention(x[None, None], unit, unit, normalizer=name, scale=1.0, backend="triton")[0, 0]
        reference = weights(x.double(), alpha)
        # Scores are float32: their own rounding is what is left where they are large.
        tolerance = 4e-6 + 5e-7 * float(x.abs().max())
        torch.testing.assert_close(p.double(), reference, atol=tolerance, rtol=0)
        assert torch.equal(p.argmax(-1), reference.argmax(-1)) or kind in ("all equal", "ties", "steps")
        torch.testing.assert_close(p.sum(-1), torch.ones_like(p[:, 0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("alpha", [1.05, 1.25, 1.5, 2.0])
@pytest.mark.parametrize("n", [37, 197, 1370, 8192])
def test_evaluations_are_few(n: int, alpha: float) -> None:
    """With the kernels' algorithm in plain torch, where the evaluations can be counted."""
    for kind in KINDS:
        x = rows(kind, n) * (alpha - 1)
        start = x.amax(1) - 1 if n <= 256 else naive.first_pass(x, alpha, 64)
        tau, evaluations = naive.search(x, start, alpha, 2e-6)
        p = (x.double() - tau.double()[:, None]).clamp(min=0) ** (1 / (alpha - 1))
        # What half a unit in the last place of tau does to the sum: its slope is at most n^(alpha - 1) / (alpha - 1).
        resolution = 1e-5 + 2**-23 * float(x.abs().max()) * n ** (alpha - 1) / (alpha - 1)
        assert float((p.sum(1) - 1).abs().max()) < resolution, kind
        assert evaluations <= 8, (kind, evaluations)


@pytest.mark.parametrize("alpha", [1.25, 1.5, 2.0])
def test_the_first_pass_never_passes_the_threshold(alpha: float) -> None:
    for kind in KINDS:
        x = (rows(kind, 1370) * (alpha - 1)).double()
        tau = naive.first_pass(x, alpha, 64)
        total = ((x - tau[:, None]).clamp(min=0) ** (1 / (alpha - 1))).sum(1)
        assert (total >= 1 - 1e-9).all(), kind
