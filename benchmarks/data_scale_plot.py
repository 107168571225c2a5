"""The plot of `benchmarks.data_scale`: reads its result file, measures nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

PANELS = (
    ("private_mb", "peak of the process's own memory, MB"),
    ("mapped_mb", "pages of files that were read, MB"),
    ("seconds", "seconds"),
)


def draw(result: dict[str, Any], path: Path) -> None:
    """Memory and seconds over the number of images, a curve for each piece of work."""
    rows = result["rows"]
    figure = Figure(figsize=(15, 4.6), layout="constrained")
    axes = figure.subplots(1, len(PANELS))
    for axis, (field, label) in zip(axes, PANELS, strict=True):
        for number, what in enumerate(dict.fromkeys(row["what"] for row in rows)):
            points = sorted((row["images"], row[field]) for row in rows if row["what"] == what)
            axis.plot(*zip(*points, strict=True), marker="o", markersize=4, color=f"C{number}", label=what)
        axis.set(xscale="log", xlabel="images", ylabel=label)
        axis.grid(alpha=0.3)
    axes[0].set_ylim(0, max(250, 1.1 * max(row["private_mb"] for row in rows)))
    axes[2].set_yscale("log")
    axes[0].legend(fontsize=8)
    figure.suptitle(f"From {rows[0]['images']:,} to {rows[-1]['images']:,} images on {result['device']}", fontsize=10)
    figure.savefig(path, dpi=110)
