"""Rank correlations against scipy, their intervals on data of known correlation, and fronts against brute force."""

# stubs of SciPy
# pyright: reportAttributeAccessIssue=false

import numpy as np
import pytest
from scipy import stats

from eval.benchmark.correlations import associate, pareto, spearman


def pairs_of(r, n, rng):
    return rng.multivariate_normal([0, 0], [[1, r], [r, 1]], n).T


def test_coefficients_are_scipys_also_with_ties():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, (2, 20)).astype(float)
    found = associate([x], [y])
    assert found and spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic) == pytest.approx(found.spearman)
    assert found.kendall == pytest.approx(stats.kendalltau(x, y).statistic)
    rho = lambda a: stats.spearmanr(a, y).statistic  # noqa: E731
    oracle = stats.permutation_test((x,), rho, permutation_type="pairings", n_resamples=1999, rng=np.random.default_rng(0))
    assert found.p == pytest.approx(oracle.pvalue, abs=0.05)


def test_strata_are_averaged_and_do_not_mix():
    rng = np.random.default_rng(1)
    x, y = pairs_of(0.7, 10, rng)
    one, two = associate([x], [y]), associate([x, x + 1000], [y, y - 1000])  # a budget that shifts both says nothing of methods
    assert one and two and two.spearman == pytest.approx(one.spearman) and two.strata == 2 and two.n == 10
    assert two.spearman_interval == pytest.approx(one.spearman_interval)  # methods are drawn with all their strata


def test_too_few_or_constant_is_no_correlation():
    assert associate([[1.0, 2, 3, 4, 5]], [[1.0, 2, 3, 4, 5]]) is None
    assert associate([[1.0] * 8], [list(range(8))]) is None and spearman([1.0, 1, 1], [1.0, 2, 3]) is None


@pytest.mark.parametrize("r", [0.0, 0.6, 0.9])
def test_intervals_cover_and_chance_is_not_taken_for_a_correlation(r):
    rng = np.random.default_rng(2)
    truth = 6 / np.pi * np.arcsin(r / 2)  # Spearman's rho of a normal pair (Pearson 1907)
    found = [associate([x], [y], draws=300, seed=i) for i in range(150) for x, y in [pairs_of(r, 10, rng)]]
    covered = [low <= truth <= high for a in found if a for low, high in [a.spearman_interval]]
    assert np.mean(covered) >= 0.95 - 0.06
    significant = np.mean([a.p < 0.05 for a in found if a])
    assert significant <= 0.05 + 0.045 if r == 0 else significant > 0.3


def test_the_front_is_what_no_point_beats():
    rng = np.random.default_rng(3)
    points = [(float(a), float(b)) for a, b in rng.integers(0, 12, (40, 2))]
    for point, on in zip(points, pareto(points), strict=True):
        beaten = any(q[0] <= point[0] and q[1] <= point[1] and (q[0] < point[0] or q[1] < point[1]) for q in points)
        assert on == (not beaten)
    assert pareto([(1, 1), (1, 1), (2, 2)]) == [True, True, False]
