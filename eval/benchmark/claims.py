"""The published claims that a benchmark can test, and what it says of them: supported, contradicted or inconclusive, here.

LGQ's paper (arXiv 2602.16086) reports, on ImageNet at 128 px with K = 16384 and from one training each, a better rFID than FSQ
and than SimVQ, and about half as many active codes as FSQ; of SimVQ's codes it claims nothing.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from scipy import special

from eval.benchmark.collect import Benchmark
from eval.benchmark.comparisons import ALPHA, Pair, rank
from eval.benchmark.image_error import Images
from eval.benchmark.strata import CHIEF, Values, image_knowledge, values_of

SUBJECTS = ("lgq", "lgq_paper")  # quantizers that carry the claims
RIVALS = {"difference": ("fsq", "simvq"), "ratio": ("fsq",)}
LARGEST = 100.0  # of the logarithm of a ratio: beyond, nothing is known of it
HALF = (0.4, 0.6)  # what "about half" is taken to mean


@dataclass(frozen=True)
class Claim:
    """One claim at one budget: the number that it is about, and the answer.

    kind: "difference" (of rFD, subject minus rival) or "ratio" (of active codes); values: the two means. The intervals of all
    claims of a kind hold together with 95 %, and `p` is adjusted alike (Bonferroni): it is below 0.05 exactly where the
    interval excludes no difference, or the ratio 1. family: how many claims that are.
    """

    kind: str
    subject: str
    rival: str
    bits: float
    values: tuple[float, float]
    estimate: float
    low: float
    high: float
    p: float
    seeds: int
    family: int
    status: str


def test_claims(benchmark: Benchmark) -> list[dict[str, Any]]:
    """Every claim whose two methods were measured at a budget."""
    found: list[dict[str, Any]] = []
    for kind in RIVALS:
        pairs = [(bits, *pair) for bits in benchmark.bits for pair in _pairs(benchmark, kind, bits)]
        found += [asdict(_answer(_claim(kind, *pair, len(pairs)))) for pair in pairs]
    return sorted(found, key=lambda claim: claim["bits"])


def active_codes(benchmark: Benchmark, bits: float) -> Values:
    """How many codes occur: label -> seed -> codes."""
    found: Values = {}
    for job, result in benchmark.tokenizers.items():
        usage = result.details.get("usage")
        if job.bits == bits and usage:
            found.setdefault(job.label, {})[job.seed] = float(usage["active"])
    return found


def _pairs(benchmark: Benchmark, kind: str, bits: float) -> list[tuple[str, str, tuple[float, float], Pair]]:
    """Subject, rival, their means, and the comparison in the scale in which it is tested, either way round."""
    if kind == "difference":
        metrics = benchmark.table(CHIEF, bits, None)
        shown, images = values_of(metrics), image_knowledge(metrics, same=True)
        table = shown
    else:
        shown, images = active_codes(benchmark, bits), Images()
        table = {name: {seed: math.log(max(1, value)) for seed, value in row.items()} for name, row in shown.items()}
    if len(table) < 2:
        return []
    compared = {frozenset((pair.a, pair.b)): pair for pair in rank(table, "lower", images, draws=1).pairs}
    return [
        (subject, rival, (_mean(shown, subject), _mean(shown, rival)), compared[frozenset((subject, rival))])
        for subject in (label for label in table if benchmark.methods[label] in SUBJECTS)
        for rival in (label for label in table if benchmark.methods[label] in RIVALS[kind])
    ]


def _claim(kind: str, bits: float, subject: str, rival: str, values: tuple[float, float], pair: Pair, family: int) -> Claim:
    estimate = pair.difference if pair.a == subject else -pair.difference
    error = pair.standard_error
    half = math.inf if error is None else float(special.stdtrit(pair.df, 1 - ALPHA / family / 2)) * error
    low, high, p = estimate - half, estimate + half, min(1.0, family * pair.p)
    if kind == "ratio":
        low, estimate, high = (math.exp(value) if value < LARGEST else math.inf for value in (low, estimate, high))
    return Claim(kind, subject, rival, bits, values, estimate, low, high, p, pair.seeds, family, "inconclusive")


def _answer(claim: Claim) -> Claim:
    """A difference is decided by whether its interval has 0 in it; "about half" by whether it lies inside or outside `HALF`."""
    status = "inconclusive"
    if claim.kind == "difference" and not claim.low <= 0 <= claim.high:
        status = "supported" if claim.estimate < 0 else "contradicted"
    if claim.kind == "ratio" and HALF[0] <= claim.low and claim.high <= HALF[1]:
        status = "supported"
    if claim.kind == "ratio" and (claim.high < HALF[0] or claim.low > HALF[1]):
        status = "contradicted"
    return replace(claim, status=status)


def _mean(table: Values, label: str) -> float:
    return sum(table[label].values()) / len(table[label])
