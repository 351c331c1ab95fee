"""The learnable alpha as a module."""

import copy
from typing import Any

import pytest
import torch

from attn_plugins.functional import EntmaxAlpha, entmax, entmax_alpha


def test_starts_as_entmax_with_its_initial_alpha() -> None:
    module = EntmaxAlpha(3, init=1.3)
    scores = torch.randn(2, 3, 5, 7)
    torch.testing.assert_close(module.alpha, torch.full((3,), 1.3))
    torch.testing.assert_close(module(scores), entmax(scores, 1.3), rtol=0, atol=2e-6)
    torch.testing.assert_close(module(scores, dim=-2), entmax(scores, 1.3, dim=-2), rtol=0, atol=2e-6)


@pytest.mark.parametrize("reward", [1, -1], ids=["concentration", "spread"])
def test_alpha_learns_and_stays_in_range(reward: int) -> None:
    module = EntmaxAlpha(2)
    scores, optimizer = torch.randn(4, 2, 6, 9), torch.optim.Adam(module.parameters(), lr=0.3)
    for _ in range(60):
        optimizer.zero_grad()
        (-reward * module(scores).square().sum(-1).mean()).backward()
        optimizer.step()
        assert (module.alpha >= 1.01).all() and (module.alpha <= 2).all() and module(scores).isfinite().all()
    assert (module.alpha > 1.9).all() if reward == 1 else (module.alpha < 1.1).all()


def test_one_alpha_per_head() -> None:
    module = EntmaxAlpha(2)
    with torch.no_grad():
        module.logit.copy_(torch.tensor([-3.0, 3.0]))
    scores = torch.randn(1, 1, 20, 30).expand(1, 2, 20, 30)
    zeros = (module(scores) == 0).float().mean((0, 2, 3))
    assert zeros[0] < zeros[1]


def test_state_and_copies() -> None:
    module = EntmaxAlpha(4)
    assert [*module.state_dict()] == ["logit"]
    twin = copy.deepcopy(module)
    with torch.no_grad():
        twin.logit.add_(1)
    assert not torch.equal(twin.alpha, module.alpha)
    assert not EntmaxAlpha(4, learnable=False).logit.requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 0}, "num_heads is 1 or more, got 0"),
        ({"num_heads": 2, "low": 0.5}, "1 <= low < high <= 2, got low=0.5"),
        ({"num_heads": 2, "high": 2.5}, "high=2.5"),
        ({"num_heads": 2, "low": 1.8, "high": 1.2}, "low=1.8, high=1.2"),
        ({"num_heads": 2, "init": 2.0}, "init=2.0 is not between low=1.0 and high=2.0"),
        ({"num_heads": 2, "low": 1.6}, "init=1.5 is not between low=1.6"),
    ],
)
def test_bad_ranges_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EntmaxAlpha(**arguments)


def test_scores_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[\.\.\., 4 heads, N, S\], got shape \(2, 3, 5, 5\)"):
        EntmaxAlpha(4)(torch.zeros(2, 3, 5, 5))
    with pytest.raises(ValueError, match="got dim=1"):
        EntmaxAlpha(4)(torch.zeros(2, 4, 5, 5), dim=1)
    with pytest.raises(ValueError, match=r"alpha of shape \(3, 5\) does not give one value per row"):
        entmax_alpha(torch.zeros(3, 5), torch.full((3, 5), 1.5))
