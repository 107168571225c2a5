"""Tables of numbers for the statistics: a metric of a stratum (a budget and a prior), with what is known of its images."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from eval.benchmark.collect import Benchmark
from eval.benchmark.image_error import Images
from eval.results import Metric

CHIEF = "fd"  # what tokenizers and priors are ranked by

Metrics = Mapping[str, Mapping[int, Metric]]  # label -> seed -> metric
Values = dict[str, dict[int, float]]


def values_of(table: Metrics) -> Values:
    """The numbers alone."""
    return {label: {seed: metric.value for seed, metric in row.items()} for label, row in table.items()}


def means(table: Metrics) -> dict[str, float]:
    """The mean of each label over its seeds."""
    return {label: statistics.fmean(metric.value for metric in row.values()) for label, row in table.items()}


def plain_label(benchmark: Benchmark, label: str) -> str:
    """A label without the extractor's name, which is the same for all; other words in brackets tell measures apart."""
    names = {result.extractor.get("name") for result in (*benchmark.tokenizers.values(), *benchmark.generations.values())}
    for name in names:
        label = label.replace(f" ({name})", "").replace(f" ({name} probe)", "")
    return label


def image_knowledge(table: Metrics, same: bool) -> Images:
    """What the files say of the images behind these numbers; `same`: all were measured on the same ones."""
    errors = {
        label: {seed: metric.standard_error for seed, metric in row.items() if metric.standard_error is not None}
        for label, row in table.items()
    }
    without = {
        label: {seed: metric.without_block for seed, metric in row.items() if metric.without_block is not None}
        for label, row in table.items()
    }
    return Images(errors, without, same)


def averaged_over_priors(benchmark: Benchmark, metric: str, bits: float) -> tuple[Values, Images]:
    """A metric of samples at a budget, averaged over the priors, of the runs that have all: they share a tokenizer.

    FD as 100 times its logarithm, KID as it is.
    """
    tables = [benchmark.table(metric, bits, prior) for prior in benchmark.priors]
    values: Values = {}
    errors: Values = {}
    without: dict[str, dict[int, Sequence[float]]] = {}
    for label in benchmark.labels:
        for seed in benchmark.seeds:
            found = [_scaled(table[label][seed], metric) for table in tables if seed in table.get(label, {})]
            whole = [entry for entry in found if entry is not None]
            if not whole or len(whole) < len(tables):
                continue
            values.setdefault(label, {})[seed] = statistics.fmean(entry.value for entry in whole)
            known = [entry.standard_error for entry in whole if entry.standard_error is not None]
            if len(known) == len(whole):
                errors.setdefault(label, {})[seed] = math.hypot(*known) / len(whole)
            blocks = [entry.without_block for entry in whole if entry.without_block is not None]
            if len(blocks) == len(whole) and len(set(map(len, blocks))) == 1:
                without.setdefault(label, {})[seed] = [statistics.fmean(block) for block in zip(*blocks, strict=True)]
    return values, Images(errors, without)


def _scaled(metric: Metric, name: str) -> Metric | None:
    """The metric as it is averaged; None where it has no logarithm."""
    if name != CHIEF:
        return metric
    numbers = (metric.value, *(metric.without_block or ()))
    if min(numbers) <= 0:
        return None
    error = None if metric.standard_error is None else 100 * metric.standard_error / metric.value
    logarithms = tuple(100 * math.log(number) for number in numbers)
    without = logarithms[1:] if metric.without_block is not None else None
    return Metric(metric.label, logarithms[0], metric.n, metric.better, error, without_block=without)
