"""Which of several methods is better, when each was trained with a few seeds: pure functions of tables of numbers.

What is asked: would new trainings, measured on new images, come out in the same order? Fixed are the methods, the settings,
the budgets and the priors; random are the trainings (a seed) and the images. The model is that of a randomised block design,

    value[method, seed] = method + seed + noise[method, seed] + images[method] + images[method, seed]

- seed: what all runs of a seed share (the order of the data, the seeds of the samples); it leaves every difference.
- noise: of a training, estimated from all methods together, because three seeds of two methods alone would leave two degrees
  of freedom. A pair whose own runs are noisier counts at its own noise, and its degrees of freedom move towards Welch's
  (Satterthwaite 1946) by as much as its variance is its own.
- images[method, seed]: what the images do to one run. The noise between seeds holds it; it bounds that noise from below.
- images[method]: what they do to all runs of a method, such as images of a kind that it keeps badly. No number of seeds lessens
  it, so it is *added* (`eval.benchmark.image_error`). What it does to both methods alike leaves their difference.

Simulated (tests), with eight methods and three seeds: a false difference in 2 of 100 rankings of equal methods, in 3 to 5 where
one or two are three to ten times as noisy (7 with two seeds); a method that is five standard deviations of a run better is told
from each other one in 3 cases of 4, and in 95 of 100 at eight.
"""

from __future__ import annotations

import itertools
import math
import string
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special, stats

from eval.benchmark.fits import Fit, about_their_means, average, equal_means, equal_noise, fit
from eval.benchmark.image_error import ImagePart, Images, Table, Term, image_part, jackknife, mean_without_block

ALPHA = 0.05  # chance of one false difference among all pairs of a ranking
FLIPS = 16  # differences up to which all sign flips are tried


@dataclass(frozen=True)
class Pair:
    """Method a minus method b: the difference, its 95 % interval, p alone and after Holm's correction for all pairs.

    df: degrees of freedom of its standard error; images: the standard error that the finite number of images alone would give.
    flips: p of the exact sign-flip test, None where the seeds are too few for it to reach 0.05. Where nothing is known of the
    noise (one seed, no seed in common, or no two runs that differ) standard_error is None, the interval infinite and p is 1.
    """

    a: str
    b: str
    difference: float
    standard_error: float | None
    low: float
    high: float
    p: float
    holm: float
    seeds: int
    flips: float | None
    df: float = 0.0
    images: float = 0.0


@dataclass(frozen=True)
class Ranking:
    """Methods, best first, and how sure their order is.

    standard_errors: of means over new trainings and images, so those of differences are smaller where images are the same.
    letters: methods that share one do not differ at the family level `ALPHA`; ranks: the ranks that a method can have given the
    differences found; first: share of bootstrap draws in which it is the best; rank_interval: 95 % of its ranks there.
    noise: standard deviation of a run, on `df` degrees of freedom; sampling: the standard error that a run has from its images;
    equal_noise: p that all methods are equally noisy (Bartlett); omnibus: p that all are equally good (F test).
    """

    methods: tuple[str, ...]
    means: tuple[float, ...]
    standard_errors: tuple[float | None, ...]
    letters: tuple[str, ...]
    ranks: tuple[tuple[int, int], ...]
    first: tuple[float | None, ...]
    rank_intervals: tuple[tuple[int, int] | None, ...]
    pairs: tuple[Pair, ...]
    noise: float | None
    sampling: float | None
    df: int
    equal_noise: float | None
    omnibus: float | None

    @property
    def best(self) -> tuple[str, ...]:
        """The methods that do not differ from the first one, which is among them."""
        first = self.methods[0]
        worse = {
            pair.b if pair.a == first else pair.a for pair in self.pairs if first in (pair.a, pair.b) and pair.holm < ALPHA
        }
        return tuple(method for method in self.methods if method not in worse)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p values (1979), in the order given: rejecting those below alpha keeps the family's error at alpha."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = highest
    return adjusted


