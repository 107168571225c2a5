"""Comparisons of methods over seeds: against closed forms and scipy, and on simulated methods whose truth is known."""

# stubs of SciPy
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from eval.benchmark.comparisons import holm, letters, rank, rank_average, shifts, sign_flips
from eval.benchmark.correlations import retest
from eval.benchmark.fits import equal_noise, fit, interaction
from eval.benchmark.image_error import Images, Term, image_part


def simulate(means, seeds=3, noise=1.0, shared=5.0, rng=None):
    """Methods of these true means; runs of a seed share an offset that is larger than the noise. noise: of all, or one each."""
    rng = rng or np.random.default_rng(0)
    offset = rng.normal(0, shared, seeds)
    deviations = np.broadcast_to(noise, len(means))
    return {f"m{i}": {s: mean + offset[s] + rng.normal(0, deviations[i]) for s in range(seeds)} for i, mean in enumerate(means)}


def test_two_methods_are_the_paired_t_test():
    table = simulate([0.0, 1.0], seeds=6)
    (pair,) = rank(table, "lower").pairs
    a, b = ([*table[name].values()] for name in (pair.a, pair.b))
    oracle = stats.ttest_rel(a, b)
    interval = oracle.confidence_interval(0.95)
    assert pair.p == pytest.approx(oracle.pvalue)
    assert (pair.difference, pair.low, pair.high) == pytest.approx((np.mean(a) - np.mean(b), interval.low, interval.high))


def test_noise_is_that_of_the_two_way_analysis_of_variance():
    table = simulate([0.0, 1.0, 3.0, 3.5], seeds=3)
    values = np.array([[*row.values()] for row in table.values()])
    left = values - values.mean(1, keepdims=True) - values.mean(0, keepdims=True) + values.mean()
    fitted = fit(table)
    assert fitted.df == 6
    assert fitted.variance == pytest.approx((left**2).sum() / 6)
    assert fitted.means == pytest.approx(values.mean(1))
    between = 3 * ((values.mean(1) - values.mean()) ** 2).sum() / 3
    assert rank(table, "lower").omnibus == pytest.approx(stats.f.sf(between / fitted.variance, 3, 6))


def test_missing_cells_are_fitted_as_dummies_would():
    table = simulate([0.0, 2.0, 5.0], seeds=4)
    del table["m0"][3], table["m2"][0]
    cells = [(m, s, value) for m, row in table.items() for s, value in row.items()]
    design = np.array([[1, m == "m1", m == "m2", s == 1, s == 2, s == 3] for m, s, _ in cells], dtype=float)
    values = np.array([value for _, _, value in cells])
    beta, (left,), *_ = np.linalg.lstsq(design, values, rcond=None)
    pairs = {(pair.a, pair.b): pair for pair in rank(table, "lower").pairs}
    assert pairs["m0", "m1"].difference == pytest.approx(-beta[1])
    variance = left / (len(cells) - 6) * np.linalg.inv(design.T @ design)
    assert pairs["m0", "m1"].standard_error == pytest.approx(variance[1, 1] ** 0.5)
    # a pair that is noisier than all together counts at its own noise
    assert (pairs["m1", "m2"].standard_error or 0) >= (variance[1, 1] + variance[2, 2] - 2 * variance[1, 2]) ** 0.5


def test_methods_without_a_seed_in_common_are_not_compared():
    table = {"a": {0: 1.0, 1: 1.1}, "b": {0: 2.0, 1: 2.2}, "c": {5: 9.0, 6: 9.1}}
    pairs = {(pair.a, pair.b): pair for pair in rank(table, "lower").pairs}
    assert pairs["a", "b"].p < 0.2 and pairs["a", "c"].p == pairs["b", "c"].p == 1
    assert pairs["a", "c"].standard_error is None and pairs["a", "c"].seeds == 0


def test_one_seed_decides_nothing():
    found = rank({"a": {0: 1.0}, "b": {0: 100.0}}, "lower")
    assert found.methods == ("a", "b") == found.best
    assert found.letters == ("a", "a") and found.first == (None, None)


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_sign_flips_are_scipys_exact_permutation_test():
    values = np.random.default_rng(0).normal(0.6, 1, 7)
    oracle = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    assert sign_flips(values) == pytest.approx(oracle)
    assert sign_flips(values[:5]) is None  # 2 / 2^5 > 0.05


@pytest.mark.parametrize("seed", range(8))
def test_methods_share_a_letter_exactly_where_they_do_not_differ(seed):
    rng = np.random.default_rng(seed)
    names = [f"m{i}" for i in range(7)]
    differ = {frozenset(pair) for pair in itertools.combinations(names, 2) if rng.random() < 0.4}
    shown = letters(names, differ)
    for a, b in itertools.combinations(names, 2):
        assert bool(set(shown[a]) & set(shown[b])) == (frozenset((a, b)) not in differ)
    holders = [{name for name in names if letter in shown[name]} for letter in sorted(set("".join(shown.values())))]
    assert not any(a < b for a, b in itertools.permutations(holders, 2))  # no letter says less than another


