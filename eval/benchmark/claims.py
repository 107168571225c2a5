"""The published claims that a benchmark can test, and what it says of them: supported, contradicted or inconclusive, here.

LGQ's paper (arXiv 2602.16086) reports, on ImageNet at 128 px with K = 16384, a better rFID than FSQ and SimVQ with about half
as many active codes as FSQ, from one training each.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from eval.benchmark.collect import Benchmark
from eval.benchmark.comparisons import ALPHA, Pair, Table, holm, rank

SUBJECTS = ("lgq", "lgq_paper")  # quantizers that carry the claims
RIVALS = ("fsq", "simvq")
LARGEST = 100.0  # of the logarithm of a ratio: beyond, nothing is known of it
HALF = (0.4, 0.6)  # what "about half" is taken to mean


@dataclass(frozen=True)
class Claim:
    """One claim at one budget: the number that it is about with a 95 % interval, and the answer.

    kind: "difference" (of rFD, subject minus rival) or "ratio" (of active codes); values: the two means; p: one for the claim
    alone and `holm` for all claims of its kind.
    """

    kind: str
    subject: str
    rival: str
    bits: float
    values: tuple[float, float]
    estimate: float
    low: float
    high: float
    holm: float
    seeds: int
    status: str


def test_claims(benchmark: Benchmark) -> list[dict[str, Any]]:
    """Every claim whose two methods were measured at a budget."""
    found: list[Claim] = []
    for bits in benchmark.bits:
        found += _distances(benchmark, bits)
        found += _codes(benchmark, bits)
    corrected = {}
    for kind in ("difference", "ratio"):
        own = [number for number, claim in enumerate(found) if claim.kind == kind]
        corrected |= dict(zip(own, holm([found[number].holm for number in own]), strict=True))
    return [_answer(claim, corrected[number]) for number, claim in enumerate(found)]


def active_codes(benchmark: Benchmark, bits: float) -> dict[str, dict[int, float]]:
    """How many codes occur: label -> seed -> codes."""
    found: dict[str, dict[int, float]] = {}
    for job, result in benchmark.tokenizers.items():
        usage = result.details.get("usage")
        if job.bits == bits and usage:
            found.setdefault(job.label, {})[job.seed] = float(usage["active"])
    return found


def _distances(benchmark: Benchmark, bits: float) -> list[Claim]:
    metrics = benchmark.table("fd", bits, None)
    if len(metrics) < 2:
        return []
    table = {name: {seed: metric.value for seed, metric in row.items()} for name, row in metrics.items()}
    errors = {name: {seed: metric.standard_error or 0.0 for seed, metric in row.items()} for name, row in metrics.items()}
    claims = []
    for subject, rival, pair in _pairs(benchmark, table, errors):
        values = (_mean(table, subject), _mean(table, rival))
        claims.append(Claim("difference", subject, rival, bits, values, *pair, "inconclusive"))
    return claims


def _codes(benchmark: Benchmark, bits: float) -> list[Claim]:
    table = active_codes(benchmark, bits)
    logarithms = {name: {seed: math.log(max(1, value)) for seed, value in row.items()} for name, row in table.items()}
    claims = []
    for subject, rival, (estimate, low, high, p, seeds) in _pairs(benchmark, logarithms):
        values = (_mean(table, subject), _mean(table, rival))
        ratio = (math.exp(estimate), math.exp(low), math.exp(high) if high < LARGEST else math.inf)
        claims.append(Claim("ratio", subject, rival, bits, values, *ratio, p, seeds, "inconclusive"))
    return claims


def _pairs(
    benchmark: Benchmark, table: Table, sampling: Table | None = None
) -> list[tuple[str, str, tuple[float, float, float, float, int]]]:
    """Subject, rival, and (difference, low, high, p, seeds) of subject minus rival."""
    if len(table) < 2:
        return []
    compared = {frozenset((pair.a, pair.b)): pair for pair in rank(table, "lower", sampling, draws=1).pairs}
    found = []
    for subject in (label for label in table if benchmark.methods[label] in SUBJECTS):
        for rival in (label for label in table if benchmark.methods[label] in RIVALS):
            found.append((subject, rival, _towards(compared[frozenset((subject, rival))], subject)))
    return found


def _towards(pair: Pair, subject: str) -> tuple[float, float, float, float, int]:
    if pair.a == subject:
        return pair.difference, pair.low, pair.high, pair.p, pair.seeds
    return -pair.difference, -pair.high, -pair.low, pair.p, pair.seeds


def _answer(claim: Claim, p: float) -> dict[str, Any]:
    """A difference is decided by its corrected p; "about half" by whether the interval lies inside or outside of `HALF`."""
    status = "inconclusive"
    if claim.kind == "difference" and p < ALPHA:
        status = "supported" if claim.estimate < 0 else "contradicted"
    if claim.kind == "ratio" and HALF[0] <= claim.low and claim.high <= HALF[1]:
        status = "supported"
    if claim.kind == "ratio" and (claim.high < HALF[0] or claim.low > HALF[1]):
        status = "contradicted"
    return {**asdict(claim), "holm": p, "status": status}


def _mean(table: Table, label: str) -> float:
    return sum(table[label].values()) / len(table[label])
