"""Whether what a tokenizer tells before any prior is trained, or what a prior tells before it samples, predicts its samples."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from eval.benchmark.collect import Benchmark
from eval.benchmark.correlations import associate
from eval.benchmark.strata import CHIEF, means, plain_label
from eval.results import Result

OF_PRIORS = ("prior_bits_per_image",)  # known before anything is sampled
OF_CURVE = ("pfd", "pfd_increase")  # one share of a curve that is taken whole


def predictors(benchmark: Benchmark) -> list[dict[str, Any]]:
    """How well each measure ranks the methods as their gFD does, within a budget and prior; best first, over all measured.

    A measure with a direction is turned so that 1 means: the better by it, the better generated. One without (better:
    "neither") keeps its own sign: 1 means that gFD is the higher the more there is of it. Constant measures are left out.
    """
    found = []
    curves = _curves(benchmark)
    known = {
        name: (metric.label, metric.better)
        for name, metric in benchmark.metrics(None).items()
        if not (curves and name in OF_CURVE)
    }
    known |= {name: (label, "lower") for (name, label) in dict.fromkeys((name, label) for name, label, _ in curves)}
    for prior in (*benchmark.priors, *([None] if len(benchmark.priors) > 1 else [])):  # None: over all priors
        strata = [(bits, own) for bits in benchmark.bits for own in ([prior] if prior else benchmark.priors)]
        of_priors = {
            name: (metric.label, metric.better)
            for _, own in strata
            for name, metric in benchmark.metrics(own).items()
            if name in OF_PRIORS
        }
        for name, (label, better) in (known | of_priors).items():
            rows = [
                (_measured(benchmark, curves, name, bits, own), means(benchmark.table(CHIEF, bits, own)))
                for bits, own in strata
            ]
            rows = [(x, y) for x, y in rows if set(x) & set(y)]
            methods = [method for method in benchmark.labels if rows and all(method in x and method in y for x, y in rows)]
            sign = -1 if better == "higher" else 1
            result = associate(
                [[sign * x[method] for method in methods] for x, _ in rows],
                [[y[method] for method in methods] for _, y in rows],
            )
            if result:
                found.append(
                    {"prior": prior, "metric": name, "label": plain_label(benchmark, label), "better": better, **asdict(result)}
                )
    return sorted(found, key=lambda row: (row["prior"] or "", -abs(row["spearman"])))


Curves = Mapping[tuple[str, str, float], Mapping[str, float]]  # (name, label, bits) -> label of the method -> mean over seeds


def _curves(benchmark: Benchmark) -> Curves:
    """pFD at every share of spoilt tokens, and how far it lies above that of none."""
    found: dict[tuple[str, str, float], dict[str, list[float]]] = {}
    for job, result in benchmark.tokenizers.items():
        for name, label, value in _of_shares(result):
            found.setdefault((name, label, job.bits), {}).setdefault(job.label, []).append(value)
    return {key: {label: statistics.fmean(values) for label, values in row.items()} for key, row in found.items()}


def _of_shares(result: Result) -> list[tuple[str, str, float]]:
    points = {point["share"]: point["fd"] for point in result.details.get("pfd") or ()}
    values = []
    for share in (share for share in points if share):
        words = f"{100 * share:g} % of the tokens replaced"
        values.append((f"pfd {share:g}", f"pFD, {words}", points[share]))
        if 0 in points:
            values.append((f"pfd_increase {share:g}", f"Increase of pFD, {words}", points[share] - points[0]))
    return values


def _measured(benchmark: Benchmark, curves: Curves, name: str, bits: float, prior: str) -> Mapping[str, float]:
    """Means over seeds of a measure, by label."""
    for (known, _, at), row in curves.items():
        if (known, at) == (name, bits):
            return row
    return means(benchmark.table(name, bits, prior if name in OF_PRIORS else None))
