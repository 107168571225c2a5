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
from eval.benchmark.comparisons import ALPHA, rank, retest, shifts
from eval.benchmark.correlations import associate, pareto
from eval.results import Metric, Result

FORMAT = "lgq-benchmark-verdict"
VERSION = 1
CHIEF = "fd"  # what tokenizers and priors are ranked by
# what a tokenizer alone tells, before any prior is trained
PREDICTORS = (
    "psnr",
    "ssim",
    "perceptual",
    "fd",
    "decoded_fd",
    "pfd",
    "codes_used",
    "perplexity",
    "bits_per_token",
)
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
        "predictors": predictors(benchmark),
        "claims": test_claims(benchmark),
        "budgets": budgets(benchmark),
        "fronts": fronts(benchmark),
    }
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
    """A ranking per metric, budget and prior (None: the tokenizers themselves); pairs are kept for the chief metric only."""
    found = []
    for prior in (None, *benchmark.priors):
        for bits in benchmark.bits:
            for name in benchmark.metrics(prior):
                table = benchmark.table(name, bits, prior)
                if table:
                    found.append(
                        {"prior": prior, "bits": bits, "metric": name, **_ranking(table, benchmark.methods, name == CHIEF)}
                    )
    return found


def overall(benchmark: Benchmark) -> dict[str, Any] | None:
    """One ranking over all budgets and priors: how many percent a method's gFD lies above the average of all, as a logarithm.

    A block is a budget and a seed; its priors are averaged, since they share a tokenizer. Methods that change places between
    budgets add to the noise, so what stands here stands for budgets as such. None with fewer than two methods or two blocks.
    """
    logarithms: dict[str, dict[int, float]] = {}
    number = 0
    for bits in benchmark.bits:
        tables = [benchmark.table(CHIEF, bits, prior) for prior in benchmark.priors]
        for seed in benchmark.seeds:
            block = {
                label: statistics.fmean(100 * math.log(table[label][seed].value) for table in tables)
                for label in benchmark.labels
                if tables and all(seed in table.get(label, {}) and table[label][seed].value > 0 for table in tables)
            }
            for label, value in block.items():
                logarithms.setdefault(label, {})[number] = value
            number += 1
    blocks = len({block for row in logarithms.values() for block in row})
    if len(logarithms) < 2 or blocks < 2:
        return None
    ranking = rank(logarithms, "lower")
    centre = statistics.fmean(ranking.means)
    rows = _rows(ranking, benchmark.methods)
    for row in rows:
        row["mean"] -= centre
    return {"rows": rows, "pairs": [asdict(pair) for pair in ranking.pairs], "blocks": blocks, **_noise(ranking)}


def predictors(benchmark: Benchmark) -> list[dict[str, Any]]:
    """How well each measure of the tokenizer ranks the methods as their gFD does, within a budget and prior; best first.

    Signs are turned so that 1 means: the better by the predictor, the better generated.
    """
    found = []
    known = benchmark.metrics(None)
    for prior in (*benchmark.priors, *([None] if len(benchmark.priors) > 1 else [])):  # None: over all priors
        for name in (name for name in PREDICTORS if name in known):
            strata = [(bits, own) for bits in benchmark.bits for own in ([prior] if prior else benchmark.priors)]
            rows = [
                (_means(benchmark.table(name, bits, None)), _means(benchmark.table(CHIEF, bits, own))) for bits, own in strata
            ]
            rows = [(x, y) for x, y in rows if set(x) & set(y)]
            labels = [label for label in benchmark.labels if rows and all(label in x and label in y for x, y in rows)]
            sign = 1 if known[name].better == "lower" else -1
            result = associate(
                [[sign * x[label] for label in labels] for x, _ in rows], [[y[label] for label in labels] for _, y in rows]
            )
            if result:
                own = {"prior": prior, "metric": name, "label": known[name].label, **asdict(result)}
                found.append(own)
    return sorted(found, key=lambda row: (row["prior"] or "", -abs(row["spearman"])))


def budgets(benchmark: Benchmark) -> list[dict[str, Any]]:
    """What more bits per token change: gFD and rFD at the largest budget minus those at the smallest, over seeds."""
    if len(benchmark.bits) < 2:
        return []
    few, many = benchmark.bits[0], benchmark.bits[-1]
    found = []
    for prior in (None, *benchmark.priors):
        low, high = benchmark.table(CHIEF, few, prior), benchmark.table(CHIEF, many, prior)
        differences = {
            label: [high[label][seed].value - low[label][seed].value for seed in sorted(set(low[label]) & set(high[label]))]
            for label in benchmark.labels
            if label in low and label in high
        }
        for label, shift in shifts(differences).items():
            means = {
                f"{bits:g}": value
                for bits in benchmark.bits
                for value in [_mean(benchmark.table(CHIEF, bits, prior).get(label))]
                if value is not None
            }
            found.append({"prior": prior, "label": label, "few": few, "many": many, "means": means, **asdict(shift)})
    return found


def fronts(benchmark: Benchmark) -> list[dict[str, Any]]:
    """Which methods no other beats in gFD and in a cost at once, per prior; means over seeds."""
    found = []
    for prior in benchmark.priors:
        for name, words in COSTS.items():
            points = []
            for bits in benchmark.bits:
                qualities = _means(benchmark.table(CHIEF, bits, prior))
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


def _ranking(table: Mapping[str, Mapping[int, Metric]], methods: Mapping[str, str], chief: bool) -> dict[str, Any]:
    example = next(iter(next(iter(table.values())).values()))
    values = {label: {seed: metric.value for seed, metric in row.items()} for label, row in table.items()}
    sampling = {
        label: {seed: metric.standard_error for seed, metric in row.items() if metric.standard_error is not None}
        for label, row in table.items()
    }
    ranking = rank(values, example.better, sampling, draws=2000 if chief else 200)
    floors = [metric.floor for row in table.values() for metric in row.values() if metric.floor is not None]
    rows = _rows(ranking, methods)
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


def _rows(ranking: Any, methods: Mapping[str, str]) -> list[dict[str, Any]]:
    best = ranking.best
    return [
        {
            "label": label,
            "method": methods[label],
            "mean": mean,
            "standard_error": error,
            "letters": letters,
            "rank": list(ranks),
            "first": first,
            "rank_interval": list(interval) if interval else None,
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


def _noise(ranking: Any) -> dict[str, Any]:
    return {name: getattr(ranking, name) for name in ("noise", "sampling", "df", "equal_noise", "omnibus")}


def _mean(row: Mapping[int, Metric] | None) -> float | None:
    return statistics.fmean(metric.value for metric in row.values()) if row else None


def _means(table: Mapping[str, Mapping[int, Metric]]) -> dict[str, float]:
    return {label: statistics.fmean(metric.value for metric in row.values()) for label, row in table.items()}


def _finite(value: Any) -> Any:
    """The value as JSON can hold it: None for what is not finite, lists for tuples."""
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
