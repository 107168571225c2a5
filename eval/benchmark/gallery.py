"""Pictures of a benchmark side by side: the same images, classes and seeds for every method."""

from __future__ import annotations

from typing import Any

from PIL import Image

from eval.benchmark.answers import prior_name
from eval.benchmark.collect import Benchmark, Job
from eval.figures import grid, picture
from eval.pictures import read_sheet
from eval.results import Result

SHOWN = 8  # tiles of a row
CHECKED = 8  # samples beside their nearest training images


def reconstructions(benchmark: Benchmark) -> list[dict[str, Any]]:
    """For every budget, the originals and below them what each method makes of them; the first seed."""
    found = []
    for bits in benchmark.bits:
        rows: list[dict[str, Any]] = []
        for job, result in _first(benchmark, bits, None).items():
            if "reconstructions" not in result.pictures:
                continue
            layout = result.details["shown"]
            if not rows:
                tiles = _tiles(benchmark, result, "originals", layout["tile"], layout["count"])
                rows.append({"label": None, "picture": picture(grid(tiles[:SHOWN], SHOWN), layout["tile"], "originals")})
            tiles = _tiles(benchmark, result, "reconstructions", layout["tile"], layout["count"])
            rows.append({"label": job.label, "picture": picture(grid(tiles[:SHOWN], SHOWN), layout["tile"], f"by {job.label}")})
        if rows:
            found.append({"bits": bits, "rows": rows})
    return found


def samples(benchmark: Benchmark) -> list[dict[str, Any]]:
    """For every prior, at the largest budget, a row of samples per method: one of each group, equal classes and seeds."""
    found = []
    for prior in benchmark.priors:
        rows: list[dict[str, Any]] = []
        for job, result in _first(benchmark, benchmark.bits[-1], prior).items():
            if "samples" not in result.pictures:
                continue
            layout = result.details["samples"]
            counts = [len(labels) for labels in layout["rows"].values()]
            tiles = _tiles(benchmark, result, "samples", layout["tile"], sum(counts))
            # the first of every group in turn, then the second of each
            order = [
                sum(counts[:group]) + column
                for column in range(max(counts))
                for group in range(len(counts))
                if column < counts[group]
            ]
            chosen = [tiles[place] for place in order[: 2 * SHOWN]]
            alt = f"samples of {prior_name(prior)} on {job.label}"
            rows.append({"label": job.label, "picture": picture(grid(chosen, 2 * SHOWN), layout["tile"], alt)})
        if rows:
            found.append({"prior": prior_name(prior), "bits": benchmark.bits[-1], "rows": rows})
    return found


def memorisation(benchmark: Benchmark) -> list[dict[str, Any]]:
    """For every prior, the samples that lie nearest to a training image, above that image; the first seed."""
    found = []
    for prior in benchmark.priors:
        rows: list[dict[str, Any]] = []
        for job, result in _first(benchmark, benchmark.bits[-1], prior).items():
            if "nearest" not in result.pictures:
                continue
            layout = result.details["nearest"]
            tiles = _tiles(benchmark, result, "nearest", layout["tile"], 2 * layout["count"])
            above, below = tiles[: layout["count"]][:CHECKED], tiles[layout["count"] :][:CHECKED]
            alt = f"samples on {job.label} above their nearest training images"
            share = result.metrics.get("memorised")
            rows.append(
                {
                    "label": job.label,
                    "picture": picture(grid([*above, *below], len(above)), layout["tile"], alt),
                    "share": share,
                }
            )
        if rows:
            found.append({"prior": prior_name(prior), "bits": benchmark.bits[-1], "rows": rows})
    return found


def _first(benchmark: Benchmark, bits: float, prior: str | None) -> dict[Job, Result]:
    """The first seed of each method at a budget."""
    found: dict[str, tuple[Job, Result]] = {}
    for job, result in benchmark.results(prior).items():
        if job.bits == bits:
            found.setdefault(job.label, (job, result))
    return dict(found.values())


def _tiles(benchmark: Benchmark, result: Result, which: str, tile: list[int], count: int) -> list[Image.Image]:
    y, x = tile
    return read_sheet(benchmark.place(result) / result.pictures[which], (y, x), count)