def test_a_known_ranking_is_recovered():
    found = rank(simulate([10.0, 20.0, 30.0, 40.0]), "lower")
    assert found.methods == ("m0", "m1", "m2", "m3") and found.letters == ("a", "b", "c", "d")
    assert found.ranks == ((1, 1), (2, 2), (3, 3), (4, 4)) and found.first[0] == 1.0 and found.best == ("m0",)
    assert rank(simulate([10.0, 20.0, 30.0, 40.0]), "higher").methods == ("m3", "m2", "m1", "m0")


def test_the_finite_number_of_images_bounds_what_is_known():
    table = simulate([0.0, 1.0, 2.0], noise=0.01)
    assert rank(table, "lower").letters == ("a", "b", "c")
    errors = {name: dict.fromkeys(row, 5.0) for name, row in table.items()}
    own, same = rank(table, "lower", Images(errors)), rank(table, "lower", Images(errors, same=True))
    assert own.letters == same.letters == ("a", "a", "a") and own.sampling == 5.0
    assert own.pairs[0].standard_error == pytest.approx((2 * 25 / 3) ** 0.5, rel=1e-3)  # each run has images of its own
    assert same.pairs[0].standard_error == pytest.approx((2 * 25) ** 0.5, rel=1e-3)  # more seeds are no more images


