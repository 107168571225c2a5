"""Which of several methods is better, when each was trained with a few seeds: pure functions of a table of numbers.

The model is that of a randomised block design: value[method, seed] = method + seed + noise. What all runs of a seed share
(the order of the data, the seeds of the samples) drops out of a difference, and the noise is estimated from all methods
together, because three seeds of two methods alone would leave two degrees of freedom. A pair whose own runs are noisier than
that is compared at its own noise: where one method in ten is ten times as noisy as the rest, pooling alone would find a false
difference in one ranking of five, this in one of twelve (three seeds; in one of fifty where all are alike, for a twentieth
less power).
"""

from __future__ import annotations

import itertools
import math
import string
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special, stats

from eval.benchmark.correlations import spearman

Table = Mapping[str, Mapping[int, float]]  # method -> seed -> value
ALPHA = 0.05  # chance of one false difference among all pairs of a ranking
ROUNDING = 1e-10  # residuals below this share of the values are no noise
FLIPS = 16  # differences up to which all sign flips are tried


@dataclass(frozen=True)
class Fit:
    """Least squares of value = method + seed.

    means: of the methods at the average seed, in the order of `methods`; spread: their covariance for noise of variance 1;
    variance: of the noise, on `df` degrees of freedom (None where there are none); own: that of each method's runs alone (0
    where it has one); residuals: (method, seed, value).
    """

    methods: tuple[str, ...]
    means: np.ndarray
    spread: np.ndarray
    comparable: np.ndarray
    variance: float | None
    df: int
    own: np.ndarray
    residuals: tuple[tuple[str, int, float], ...]


@dataclass(frozen=True)
class Pair:
    """Method a minus method b: the difference, its 95 % interval, p alone and after Holm's correction for all pairs.

    flips: p of the exact sign-flip test, None where the seeds are too few for it to reach 0.05. Where nothing is known of the
    noise (one seed, or no seed in common) standard_error is None, the interval is infinite and p is 1.
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


@dataclass(frozen=True)
class Ranking:
    """Methods, best first, and how sure their order is.

    letters: methods that share one do not differ at the family level `ALPHA`; ranks: the ranks that a method can have given the
    differences found; first: share of bootstrap draws in which it is the best; rank_interval: 95 % of its ranks there.
    noise: standard deviation of a run, on `df` degrees of freedom; sampling: the part that is due to the finite number of
    images; equal_noise: p that all methods are equally noisy (Bartlett); omnibus: p that all are equally good (F test).
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


def fit(table: Table) -> Fit:
    """Fit method + seed to what there is; cells may be missing. ValueError for an empty table."""
    methods = tuple(table)
    seeds = sorted({seed for row in table.values() for seed in row})
    cells = [(method, seed, value) for method, row in table.items() for seed, value in row.items()]
    if not cells or not all(table.values()):
        raise ValueError("fit: every method needs a value")
    m, s = len(methods), len(seeds)
    design = np.zeros((len(cells), m + s))
    for number, (method, seed, _) in enumerate(cells):
        design[number, methods.index(method)] = 1
        design[number, m + seeds.index(seed)] = 1
    design[:, m:] -= 1 / s  # effects of seeds are about their average
    values = np.array([value for _, _, value in cells])
    inverse = np.linalg.pinv(design)
    beta = inverse @ values
    rank = int(np.linalg.matrix_rank(design))
    left = values - design @ beta
    left[np.abs(left) < ROUNDING * np.abs(values).max()] = 0
    df = len(cells) - rank
    covariance = inverse @ inverse.T
    known_cells = design @ inverse
    known = inverse @ design  # a contrast is known where it is a combination of the rows
    contrasts = np.eye(m)[:, None] - np.eye(m)[None]  # (a, b, m)
    whole = np.concatenate([contrasts, np.zeros((m, m, s))], -1)
    comparable = np.asarray(np.isclose(contrasts @ known[:m, :], whole, atol=1e-8)).all(-1)
    return Fit(
        methods,
        beta[:m],
        covariance[:m, :m],
        np.asarray(comparable),
        float(left @ left) / df if df else None,
        df,
        _own_variances(left, 1 - np.diag(known_cells), [methods.index(method) for method, _, _ in cells], m),
        tuple((method, seed, float(value)) for (method, seed, _), value in zip(cells, left, strict=True)),
    )


