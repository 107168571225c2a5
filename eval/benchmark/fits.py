"""Least squares of method + seed, alone or averaged over strata: pure functions of a table of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from eval.benchmark.image_error import Table

ROUNDING = 1e-10  # residuals below this share of the values are no noise


@dataclass(frozen=True)
class Fit:
    """Least squares of value = method + seed, in one stratum or averaged over several.

    means: of the methods at the average seed, in the order of `methods`; spread: their covariance for noise of variance 1;
    variance: of the noise, on `df` degrees of freedom (None where there are none, or where no two runs differ: then nothing is
    known of it); own, own_df: of each method's runs alone (those of all where it has one run only); residuals: (method, value).
    """

    methods: tuple[str, ...]
    means: np.ndarray
    spread: np.ndarray
    comparable: np.ndarray
    variance: float | None
    df: int
    own: np.ndarray
    own_df: np.ndarray
    residuals: tuple[tuple[str, float], ...]


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
    left = values - design @ beta
    left[np.abs(left) < ROUNDING * np.abs(values).max()] = 0
    contrasts = np.eye(m)[:, None] - np.eye(m)[None]  # (a, b, m)
    whole = np.concatenate([contrasts, np.zeros((m, m, s))], -1)
    # a contrast is known where it is a combination of the rows
    comparable = np.asarray(np.isclose(contrasts @ (inverse @ design)[:m, :], whole, atol=1e-8)).all(-1)
    rows = [methods.index(method) for method, _, _ in cells]
    return _with_noise(
        Fit(
            methods,
            beta[:m],
            (inverse @ inverse.T)[:m, :m],
            np.asarray(comparable),
            None,
            len(cells) - int(np.linalg.matrix_rank(design)),
            np.zeros(m),
            np.bincount(rows, 1 - np.diag(design @ inverse), m),
            tuple((method, float(value)) for (method, _, _), value in zip(cells, left, strict=True)),
        )
    )


def average(fits: Sequence[Fit]) -> Fit:
    """The methods' means over strata of the same methods, each stratum with seeds of its own; the noise is that of all."""
    first, count = fits[0], len(fits)
    if any(fitted.methods != first.methods for fitted in fits):
        raise ValueError("average: the strata have different methods")
    return _with_noise(
        replace(
            first,
            means=np.mean([fitted.means for fitted in fits], 0),
            spread=np.sum([fitted.spread for fitted in fits], 0) / count**2,
            comparable=np.all([fitted.comparable for fitted in fits], 0),
            df=sum(fitted.df for fitted in fits),
            own_df=np.sum([fitted.own_df for fitted in fits], 0),
            residuals=tuple(residual for fitted in fits for residual in fitted.residuals),
        )
    )


def about_their_means(rows: Mapping[str, np.ndarray]) -> Fit:
    """Fit a mean to each method's values alone."""
    methods, m = tuple(rows), len(rows)
    counts = np.array([len(values) for values in rows.values()])
    largest = max(float(np.abs(values).max()) for values in rows.values())
    left = {name: values - values.mean() for name, values in rows.items()}
    residuals = [(name, float(value) if abs(value) >= ROUNDING * largest else 0.0) for name in rows for value in left[name]]
    return _with_noise(
        Fit(
            methods,
            np.array([values.mean() for values in rows.values()]),
            np.diag(1 / counts),
            np.ones((m, m), bool),
            None,
            int(counts.sum()) - m,
            np.zeros(m),
            counts - 1.0,
            tuple(residuals),
        )
    )


def _with_noise(fitted: Fit) -> Fit:
    """The fit with the variances that its residuals and degrees of freedom give."""
    squares = sum(value**2 for _, value in fitted.residuals)
    variance = squares / fitted.df if fitted.df and squares else None
    own = np.array([sum(value**2 for name, value in fitted.residuals if name == method) for method in fitted.methods])
    known = fitted.own_df > 1e-9
    own = np.divide(own, fitted.own_df, out=np.full(len(own), variance or 0.0), where=known)
    return replace(fitted, variance=variance, own=own, own_df=np.where(known, fitted.own_df, fitted.df))


def equal_noise(fitted: Fit) -> float | None:
    """p of Bartlett's test that the methods are equally noisy; None where fewer than two have two seeds and any noise."""
    groups = [[value for name, value in fitted.residuals if name == method] for method in fitted.methods]
    groups = [group for group in groups if len(group) > 1 and np.std(group) > 1e-12]
    return float(stats.bartlett(*groups).pvalue) if len(groups) > 1 else None


def equal_means(fitted: Fit) -> float | None:
    """p of the F test that all methods are equally good; None where one of them cannot be compared."""
    more = len(fitted.methods) - 1
    if fitted.variance is None or more < 1 or not fitted.comparable.all():
        return None
    contrasts = np.eye(more + 1)[1:] - np.eye(more + 1)[0]
    differences = contrasts @ fitted.means
    statistic = differences @ np.linalg.solve(contrasts @ fitted.spread @ contrasts.T, differences) / more / fitted.variance
    return float(stats.f.sf(statistic, more, fitted.df))


def interaction(tables: Sequence[Table]) -> float | None:
    """p of the F test that methods differ by the same in all strata; None for one stratum, or where the noise is unknown."""
    fits = [fit(table) for table in tables]
    whole = average(fits)
    runs: dict[str, dict[int, float]] = {method: {} for method in whole.methods}
    numbers: dict[tuple[int, int], int] = {}  # a seed of one stratum has nothing to do with that of another
    for stratum, table in enumerate(tables):
        for method, row in table.items():
            for seed, value in row.items():
                runs[method][numbers.setdefault((stratum, seed), len(numbers))] = value
    same = fit(runs)
    more = same.df - whole.df
    if more < 1 or whole.variance is None:
        return None
    statistic = ((same.variance or 0.0) * same.df - whole.variance * whole.df) / more / whole.variance
    return float(stats.f.sf(statistic, more, whole.df))