def images_of(means, train, common, shared, own, n=200, seeds=3, rng=None):
    """Runs that are means over n images: what an image does to all, to a method, and to one run; and the blocks."""
    rng = rng or np.random.default_rng(0)
    everybody, table, blocks = rng.normal(0, common, n), {}, {}
    for i, mean in enumerate(means):
        kept = everybody + rng.normal(0, shared, n)
        runs = [kept + mean + rng.normal(0, train) + rng.normal(0, own, n) for _ in range(seeds)]
        table[f"m{i}"] = {s: run.mean() for s, run in enumerate(runs)}
        blocks[f"m{i}"] = {s: (run.sum() - run.reshape(-1, 20).sum(0)) / (n - n // 20) for s, run in enumerate(runs)}
    errors = {name: {s: np.std(blocks[name][s]) * 19**0.5 for s in row} for name, row in table.items()}
    return table, Images(errors, blocks, same=True)


def test_images_of_a_difference_are_told_apart_from_those_of_single_runs():
    rng = np.random.default_rng(6)
    found = [images_of([0.0, 0.0], 0, 5.0, 2.0, 3.0, rng=rng)[1] for _ in range(150)]
    parts = [image_part([[Term(1, "m0", images), Term(-1, "m1", images)]]) for images in found]
    assert np.mean([part.own for part in parts]) == pytest.approx(2 * 9 / 200 / 3, rel=0.1)
    assert np.mean([part.common for part in parts]) == pytest.approx(2 * 4 / 200, rel=0.15)
    alone = [image_part([[Term(1, "m0", images)]]).common for images in found]
    assert np.mean(alone) == pytest.approx((25 + 4) / 200, rel=0.15)  # what all methods have in common left the difference
    bound = image_part([[Term(1, "m0", replace(found[0], without_block={})), Term(-1, "m1", found[0])]])
    assert bound.common == pytest.approx(2 * (25 + 4 + 9) / 200, rel=0.5) and bound.common > 3 * parts[0].common


@pytest.mark.parametrize(("train", "shared"), [(0.05, 2.0), (0.2, 2.0), (0.5, 0.0)])
def test_equal_methods_on_shared_images_are_told_apart_in_few_rankings(train, shared):
    """Images that a method keeps badly in all its trainings are no difference; those that all keep badly hide none."""
    rng = np.random.default_rng(7)
    runs = [images_of([0.0] * 5, train, 8.0, shared, 0.5, rng=rng) for _ in range(200)]
    found = [rank(table, "lower", images, draws=2) for table, images in runs]
    assert np.mean([any(pair.holm < 0.05 for pair in ranking.pairs) for ranking in found]) <= 0.05 + 0.03
    covered = np.mean([pair.low <= 0 <= pair.high for ranking in found for pair in ranking.pairs])
    assert 0.93 <= covered <= 0.995
    if train < 0.1:  # without the images most rankings would be wrong
        blind = [rank(table, "lower", draws=2) for table, _ in runs[:100]]
        assert np.mean([any(pair.holm < 0.05 for pair in ranking.pairs) for ranking in blind]) > 0.5
    far = -8 * (train**2 / 3 + shared**2 / 200 + 0.25 / 600) ** 0.5  # in standard errors of a mean
    runs = [images_of([far, 0.0, 0.0, 0.0, 0.0], train, 8.0, shared, 0.5, rng=rng) for _ in range(40)]
    found = [rank(table, "lower", images, draws=2) for table, images in runs]
    assert np.mean([pair.holm < 0.05 for ranking in found for pair in ranking.pairs if pair.a == "m0"]) > 0.7


def budgets_of(means, interacting, seeds=3, budgets=2, rng=None):
    """Equal or unequal methods at budgets where each moves for itself: the average over these budgets stays as given."""
    rng = rng or np.random.default_rng(0)
    moves = rng.normal(0, interacting, (budgets, len(means)))
    moves -= moves.mean(0)
    return [simulate(np.asarray(means) + moves[t], seeds=seeds, rng=rng) for t in range(budgets)]


@pytest.mark.parametrize(("budgets", "interacting"), [(2, 0.0), (2, 4.0), (3, 4.0)])
def test_the_average_over_budgets_makes_few_false_differences_whatever_the_methods_do_between_them(budgets, interacting):
    rng = np.random.default_rng(8)
    nothing = [Images()] * budgets
    runs = [budgets_of([0.0] * 8, interacting, budgets=budgets, rng=rng) for _ in range(150)]
    found = [rank_average(tables, "lower", nothing, draws=2) for tables in runs]
    assert np.mean([any(pair.holm < 0.05 for pair in ranking.pairs) for ranking in found]) <= 0.05 + 0.035
    changes = np.mean([(interaction(tables) or 1) < 0.05 for tables in runs])
    assert changes > 0.99 if interacting else changes <= 0.05 + 0.04
    better = [rank_average(budgets_of([-4.0] + [0.0] * 7, interacting, budgets=budgets, rng=rng), "lower", nothing, draws=2)
              for _ in range(30)]  # fmt: skip
    power = np.mean([pair.holm < 0.05 for ranking in better for pair in ranking.pairs if pair.a == "m0"])
    assert power > (0.75 if budgets == 2 else 0.95)  # four standard deviations of a run better than the others


def test_the_average_over_budgets_is_the_mean_of_the_budgets_and_the_interaction_that_of_the_analysis_of_variance():
    tables = budgets_of([0.0, 1.0, 5.0], 2.0, seeds=4)
    x = np.array([[[*row.values()] for row in table.values()] for table in tables])  # budget, method, seed
    found = rank_average(tables, "lower", [Images()] * 2)
    assert dict(zip(found.methods, found.means, strict=True)) == pytest.approx(
        {f"m{i}": mean for i, mean in enumerate(x.mean((0, 2)))}
    )
    left = x - x.mean(2, keepdims=True) - x.mean(1, keepdims=True) + x.mean((1, 2), keepdims=True)
    variance = (left**2).sum() / 12
    assert found.df == 12 and found.noise == pytest.approx(variance**0.5)
    cells = x.mean(2)
    moved = cells - cells.mean(0) - cells.mean(1, keepdims=True) + cells.mean()
    assert interaction(tables) == pytest.approx(stats.f.sf(4 * (moved**2).sum() / 2 / variance, 2, 12))
    assert interaction(tables[:1]) is None


def test_equal_methods_tie_and_intervals_cover():
    """300 benchmarks of six methods, four of them equal: error of the family, coverage, and rank intervals."""
    truth = np.array([0.0, 0.0, 0.0, 0.0, 6.0, 12.0])
    rng = np.random.default_rng(1)
    wrong = covered = pairs = ranked = 0
    for _ in range(300):
        found = rank(simulate(truth, rng=rng), "lower", draws=10)
        true = dict(zip((f"m{i}" for i in range(6)), truth, strict=True))
        wrong += any(pair.holm < 0.05 and true[pair.a] == true[pair.b] for pair in found.pairs)
        covered += sum(pair.low <= true[pair.a] - true[pair.b] <= pair.high for pair in found.pairs)
        pairs += len(found.pairs)
        ranked += all(low <= 4 and high >= 4 for (low, high), m in zip(found.ranks, found.methods, strict=True) if true[m] == 0)
        assert found.methods[-2:] == ("m4", "m5")
    assert wrong / 300 <= 0.05 + 0.03 and ranked / 300 >= 0.95 - 0.03  # + 2.5 Monte Carlo errors
    assert 0.93 <= covered / pairs <= 0.97


@pytest.mark.parametrize("noisy", [1.0, 3.0, 10.0])
def test_one_noisy_method_makes_few_false_differences(noisy):
    rng = np.random.default_rng(2)
    found = [rank(simulate([0.0] * 8, noise=[1.0] * 7 + [noisy], rng=rng), "lower", draws=2) for _ in range(300)]
    assert np.mean([any(pair.holm < 0.05 for pair in ranking.pairs) for ranking in found]) <= 0.05 + 0.03
    if noisy == 1.0:  # a method that is five standard deviations of a run better is told from most others
        better = [rank(simulate([-5.0] + [0.0] * 7, rng=rng), "lower", draws=2) for _ in range(60)]
        assert np.mean([pair.holm < 0.05 for ranking in better for pair in ranking.pairs if pair.a == "m0"]) > 0.65
    if noisy == 10.0:
        assert np.mean([(ranking.equal_noise or 1) < 0.05 for ranking in found]) > 0.7
        assert np.mean([dict(zip(r.methods, r.standard_errors, strict=True))["m7"] for r in found]) > 4  # 10 / sqrt(3), about


def test_bartletts_test_is_right_about_equal_noise():
    rng = np.random.default_rng(3)
    alike = [equal_noise(fit(simulate([0.0] * 6, seeds=5, rng=rng))) for _ in range(200)]
    assert np.mean([p is not None and p < 0.05 for p in alike]) < 0.09


def test_the_best_by_the_bootstrap_is_the_best_as_often_as_it_says():
    """Where it says that a method is first in 60 to 95 % of draws, it is truly first about as often."""
    rng = np.random.default_rng(3)
    said, true = [], []
    for _ in range(250):
        means = rng.normal(0, 1, 4)
        found = rank(simulate(means, rng=rng), "lower", draws=300)
        if 0.6 <= (found.first[0] or 0) <= 0.95:
            said.append(found.first[0])
            true.append(found.methods[0] == f"m{means.argmin()}")
    assert len(said) > 40
    assert np.mean(true) >= np.mean(said) - 0.15


def test_spearman_and_brown_predict_how_well_means_agree():
    rng = np.random.default_rng(4)
    predicted, seen = [], []
    for _ in range(150):
        means = rng.normal(0, 1, 12)
        first, again = (simulate(means, noise=0.8, rng=rng) for _ in range(2))
        found = retest(first)
        assert found and found["pairs"] == 3 and found["methods"] == 12
        predicted.append(found["all_seeds"])
        means = [[np.mean([*row.values()]) for row in table.values()] for table in (first, again)]
        seen.append(stats.spearmanr(*means).statistic)
    assert np.mean(predicted) == pytest.approx(np.mean(seen), abs=0.03)
    assert retest({"a": {0: 1.0}, "b": {0: 2.0}, "c": {0: 3.0}}) is None


def test_no_noise_at_all_is_not_certainty():
    equal = {"a": {0: 1.0, 1: 1.0}, "b": {0: 2.0, 1: 2.0}}
    found = rank(equal, "lower")
    assert found.pairs[0].p == 1 and found.pairs[0].standard_error is None and found.letters == ("a", "a") and not found.df
    changes = shifts(equal, {"a": {0: 5.0, 1: 5.0}, "b": {0: 2.0, 1: 2.0}})
    assert [shift.p for shift in changes.values()] == [1, 1] and changes["a"].high == np.inf


def zeros(table):
    return {name: dict.fromkeys(row, 0.0) for name, row in table.items()}


def test_shifts_of_one_method_are_the_t_test_and_many_share_their_noise():
    rng = np.random.default_rng(5)
    table = {"a": dict(enumerate(rng.normal(1, 1, 5)))}
    oracle = stats.ttest_1samp([*table["a"].values()], 0)
    (found,) = shifts(zeros(table), table).values()
    assert (found.mean, found.p) == pytest.approx((np.mean([*table["a"].values()]), oracle.pvalue))
    assert (found.low, found.high) == pytest.approx(tuple(oracle.confidence_interval(0.95)))
    for noise in (1.0, [1.0] * 7 + [8.0]):
        runs = [simulate([0.0] * 8, shared=0.0, noise=noise, rng=rng) for _ in range(300)]
        wrong = [any(shift.holm < 0.05 for shift in shifts(zeros(table), table).values()) for table in runs]
        assert np.mean(wrong) <= 0.05 + 0.03
    assert shifts({"a": {0: 0.0}, "b": {}}, {"a": {0: 3.0}})["a"].p == 1.0
    one = {"a": {0: 9.0}, "b": {0: 1.0, 1: 1.3}}
    assert shifts(zeros(one), one)["a"].p == 1.0  # of one run of its own nothing is known


def test_a_shift_on_shared_images_counts_what_they_do_to_all_seeds():
    rng = np.random.default_rng(9)
    runs = [[images_of([0.0] * 4, 0.05, 8.0, 2.0, 0.5, rng=rng) for _ in range(2)] for _ in range(200)]
    wrong = [any(s.holm < 0.05 for s in shifts(a, b, (x, y)).values()) for (a, x), (b, y) in runs]
    assert np.mean(wrong) <= 0.05 + 0.035