def _own_variances(left: np.ndarray, freedom: np.ndarray, rows: Sequence[int], m: int) -> np.ndarray:
    """Each method's sum of squared residuals over the degrees of freedom that its cells have."""
    squares, parts = (np.bincount(rows, weights, m) for weights in (left**2, freedom))
    return np.divide(squares, parts, out=np.zeros(m), where=parts > 1e-9)


def equal_noise(fitted: Fit) -> float | None:
    """p of Bartlett's test that the methods are equally noisy; None where fewer than two have two seeds and any noise."""
    groups = [[value for name, _, value in fitted.residuals if name == method] for method in fitted.methods]
    groups = [group for group in groups if len(group) > 1 and np.std(group) > 1e-12]
    return float(stats.bartlett(*groups).pvalue) if len(groups) > 1 else None


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
    table: Table, better: str, sampling: Table | None = None, draws: int = 2000, alpha: float = ALPHA, seed: int = 0
) -> Ranking:
    """Order methods, and say which differences stand.

    better: "lower", "higher", or "neither" (then the highest comes first). sampling: standard error of each value from its
    finite number of images. The noise between seeds contains it already, so the larger of the two is used: never a smaller
    noise than the images alone give. ValueError for an empty table.
    """
    fitted = fit(table)
    methods, m = fitted.methods, len(fitted.methods)
    known = [error**2 for row in (sampling or {}).values() for error in row.values()]
    images = float(np.mean(known)) if known else 0.0
    noise = None if fitted.variance is None else np.sqrt(np.maximum(fitted.own, max(fitted.variance, images)))
    pairs = [_pair(table, fitted, i, j, images) for i, j in itertools.combinations(range(m), 2)]
    pairs = [replace(pair, holm=p) for pair, p in zip(pairs, holm([pair.p for pair in pairs]), strict=True)]

    sign = 1 if better == "lower" else -1
    order = sorted(range(m), key=lambda i: (sign * fitted.means[i], methods[i]))
    differ = {frozenset((pair.a, pair.b)) for pair in pairs if pair.holm < alpha}
    ordered = [methods[i] for i in order]
    place = {method: number for number, method in enumerate(ordered)}
    shown = letters(ordered, differ)
    above = {method: sum(frozenset((method, o)) in differ and place[o] < place[method] for o in methods) for method in methods}
    below = {method: sum(frozenset((method, o)) in differ and place[o] > place[method] for o in methods) for method in methods}
    ranks = _bootstrap(fitted, noise, sign, draws, seed) if noise is not None else None
    counts = {method: len(table[method]) for method in methods}
    return Ranking(
        methods=tuple(ordered),
        means=tuple(float(fitted.means[i]) for i in order),
        standard_errors=tuple(None if noise is None else float(noise[i] / math.sqrt(counts[methods[i]])) for i in order),
        letters=tuple(shown[method] for method in ordered),
        ranks=tuple((1 + above[method], m - below[method]) for method in ordered),
        first=tuple(None if ranks is None else float(np.mean(ranks[:, i] == 1)) for i in order),
        rank_intervals=tuple(None if ranks is None else _interval(ranks[:, i]) for i in order),
        pairs=tuple(pairs),
        noise=None if fitted.variance is None else math.sqrt(max(fitted.variance, images)),
        sampling=math.sqrt(images) if known else None,
        df=fitted.df,
        equal_noise=equal_noise(fitted),
        omnibus=_omnibus(fitted, table),
    )


def _pair(table: Table, fitted: Fit, i: int, j: int, images: float) -> Pair:
    a, b = fitted.methods[i], fitted.methods[j]
    common = sorted(set(table[a]) & set(table[b]))
    difference = float(fitted.means[i] - fitted.means[j])
    if fitted.variance is None or not fitted.comparable[i, j]:
        return Pair(a, b, difference, None, -math.inf, math.inf, 1.0, 1.0, len(common), None)
    variance = max(fitted.variance, images, float(fitted.own[i] + fitted.own[j]) / 2)
    error = math.sqrt(variance * (fitted.spread[i, i] + fitted.spread[j, j] - 2 * fitted.spread[i, j]))
    half = float(special.stdtrit(fitted.df, 0.975)) * error
    equal = 1.0 if difference == 0 else 0.0
    p = float(2 * special.stdtr(fitted.df, -abs(difference) / error)) if error > 0 else equal
    flips = sign_flips([table[a][seed] - table[b][seed] for seed in common])
    return Pair(a, b, difference, error, difference - half, difference + half, p, p, len(common), flips)


