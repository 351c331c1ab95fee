"""Intervals against scipy, statsmodels' definitions and brute force."""

import itertools

import numpy as np
import pytest
from scipy import stats

from attn_plugins.analysis.measure import Definition, Measured, bootstrap, paired, wilson

SHARE = Definition("share", "Share", "%", "A share.", "here", (0, 1))


def test_the_interval_is_scipys_percentile_bootstrap() -> None:
    values = np.random.default_rng(0).gamma(2.0, size=(60, 2))
    low, high = bootstrap(values, draws=20_000)
    for column in range(2):
        theirs = stats.bootstrap(
            (values[:, column],), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
        ).confidence_interval
        assert low[column] == pytest.approx(theirs.low, abs=0.02) and high[column] == pytest.approx(
            theirs.high, abs=0.02
        )
    assert all((a == b).all() for a, b in zip(bootstrap(values), bootstrap(values), strict=True))


def test_the_interval_of_three_images_is_that_of_their_27_resamplings() -> None:
    values = np.array([[0.0], [1.0], [5.0]])
    means = [np.mean(draw) for draw in itertools.product(values[:, 0], repeat=3)]
    low, high = bootstrap(values, confidence=0.6, draws=4000)
    assert (low[0], high[0]) == (np.quantile(means, 0.2), np.quantile(means, 0.8))


def test_images_that_lack_a_measure_are_left_out() -> None:
    values = np.array([[1.0, np.nan], [np.nan, np.nan], [3.0, np.nan]])
    found = Measured(SHARE, values)
    assert found.mean[0] == 2 and found.spread[0] == 1 and found.images.tolist() == [2, 0]
    low, high = found.interval()
    assert low[0] == 1 and high[0] == 3 and np.isnan([found.mean[1], low[1], high[1]]).all()
    with pytest.raises(ValueError, match="no images"):
        bootstrap(np.zeros((0, 2)))


def test_a_share_on_which_all_images_agree_has_wilsons_interval() -> None:
    low, high = Measured(SHARE, np.ones((6, 1))).interval()
    assert (low[0], high[0]) == wilson(6, 6) and low[0] < 0.7


def test_paired_differences_see_what_independent_ones_do_not() -> None:
    g = np.random.default_rng(0)
    a = g.normal(0, 10, (80, 1))
    b = a + g.normal(0.5, 1, (80, 1))
    mean, low, high, p = paired(a, b)
    assert mean[0] == pytest.approx((b - a).mean()) and low[0] < mean[0] < high[0]
    assert low[0] > 0 and p[0] < 0.01
    assert stats.ttest_ind(a[:, 0], b[:, 0]).pvalue > 0.5 and stats.ttest_rel(a[:, 0], b[:, 0]).pvalue < 0.01
    same = paired(a, a)
    assert same[0][0] == 0 and same[3][0] == 1
    with pytest.raises(ValueError, match="same images"):
        paired(a, b[1:])


def test_the_paired_p_is_uniform_where_nothing_differs() -> None:
    g = np.random.default_rng(3)
    _, _, _, p = paired(np.zeros((100, 400)), g.normal(size=(100, 400)))
    assert stats.kstest(p, "uniform").pvalue > 0.001


@pytest.mark.parametrize("successes, trials", [(0, 10), (10, 10), (3, 10), (150, 1000)])
def test_wilson_is_where_the_score_test_turns(successes: int, trials: int) -> None:
    """The bounds p solve (share - p)^2 = z^2 p (1 - p) / n, which is how the interval is defined."""
    z, share = 1.959963984540054, successes / trials
    for bound in wilson(successes, trials):
        if 0 < bound < 1:
            assert (share - bound) ** 2 == pytest.approx(z**2 * bound * (1 - bound) / trials)
    assert wilson(successes, trials)[0] <= share <= wilson(successes, trials)[1]
    with pytest.raises(ValueError, match="no proportion"):
        wilson(2, 1)
