"""All the statistics of a benchmark as one JSON value, of which the report formats the words, the tables and the plots."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from eval.benchmark.answers import answers
from eval.benchmark.caveats import caveats
from eval.benchmark.claims import test_claims
from eval.benchmark.collect import Benchmark
from eval.benchmark.comparisons import ALPHA, Ranking, rank, rank_average, shifts
from eval.benchmark.correlations import pareto, retest, spearman
from eval.benchmark.fits import interaction
from eval.benchmark.predictors import predictors
from eval.benchmark.strata import CHIEF, averaged_over_priors, image_knowledge, means, plain_label, values_of
from eval.results import Metric, Result

FORMAT = "lgq-benchmark-verdict"
VERSION = 1
SECOND = "kid"  # what the ranking is compared with
COSTS = {
    "nominal_bits_per_image": "bits per image",
    "parameters": "parameters of the tokenizer",
    "flops_per_image": "FLOPs of the tokenizer per image",
    "train_seconds": "seconds of training of the tokenizer",
}


def judge(benchmark: Benchmark) -> dict[str, Any]:
    """The verdict: facts, rankings, predictors, claims, effect of the budget, fronts, and the answers in words."""
    values: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "name": benchmark.name,
        "alpha": ALPHA,
        "facts": facts(benchmark),
        "rankings": rankings(benchmark),
        "overall": overall(benchmark),
        "overall_kid": overall(benchmark, SECOND),
        "predictors": predictors(benchmark),
        "claims": test_claims(benchmark),
        "budgets": budgets(benchmark),
        "fronts": fronts(benchmark),
    }
    values["agreement"] = agreement(values["rankings"])
    values = _finite(values)  # what is unknown is None, and the words below say so
    values["caveats"] = caveats(values["facts"])
    values["answers"] = answers(values)
    return values


def facts(benchmark: Benchmark) -> dict[str, Any]:
    """What the numbers stand on, as the result files say."""
    results = [*benchmark.tokenizers.values(), *benchmark.generations.values()]
    generations = list(benchmark.generations.values())
    samples = [result.metrics[CHIEF].n for result in generations if CHIEF in result.metrics]
    shown = [result.metrics[CHIEF] for result in (*generations, *results) if CHIEF in result.metrics]
    training = [record["images"] for result in results for record in result.details.get("training", ()) if "images" in record]
    nominal: dict[str, dict[str, float]] = {}
    for job, result in benchmark.tokenizers.items():
        if "nominal_bits_per_image" in result.metrics:
            nominal.setdefault(f"{job.bits:g}", {})[job.label] = result.metrics["nominal_bits_per_image"].value
    tokenizers = benchmark.tokenizers.values()
    return {
        "labels": list(benchmark.labels),
        "methods": benchmark.methods,
        "bits": list(benchmark.bits),
        "seeds": list(benchmark.seeds),
        "priors": list(benchmark.priors),
        "tokenizers": len(benchmark.tokenizers),
        "generations": len(benchmark.generations),
        "missing": list(benchmark.missing),
        "samples": max(samples, default=None),
        "distance": shown[0].label if shown else None,
        "extractor": results[0].extractor if results else None,
        "reference_images": next((result.reference.get("n") for result in generations or results), None),
        "image_size": next(
            (result.reference.get("image_size") for result in results if "image_size" in result.reference), None
        ),
        "training_images": max(training, default=None),
        "nominal_bits_per_image": nominal,
        "tuning_trials": benchmark.contract.get("tuning_trials"),
        "guidance_at_end": sum(
            result.details["chosen"] == max(point["guidance"] for point in result.details["curve"])
            for result in generations
            if len(result.details.get("curve", ())) > 1
        ),
        "worse_than_blurred": _worse_than_blurred(benchmark, generations),
        "judge_is_loss": any(
            result.extractor.get("sha256") == result.details.get("perceptual_sha256") is not None for result in tokenizers
        ),
        "code_versions": sorted({str(result.versions.get("code")) for result in results}),
        "devices": sorted({str(result.versions.get("device")) for result in results}),
    }


def _worse_than_blurred(benchmark: Benchmark, generations: list[Result]) -> int | None:
    """Priors whose samples are farther from real images than a blurred copy of some; None where there is no yardstick."""
    blurred = benchmark.yardstick and benchmark.yardstick.metrics.get(f"blurred_{CHIEF}")
    if not blurred:
        return None
    return sum(result.metrics[CHIEF].value > blurred.value for result in generations if CHIEF in result.metrics)


def rankings(benchmark: Benchmark) -> list[dict[str, Any]]:
    """A ranking per metric, budget and prior (None: the tokenizers themselves); pairs are kept for FD and KID only."""
    found = []
    for prior in (None, *benchmark.priors):
        for bits in benchmark.bits:
            for name in benchmark.metrics(prior):
                table = benchmark.table(name, bits, prior)
                if table:
                    ranking = _ranking(table, benchmark.methods, name in (CHIEF, SECOND), prior is None)
                    ranking["label"] = plain_label(benchmark, ranking["label"])
                    found.append({"prior": prior, "bits": bits, "metric": name, **ranking})
    return found


def overall(benchmark: Benchmark, metric: str = CHIEF) -> dict[str, Any] | None:
    """One ranking of the methods by their average over these budgets and priors, both fixed; about the average of all methods.

    A distance counts as 100 times its logarithm, so that means are per cent; KID, which may be 0 or less, counts as it is. In
    the ranking are the methods that were measured at every budget; `left_out` are the others. interaction: p that methods
    differ alike at all budgets; orders: the labels by their means at each budget; reversed: pairs of which each is the better
    one somewhere, beyond chance. None with fewer than two methods.
    """
    strata = {bits: averaged_over_priors(benchmark, metric, bits) for bits in benchmark.bits}
    tables = [table for table, _ in strata.values()]
    having = [label for label in benchmark.labels if tables and all(label in table for table in tables)]
    if len(having) < 2:
        return None
    tables = [{label: table[label] for label in having} for table in tables]
    images = [known for _, known in strata.values()]
    ranking = rank_average(tables, "lower", images)
    alone = {f"{bits:g}": rank(table, "lower", known) for bits, table, known in zip(strata, tables, images, strict=True)}
    centre = statistics.fmean(ranking.means)
    rows = _rows(ranking, benchmark.methods)
    for row in rows:
        row["mean"] -= centre
    return {
        "metric": metric,
        "rows": rows,
        "pairs": [asdict(pair) for pair in ranking.pairs],
        "bits": list(strata),
        "priors": list(benchmark.priors),
        "seeds": max(len(row) for table in tables for row in table.values()),
        "left_out": [label for label in benchmark.labels if label not in having],
        "interaction": interaction(tables),
        "orders": {bits: list(found.methods) for bits, found in alone.items()},
        "reversed": _reversed(list(alone.values())),
        **_noise(ranking),
    }


def _reversed(rankings: list[Ranking]) -> list[list[str]]:
    """Pairs of methods that differ beyond chance in one ranking, and the other way round in another."""
    signs: dict[tuple[str, str], set[bool]] = {}
    for pair in (pair for ranking in rankings for pair in ranking.pairs if pair.holm < ALPHA):
        signs.setdefault((pair.a, pair.b), set()).add(pair.difference > 0)
    return [list(pair) for pair, found in signs.items() if len(found) > 1]


def agreement(rankings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Whether KID ranks as the Frechet distance does: rank correlation, leaders, and pairs told apart in opposite ways."""
    found = []
    by_place = {(row["prior"], row["bits"], row["metric"]): row for row in rankings}
    for (prior, bits, metric), first in by_place.items():
        second = by_place.get((prior, bits, SECOND))
        if metric != CHIEF or second is None:
            continue
        ours, theirs = ({row["label"]: row["mean"] for row in ranking["rows"]} for ranking in (first, second))
        both = [label for label in ours if label in theirs]
        signs = [
            {(pair["a"], pair["b"]): pair["difference"] > 0 for pair in ranking["pairs"] if pair["holm"] < ALPHA}
            for ranking in (first, second)
        ]
        opposite = [list(pair) for pair, sign in signs[0].items() if signs[1].get(pair, sign) != sign]
        found.append(
            {
                "prior": prior,
                "bits": bits,
                "spearman": spearman([ours[label] for label in both], [theirs[label] for label in both]),
                "methods": len(both),
                "first": [first["rows"][0]["label"], second["rows"][0]["label"]],
                "best": [[row["label"] for row in ranking["rows"] if row["best"]] for ranking in (first, second)],
                "opposite": opposite,
            }
        )
    return found


