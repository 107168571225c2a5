"""`result.json`: what an evaluation leaves, with everything that a reader needs to compare it, and nothing else to read.

{"format": "lgq-evaluation", "version": 1,
 "name": "MaskGIT", "part": "generation",
 "metrics": {"fd": {"label": "gFD (EfficientNet-Lite0)", "value": 61.2, "standard_error": 0.8, "n": 2048,
                    "floor": 40.3, "better": "lower", "unit": ""}, ...},
 "extractor": {...}, "reference": {...}, "inputs": {...}, "details": {...}, "pictures": {...},
 "recipe": {...}, "versions": {...}, "command": [...], "started": "...", "seconds": 12.3}
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.core.errors import UserError
from pipeline.core.files import read_json, write_json

FORMAT = "lgq-evaluation"
VERSION = 1
FILE = "result.json"
PARTS = ("yardstick", "reconstruction", "tokenizer", "generation")


@dataclass(frozen=True)
class Metric:
    """One number: what it is called, on how many images it stands, how sure it is and what real images score.

    floor: the same measure of real images against real images, the best that can be asked for; None where there is none.
    without_block: the number without each of 20 blocks of the images (image i is in block i modulo 20, and the images have the
    same order for all that are compared), of which the standard error is the jackknife; None where it was not measured so, and
    in files of before.
    """

    label: str
    value: float
    n: int
    better: Literal["lower", "higher", "neither"]
    standard_error: float | None = None
    floor: float | None = None
    unit: str = ""
    without_block: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Result:
    """One evaluated thing.

    part: what was evaluated: a "yardstick" (real images, or a copy of them that is spoilt in a known way), the "reconstruction"
    of a tokenizer (in a benchmark the "tokenizer": this and what else is known of it), or the "generation" of a prior.
    inputs: everything that decides the numbers (hashes, seeds, options); equal inputs need no second evaluation.
    details: what the report shows beside the numbers (code counts, names, steps); pictures: file names beside result.json.
    recipe: all settings that it takes to make it again from the images (`pipeline.reproduce`); empty where a `job.json` beside
    has them, and in files of before.
    """

    name: str
    part: str
    metrics: dict[str, Metric]
    extractor: dict[str, str]
    reference: dict[str, Any]
    inputs: dict[str, Any]
    versions: dict[str, Any]
    command: list[str]
    started: str
    seconds: float
    details: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)


def write_result(folder: Path, result: Result) -> Path:
    """Write a result in one step; its presence says that the part is finished. ValueError for a number that is not finite."""
    for name, metric in result.metrics.items():
        numbers = (metric.value, metric.standard_error or 0.0, metric.floor or 0.0, *(metric.without_block or ()))
        if not all(map(math.isfinite, numbers)):
            raise ValueError(f"{folder / FILE}: {name} is not finite ({metric}); nothing was written")
    path, content = folder / FILE, dataclasses.asdict(result)
    for metric in content["metrics"].values():
        if metric["without_block"] is not None:
            metric["without_block"] = [float(f"{value:.8g}") for value in metric["without_block"]]
    write_json(path, {"format": FORMAT, "version": VERSION, **content})
    return path


def read_result(path: Path) -> Result:
    """Read and check a result file; UserError where it is missing, damaged or not one of ours."""
    values = read_json(path)
    remedy = "delete it and run eval.run again"
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise UserError(f"{path}: not a result file of eval.run; {remedy}")
    if values.get("version") != VERSION:
        raise UserError(f"{path}: result version {values.get('version')}, this code reads {VERSION}; {remedy}")
    known = {entry.name for entry in dataclasses.fields(Result)}
    try:
        fields = {key: value for key, value in values.items() if key not in ("format", "version")}
        metrics = {name: _metric(metric) for name, metric in fields.pop("metrics").items()}
        result = Result(metrics=metrics, **fields)
    except (KeyError, TypeError, ValueError, AttributeError):
        wrong = sorted(known.symmetric_difference(key for key in values if key not in ("format", "version")))
        raise UserError(f"{path}: damaged result file{f' (look at {wrong[0]})' if wrong else ''}; {remedy}") from None
    if result.part not in PARTS:
        raise UserError(f"{path}: part {result.part!r}, wanted one of {', '.join(PARTS)}; {remedy}")
    return result


def find_results(folder: Path) -> dict[Path, Result]:
    """Every result below a folder, by its file; UserError where there is none."""
    paths = sorted(folder.rglob(FILE))
    if not paths:
        raise UserError(f"{folder}: no {FILE} in it; run python -m eval.run first, or give its --out folder")
    return {path: read_result(path) for path in paths}


def is_finished(folder: Path, inputs: dict[str, Any]) -> bool:
    """Whether a folder holds the result of exactly these inputs, with all its pictures; a damaged one is not finished."""
    try:
        result = read_result(folder / FILE)
    except UserError:
        return False
    return result.inputs == inputs and all((folder / name).exists() for name in result.pictures.values())


def ranked(results: Sequence[Result], metric: str) -> list[Result]:
    """The results that have a metric, best first; UserError where they were not measured in the same way."""
    rows = [result for result in results if metric in result.metrics]
    for row in rows[1:]:
        for what, ours, theirs in (
            ("extractor", row.extractor, rows[0].extractor),
            ("reference", row.reference.get("id"), rows[0].reference.get("id")),
            ("number of images", row.metrics[metric].n, rows[0].metrics[metric].n),
            ("label", row.metrics[metric].label, rows[0].metrics[metric].label),
        ):
            if ours != theirs:
                raise UserError(
                    f"{metric}: {rows[0].name} and {row.name} have a different {what}, so they cannot be ranked; "
                    "evaluate both with the same settings"
                )
    sign = -1 if rows and rows[0].metrics[metric].better == "higher" else 1
    return sorted(rows, key=lambda row: sign * row.metrics[metric].value)


def _metric(values: dict[str, Any]) -> Metric:
    metric = Metric(**values)
    if metric.without_block is not None:
        metric = dataclasses.replace(metric, without_block=tuple(map(float, metric.without_block)))
    if not isinstance(metric.value, (int, float)) or not isinstance(metric.n, int) or not isinstance(metric.label, str):
        raise TypeError("a metric needs a label, a number and a count")
    if metric.better not in ("lower", "higher", "neither"):
        raise ValueError(metric.better)
    return metric
