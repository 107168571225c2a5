"""Tables of the page: numbers as a person reads them, with their standard errors and a word on what is good."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eval.results import Metric, Result, ranked

NOTES = {
    "fd": "0 would be equal statistics; two sets of real images differ by the first column already",
    "kid": "unbiased: 0 for images from the same source, at any number of images",
    "is": "clear and varied pictures score high; only the comparison with real images means something",
    "precision": "share of the images that look like some real one",
    "recall": "share of the real images that look like some of these",
    "group_accuracy": "a linear classifier, trained on real crops, names the group that was asked for",
    "class_accuracy": "the same for the exact class",
    "prior_bits": "what the prior needs to write down the tokens of an unseen image; MaskGIT's is an upper bound",
    "psnr": "fidelity of single pixels; each 6 dB halve the error",
    "ssim": "similarity of local structure, 1 for a copy",
    "perceptual": "distance as a network sees it, 0 for a copy",
    "codes_used": "codes that occur at least once",
    "perplexity": "the number of equally frequent codes that would carry as much",
    "bits_per_token": "what a token says about its image on average",
    "bits_per_image": "the same for all tokens of an image",
}


@dataclass(frozen=True)
class Row:
    """A row of a table of numbers: what is measured, and a cell per column; None where a column has not got it."""

    label: str
    better: str
    cells: list[dict[str, Any] | None]
    note: str

    @property
    def counts(self) -> str:
        """How many images or tokens the cells stand on: one number where they agree."""
        found = sorted({cell["n"] for cell in self.cells if cell})
        return " to ".join(f"{n:,}" for n in dict.fromkeys((found[0], found[-1])))


def generation_rows(shown: Mapping[str, Result]) -> list[Row]:
    """A row per measure of the sets of images in these columns; UserError where they were not measured in the same way."""
    columns = list(shown.values())
    names = list(dict.fromkeys(name for result in columns for name in result.metrics))
    rows = []
    for name in names:
        metrics = [result.metrics.get(name) for result in columns]
        found = next(metric for metric in metrics if metric)
        priors = [result for result in columns if result.part == "generation" and name in result.metrics]
        best = ranked(priors, name)[0] if len(priors) > 1 and found.better != "neither" else None
        cells = [
            metric and {**_cell(metric), "best": best is result, "quiet": result.part == "yardstick"}
            for metric, result in zip(metrics, columns, strict=True)
        ]
        rows.append(Row(plain(found.label), found.better, cells, NOTES.get(name, "")))
    return rows


def reconstruction_rows(result: Result) -> list[Row]:
    """A row per measure of a tokenizer."""
    notes = {**NOTES, "fd": "distance of the set to its own originals: 0 for copies, at any number of images"}
    return [Row(metric.label, metric.better, [_cell(metric)], notes.get(name, "")) for name, metric in result.metrics.items()]


def _cell(metric: Metric) -> dict[str, Any]:
    return {"value": number(metric), "error": error(metric), "n": metric.n, "unit": metric.unit}


def plain(label: str) -> str:
    """A generated set's label without its g: the row holds real images too."""
    return label.removeprefix("g") if label.startswith("gF") else label


def number(metric: Metric) -> str:
    """A value to the digit that its standard error leaves certain, or to three; shares as percentages."""
    digits = f"{_scale(metric) * metric.value:.{_decimals(metric)}f}"
    return (digits if float(digits) else digits.removeprefix("-")) + (" %" if _is_share(metric) else "")


def error(metric: Metric) -> str:
    """The standard error in the units and digits of `number`; empty where it is not known."""
    if metric.standard_error is None:
        return ""
    return f"{_scale(metric) * metric.standard_error:.{_decimals(metric)}f}"


def _decimals(metric: Metric) -> int:
    """Decimals that show the error's first digit (two digits where they are 10 … 19), or three digits of the value."""
    error = _scale(metric) * (metric.standard_error or 0)
    if error:
        exponent = math.floor(math.log10(error))
        return max(0, -exponent + (error / 10**exponent < 1.95))
    size = _scale(metric) * abs(metric.value)
    return max(0, 2 - math.floor(math.log10(size))) if size else 0


def _scale(metric: Metric) -> float:
    return 100.0 if _is_share(metric) else 1.0


def _is_share(metric: Metric) -> bool:
    return "accuracy" in metric.label or metric.label in ("Codes used",) or metric.label.startswith(("Precision", "Recall"))