def _bootstrap(fitted: Fit, noise: np.ndarray, sign: int, draws: int, seed: int) -> np.ndarray:
    """Ranks (draws, methods) of means whose runs get residuals of all runs, drawn anew and scaled to the noise."""
    rng = np.random.default_rng(seed)
    left = np.array([value for _, _, value in fitted.residuals])
    scale = float(np.sqrt(np.mean(left**2)))
    unit = left / scale if scale > 0 else np.array([-1.0, 1.0])
    counts = [sum(name == method for name, _, _ in fitted.residuals) for method in fitted.methods]
    drawn = np.stack([rng.choice(unit, (draws, count)).mean(1) for count in counts], 1)
    return stats.rankdata(sign * (fitted.means + noise * drawn), axis=1, method="ordinal")


def _interval(ranks: np.ndarray) -> tuple[int, int]:
    low, high = np.quantile(ranks, (0.025, 0.975), method="closest_observation")
    return int(low), int(high)


def _omnibus(fitted: Fit, table: Table) -> float | None:
    """p of the F test that all methods are equal, seeds allowed for."""
    if not fitted.df or len(fitted.methods) < 2:
        return None
    seeds = sorted({seed for row in table.values() for seed in row})
    cells = [(seed, value) for row in table.values() for seed, value in row.items()]
    means = {s: np.mean([value for seed, value in cells if seed == s]) for s in seeds}
    without = sum((value - means[seed]) ** 2 for seed, value in cells)
    within = sum(value**2 for _, _, value in fitted.residuals)
    more = len(cells) - len(seeds) - fitted.df
    if more < 1 or within <= 0:
        return None
    return float(stats.f.sf((without - within) / more / (within / fitted.df), more, fitted.df))


def retest(table: Table) -> dict[str, float | int] | None:
    """How well the ranking of one seed agrees with that of another: the mean Spearman correlation over pairs of seeds.

    Spearman and Brown's formula says from it how well the mean over all seeds would agree with that of as many new ones.
    None with fewer than two seeds or three methods.
    """
    seeds = sorted({seed for row in table.values() for seed in row})
    found = []
    for a, b in itertools.combinations(seeds, 2):
        rows = [row for row in table.values() if a in row and b in row]
        if len(rows) > 2:
            value = spearman([row[a] for row in rows], [row[b] for row in rows])
            if value is not None:
                found.append(value)
    if not found:
        return None
    one, s = float(np.mean(found)), len(seeds)
    many = s * one / (1 + (s - 1) * one) if one > 0 else one
    return {"one_seed": one, "all_seeds": many, "seeds": s, "methods": len(table), "pairs": len(found)}


@dataclass(frozen=True)
class Shift:
    """The mean of paired differences of one method, its 95 % interval, p alone and after Holm's correction for all methods."""

    mean: float
    low: float
    high: float
    p: float
    holm: float
    seeds: int


def shifts(differences: Mapping[str, Sequence[float]]) -> dict[str, Shift]:
    """Whether each method's differences are 0 on average; their noise is pooled over the methods. p is 1 where unknown."""
    rows = {name: np.asarray(values, float) for name, values in differences.items() if len(values)}
    df = sum(len(values) - 1 for values in rows.values())
    within = sum(float(((values - values.mean()) ** 2).sum()) for values in rows.values())
    found = {}
    for name, values in rows.items():
        mean, error = float(values.mean()), math.sqrt(within / df / len(values)) if df else math.inf
        half = float(special.stdtrit(df, 0.975)) * error if df else math.inf
        p = float(2 * special.stdtr(df, -abs(mean) / error)) if df and error > 0 else float(not df or mean == 0)
        found[name] = Shift(mean, mean - half, mean + half, p, p, len(values))
    adjusted = holm([shift.p for shift in found.values()])
    return {name: replace(shift, holm=p) for (name, shift), p in zip(found.items(), adjusted, strict=True)}