def sign_flips(differences: Sequence[float]) -> float | None:
    """Two-sided p that differences are symmetric about 0, from all sign flips; None where none can be as small as 0.05."""
    n = len(differences)
    if 2 / 2**n > ALPHA or n > FLIPS:
        return None
    values = np.asarray(differences, dtype=float)
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=n)))
    sums = np.abs(signs @ values)
    return float(np.mean(sums >= abs(values.sum()) - 1e-12 * np.abs(values).sum()))


def letters(methods: Sequence[str], differ: Collection[frozenset[str]]) -> dict[str, str]:
    """The compact letter display: two methods share a letter exactly where they cannot be told apart (Piepho 2004).

    The letters are the maximal sets of methods of which no two differ, in the order of their first member.
    """
    near = {a: {b for b in methods if b != a and frozenset((a, b)) not in differ} for a in methods}
    found: list[set[str]] = []

    def grow(chosen: set[str], left: set[str], seen: set[str]) -> None:  # Bron and Kerbosch 1973
        if not left and not seen:
            found.append(chosen)
        for method in sorted(left):
            grow(chosen | {method}, left & near[method], seen & near[method])
            left, seen = left - {method}, seen | {method}

    grow(set(), set(methods), set())
    place = {method: number for number, method in enumerate(methods)}
    found.sort(key=lambda clique: sorted(place[method] for method in clique))
    names = [*string.ascii_lowercase, *(a + b for a in string.ascii_lowercase for b in string.ascii_lowercase)]
    return {m: "".join(name for name, clique in zip(names, found, strict=False) if m in clique) for m in methods}


def rank(
    table: Table, better: str, images: Images | None = None, draws: int = 2000, alpha: float = ALPHA, seed: int = 0
) -> Ranking:
    """Order methods by one table, and say which differences stand: `rank_average` of one stratum."""
    return rank_average([table], better, [images or Images()], draws, alpha, seed)


def rank_average(
    tables: Sequence[Table], better: str, images: Sequence[Images], draws: int = 2000, alpha: float = ALPHA, seed: int = 0
) -> Ranking:
    """Order methods by their averages over strata (budgets), and say which differences stand.

    The strata are fixed: value = method + stratum + method:stratum + seed(stratum) + noise, so a method that gains in one
    stratum what it loses in another does so in new trainings too, and what is said holds for the average over these strata,
    not for others. The noise is the one within strata, of all together.

    better: "lower", "higher", or "neither" (then the highest comes first). images: what is known of the values' images, one
    entry a table. ValueError for an empty table, or where the strata have different methods.
    """
    fitted = average([fit(table) for table in tables])
    methods, m = fitted.methods, len(fitted.methods)
    pairs = [_pair(tables, images, fitted, i, j) for i, j in itertools.combinations(range(m), 2)]
    pairs = [replace(pair, holm=p) for pair, p in zip(pairs, holm([pair.p for pair in pairs]), strict=True)]

    sign = 1 if better == "lower" else -1
    order = sorted(range(m), key=lambda i: (sign * fitted.means[i], methods[i]))
    differ = {frozenset((pair.a, pair.b)) for pair in pairs if pair.holm < alpha}
    ordered = [methods[i] for i in order]
    place = {method: number for number, method in enumerate(ordered)}
    shown = letters(ordered, differ)
    above = {method: sum(frozenset((method, o)) in differ and place[o] < place[method] for o in methods) for method in methods}
    below = {method: sum(frozenset((method, o)) in differ and place[o] > place[method] for o in methods) for method in methods}
    parts = [image_part([[Term(1.0, method, known)] for known in images]) for method in methods]
    noise = _noise_of_means(fitted, parts)
    ranks = None if noise is None else _bootstrap(fitted, noise, _image_draws(methods, images, parts), sign, draws, seed)
    errors = None if noise is None else [math.hypot(noise[i], parts[i].common ** 0.5) for i in range(m)]
    known = [error**2 for entry in images for row in entry.errors.values() for error in row.values()]
    return Ranking(
        methods=tuple(ordered),
        means=tuple(float(fitted.means[i]) for i in order),
        standard_errors=tuple(None if errors is None else errors[i] for i in order),
        letters=tuple(shown[method] for method in ordered),
        ranks=tuple((1 + above[method], m - below[method]) for method in ordered),
        first=tuple(None if ranks is None else float(np.mean(ranks[:, i] == 1)) for i in order),
        rank_intervals=tuple(None if ranks is None else _interval(ranks[:, i]) for i in order),
        pairs=tuple(pairs),
        noise=None if fitted.variance is None else math.sqrt(fitted.variance),
        sampling=float(np.mean(known)) ** 0.5 if known else None,
        df=fitted.df if fitted.variance is not None else 0,
        equal_noise=equal_noise(fitted),
        omnibus=equal_means(fitted),
    )