def budgets(benchmark: Benchmark) -> list[dict[str, Any]]:
    """What more bits per token change: gFD and rFD at the largest budget minus those at the smallest, over seeds."""
    if len(benchmark.bits) < 2:
        return []
    few, many = benchmark.bits[0], benchmark.bits[-1]
    found = []
    for prior in (None, *benchmark.priors):
        low, high = benchmark.table(CHIEF, few, prior), benchmark.table(CHIEF, many, prior)
        images = (image_knowledge(low, prior is None), image_knowledge(high, prior is None))
        by_bits = {f"{bits:g}": means(benchmark.table(CHIEF, bits, prior)) for bits in benchmark.bits}
        for label, shift in shifts(values_of(low), values_of(high), images).items():
            shown = {bits: row[label] for bits, row in by_bits.items() if label in row}
            found.append({"prior": prior, "label": label, "few": few, "many": many, "means": shown, **asdict(shift)})
    return found


def fronts(benchmark: Benchmark) -> list[dict[str, Any]]:
    """Which methods no other beats in gFD and in a cost at once, per prior; means over seeds."""
    found = []
    for prior in benchmark.priors:
        for name, words in COSTS.items():
            points = []
            for bits in benchmark.bits:
                qualities = means(benchmark.table(CHIEF, bits, prior))
                for label, cost in _costs(benchmark, name, bits).items():
                    if label in qualities:
                        points.append({"label": label, "bits": bits, "cost": cost, "fd": qualities[label]})
            on = pareto([(point["cost"], point["fd"]) for point in points])
            if points:
                points = [point | {"front": front} for point, front in zip(points, on, strict=True)]
                found.append({"prior": prior, "cost": name, "words": words, "points": points})
    return found


