"""What the finite number of images leaves unknown of a comparison: pure functions of values without some of the images.

A value of a run is a statistic of n images. Runs that are measured on the same images share their peculiarities: what is the
same for both methods leaves a difference, and what is the same for all seeds of one method is not averaged out by more seeds.
The delete-one-block jackknife of the difference itself (Efron & Stein 1981) sees both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

Table = Mapping[str, Mapping[int, float]]  # method -> seed -> value
BLOCKS = 20  # of images, where it is not known


@dataclass(frozen=True)
class Images:
    """What is known of the images behind a table of values.

    errors: standard error of each value alone; without_block: each value without one block of the images in turn, the same
    blocks for all; same: whether all runs were measured on the same images (reconstructions) or each on its own (samples),
    which decides only where blocks are lacking.
    """

    errors: Table = field(default_factory=dict)
    without_block: Mapping[str, Mapping[int, Sequence[float]]] = field(default_factory=dict)
    same: bool = False


@dataclass(frozen=True)
class Term:
    """One signed summand of a comparison within a stratum: the mean of a method over its seeds."""

    sign: float
    method: str
    images: Images


@dataclass(frozen=True)
class ImagePart:
    """Variances of a comparison that are due to images, on `df` degrees of freedom.

    own: of what each run has for itself, which the noise between seeds contains already; common: of what all seeds have in
    common, which it does not contain.
    """

    own: float = 0.0
    common: float = 0.0
    df: int = BLOCKS - 1


def jackknife(without: np.ndarray) -> float:
    """The variance of a statistic from its delete-one-block values (Efron & Stein 1981, equation 1.1)."""
    blocks = len(without)
    return float((blocks - 1) / blocks * np.square(without - without.mean()).sum())


def image_part(strata: Sequence[Sequence[Term]]) -> ImagePart:
    """Of the sum of a stratum's terms, averaged over strata.

    With blocks: the jackknife of the averaged difference is the whole; the own part is what the differences of single seeds
    scatter about their mean, and the common part the rest. Without, a bound that takes the methods' errors as independent of
    each other, and of the same images as the same for all seeds. Where nothing is known both are 0: the comparison is then of
    these images alone.
    """
    paired = [_paired(terms) for terms in strata]
    runs = [rows for rows in paired if rows is not None]
    if not runs or len(runs) < len(paired) or len({rows.shape[1] for rows in runs}) > 1:
        return _unpaired(strata)
    count = len(runs)
    own = sum(_scatter(rows) for rows in runs) / count**2
    whole = jackknife(np.mean([rows.mean(0) for rows in runs], 0))
    return ImagePart(own, max(0.0, whole - own), runs[0].shape[1] - 1)


def mean_without_block(strata: Sequence[Images], method: str) -> np.ndarray | None:
    """A method's mean over seeds and strata without each block; None where a stratum lacks it."""
    paired = [_paired([Term(1.0, method, images)]) for images in strata]
    runs = [rows.mean(0) for rows in paired if rows is not None]
    return np.mean(runs, 0) if len(runs) == len(paired) and len({len(run) for run in runs}) == 1 else None


def _paired(terms: Sequence[Term]) -> np.ndarray | None:
    """The sum of the terms without each block (seeds, blocks), of the seeds that all have; None where there is none."""
    having = [set(term.images.without_block.get(term.method, {})) for term in terms]
    seeds = sorted(set.intersection(*having))
    rows = [[np.asarray(term.images.without_block[term.method][seed]) for term in terms] for seed in seeds]
    if not rows or len({len(values) for row in rows for values in row}) > 1:
        return None
    signs = np.array([term.sign for term in terms])
    return np.array([signs @ np.array(row) for row in rows])


def _scatter(rows: np.ndarray) -> float:
    """The variance of a mean over seeds that is due to what images do in single seeds; 0 for one seed, where all is common."""
    seeds = len(rows)
    if seeds < 2:
        return 0.0
    return sum(jackknife(row) for row in rows - rows.mean(0)) / (seeds - 1) / seeds


def _unpaired(strata: Sequence[Sequence[Term]]) -> ImagePart:
    count = len(strata)
    own, common = 0.0, {}
    for terms in strata:
        for place, term in enumerate(terms):
            errors = np.array([*term.images.errors.get(term.method, {}).values()], float)
            if not len(errors):
                continue
            variance = float(np.mean(errors**2))
            if term.images.same:
                common[place] = common.get(place, 0.0) + variance**0.5 / count
            else:
                own += variance / len(errors) / count**2
    return ImagePart(own, sum(error**2 for error in common.values()))