def _pair(tables: Sequence[Table], images: Sequence[Images], fitted: Fit, i: int, j: int) -> Pair:
    a, b = fitted.methods[i], fitted.methods[j]
    common = [sorted(set(table[a]) & set(table[b])) for table in tables]
    seeds = min(map(len, common))
    difference = float(fitted.means[i] - fitted.means[j])
    if fitted.variance is None or not fitted.comparable[i, j]:
        return Pair(a, b, difference, None, -math.inf, math.inf, 1.0, 1.0, seeds, None)
    variance, df = _noise(fitted, [i, j])
    variance *= float(fitted.spread[i, i] + fitted.spread[j, j] - 2 * fitted.spread[i, j])
    part = image_part([[Term(1.0, a, known), Term(-1.0, b, known)] for known in images])
    error, df = _standard_error(variance, df, part)
    low, high, p = _t_test(difference, error, df)
    # the sign flips need blocks of equal weight
    flips = sign_flips([table[a][seed] - table[b][seed] for table, own in zip(tables, common, strict=True) for seed in own])
    only = math.sqrt(part.own + part.common)
    return Pair(a, b, difference, error, low, high, p, p, seeds, flips if len(tables) == 1 else None, df, only)


def _noise(fitted: Fit, members: Sequence[int]) -> tuple[float, float]:
    """The variance of a run at which methods are compared, and its degrees of freedom.

    Their own where it is larger than that of all. The share of it that lies above that of all has Welch's degrees of freedom,
    the rest those of all; their inverses are averaged, which is stricter than Satterthwaite's squares: the larger of two
    estimates was taken, and with three seeds the squares let a noisy method pass for different in 6 rankings of 100.
    """
    assert fitted.variance is not None
    own, own_df = fitted.own[members], fitted.own_df[members]
    mean = float(own.mean())
    if mean <= fitted.variance:
        return fitted.variance, fitted.df
    welch = float(own.sum() ** 2 / (own**2 / own_df).sum())
    excess = 1 - fitted.variance / mean
    return mean, 1 / ((1 - excess) / fitted.df + excess / min(welch, fitted.df))


def _standard_error(variance: float, df: float, part: ImagePart) -> tuple[float, float]:
    """Of a difference whose noise over seeds has this variance, with its degrees of freedom (Satterthwaite 1946)."""
    variance = max(variance, part.own)
    whole = variance + part.common
    return math.sqrt(whole), whole**2 / (variance**2 / df + part.common**2 / part.df)


def _t_test(difference: float, error: float, df: float, level: float = 0.95) -> tuple[float, float, float]:
    """The interval and the two-sided p of a difference."""
    half = float(special.stdtrit(df, (1 + level) / 2)) * error
    return difference - half, difference + half, float(2 * special.stdtr(df, -abs(difference) / error))


def _noise_of_means(fitted: Fit, parts: Sequence[ImagePart]) -> np.ndarray | None:
    """Standard errors of the means over seeds, without what images do to all seeds; None where the noise is unknown."""
    if fitted.variance is None:
        return None
    runs = np.maximum(fitted.own, fitted.variance) * np.diag(fitted.spread)
    return np.sqrt(np.maximum(runs, [part.own for part in parts]))