def _costs(benchmark: Benchmark, name: str, bits: float) -> dict[str, float]:
    """Mean cost of each label: a metric, or an entry of details["cost"]."""
    found: dict[str, list[float]] = {}
    for job, result in benchmark.tokenizers.items():
        metric = result.metrics.get(name)
        value = metric.value if metric else (result.details.get("cost") or {}).get(name)
        if job.bits == bits and value is not None:
            found.setdefault(job.label, []).append(float(value))
    return {label: statistics.fmean(values) for label, values in found.items()}


def _ranking(table: Mapping[str, Mapping[int, Metric]], methods: Mapping[str, str], chief: bool, same: bool) -> dict[str, Any]:
    example = next(iter(next(iter(table.values())).values()))
    values = values_of(table)
    ranking = rank(values, example.better, image_knowledge(table, same), draws=2000 if chief else 200)
    floors = [metric.floor for row in table.values() for metric in row.values() if metric.floor is not None]
    rows = _rows(ranking, methods, example.better)
    for row in rows:
        row["values"] = {str(seed): value for seed, value in sorted(values[row["label"]].items())}
        row["n"] = max(metric.n for metric in table[row["label"]].values())
    found: dict[str, Any] = {
        "label": example.label,
        "better": example.better,
        "unit": example.unit,
        "n": example.n,
        "floor": statistics.fmean(floors) if floors else None,
        "rows": rows,
        **_noise(ranking),
        "retest": retest(values),
    }
    if chief:
        found["pairs"] = [asdict(pair) for pair in ranking.pairs]
    return found


def _rows(ranking: Ranking, methods: Mapping[str, str], better: str = "lower") -> list[dict[str, Any]]:
    """A row per method; of a measure without a direction none is the best, and places mean nothing."""
    directed = better != "neither"
    best = ranking.best if directed else ()
    return [
        {
            "label": label,
            "method": methods[label],
            "mean": mean,
            "standard_error": error,
            "letters": letters,
            "rank": list(ranks) if directed else None,
            "first": first if directed else None,
            "rank_interval": list(interval) if interval and directed else None,
            "best": label in best,
        }
        for label, mean, error, letters, ranks, first, interval in zip(
            ranking.methods,
            ranking.means,
            ranking.standard_errors,
            ranking.letters,
            ranking.ranks,
            ranking.first,
            ranking.rank_intervals,
            strict=True,
        )
    ]


def _noise(ranking: Ranking) -> dict[str, Any]:
    return {name: getattr(ranking, name) for name in ("noise", "sampling", "df", "equal_noise", "omnibus")}


def _finite(value: Any) -> Any:
    """The value as JSON can hold it: None for what is not finite, lists for tuples."""
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