def _image_draws(methods: Sequence[str], images: Sequence[Images], parts: Sequence[ImagePart]) -> np.ndarray:
    """A matrix (any, methods): standard normal numbers times it vary as the means do with new images, together.

    The blocks hold what is a run's own too, which is counted as noise: they are scaled down by its share of differences.
    """
    blocks = [mean_without_block(images, method) for method in methods]
    rows = [row for row in blocks if row is not None]
    if len(rows) < len(blocks) or len({len(row) for row in rows}) > 1:
        return np.diag([part.common**0.5 for part in parts])
    pairs = [(i, j) for i, j in itertools.combinations(range(len(rows)), 2)]
    whole = sum(jackknife(rows[i] - rows[j]) for i, j in pairs)
    found = [image_part([[Term(1.0, methods[i], known), Term(-1.0, methods[j], known)] for known in images]) for i, j in pairs]
    share = min(1.0, sum(part.common for part in found) / whole) if whole > 0 else 0.0
    centred = np.array([row - row.mean() for row in rows]).T
    return centred * math.sqrt(share * (len(centred) - 1) / len(centred))


def _bootstrap(fitted: Fit, noise: np.ndarray, image_draws: np.ndarray, sign: int, draws: int, seed: int) -> np.ndarray:
    """Ranks (draws, methods) of means whose runs get residuals of all runs, drawn anew at the noise's size, on new images."""
    rng = np.random.default_rng(seed)
    left = np.array([value for _, value in fitted.residuals])
    unit = left / np.sqrt(np.mean(left**2))
    counts = [sum(name == method for name, _ in fitted.residuals) for method in fitted.methods]
    drawn = np.stack([rng.choice(unit, (draws, count)).sum(1) / math.sqrt(count) for count in counts], 1)
    images = rng.normal(size=(draws, len(image_draws))) @ image_draws
    return stats.rankdata(sign * (fitted.means + noise * drawn + images), axis=1, method="ordinal")


def _interval(ranks: np.ndarray) -> tuple[int, int]:
    low, high = np.quantile(ranks, (0.025, 0.975), method="closest_observation")
    return int(low), int(high)


@dataclass(frozen=True)
class Shift:
    """The mean of paired differences of one method, its 95 % interval, p alone and after Holm's correction for all methods.

    Where nothing is known of the noise (one seed, or no two differences that differ) the interval is infinite and p is 1.
    """

    mean: float
    low: float
    high: float
    p: float
    holm: float
    seeds: int


def shifts(before: Table, after: Table, images: tuple[Images, Images] | None = None) -> dict[str, Shift]:
    """Whether each method's runs change from one table to another, seed by seed: after minus before, on average.

    The noise of differences is that of all methods, or a method's own where it is larger; images: of before and after.
    """
    known = images or (Images(), Images())
    rows = {
        name: np.array([after[name][seed] - before[name][seed] for seed in sorted(set(before[name]) & set(after[name]))])
        for name in before
        if set(before[name]) & set(after.get(name, {}))
    }
    if not rows:
        return {}
    fitted = about_their_means(rows)
    found = {}
    for i, (name, values) in enumerate(rows.items()):
        mean = float(values.mean())
        if fitted.variance is None or len(values) < 2:
            found[name] = Shift(mean, -math.inf, math.inf, 1.0, 1.0, len(values))
            continue
        variance, df = _noise(fitted, [i])
        part = image_part([[Term(1.0, name, known[1]), Term(-1.0, name, known[0])]])
        error, df = _standard_error(variance / len(values), df, part)
        low, high, p = _t_test(mean, error, df)
        found[name] = Shift(mean, low, high, p, p, len(values))
    adjusted = holm([shift.p for shift in found.values()])
    return {name: replace(shift, holm=p) for (name, shift), p in zip(found.items(), adjusted, strict=True)}
