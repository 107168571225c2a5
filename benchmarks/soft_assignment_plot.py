"""The plot of `benchmarks.soft_assignment`: reads its result file, measures nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Rows = list[dict[str, Any]]
VECTORS = 4096  # those of the curves over codes, and of rows that do not tell: older results
COLOURS = {"published": "C3", "dense": "C1", "streaming": "C0", "triton": "C4", "nearest": "C2", "product": "0.5"}
DASHES = {1.0: "-", 0.1: "--"}
RANKS = {64: "full rank", 4: "rank 4"}


def draw(result: dict[str, Any], path: Path) -> None:
    """Time and memory over the number of codes, time over that of vectors where there are several, time and skip rate over the
    temperature; one column per kind of data."""
    entries = [{"vectors": VECTORS, **row} for row in result["summary"]]
    sizes = [row for row in entries if row["part"] == "sizes"]
    numbers = {row["vectors"] for row in sizes}
    most = VECTORS if VECTORS in numbers else max(numbers, default=VECTORS)
    counts = {
        codes: len({row["vectors"] for row in sizes if row["codes"] == codes})
        for codes in {row["codes"] for row in sizes} or {0}
    }
    codes = max(sorted(counts), key=lambda number: counts[number])
    figure = Figure(figsize=(11, 16 if counts[codes] > 1 else 12), layout="constrained")
    axes = figure.subplots(4 if counts[codes] > 1 else 3, len(RANKS), squeeze=False)
    for column, (rank, name) in enumerate(RANKS.items()):
        mine = [row for row in sizes if row["rank"] == rank]
        at_most = [row for row in mine if row["vectors"] == most]
        _sizes(axes[0, column], at_most, "codes", lambda row: row["seconds"], "seconds, forward and backward")
        _sizes(axes[1, column], at_most, "codes", lambda row: max(row["peak_mb"], 1), "peak MB beyond the inputs")
        axes[0, column].set_title(f"{name}: {most} vectors, 64 channels")
        if counts[codes] > 1:
            at_codes = [row for row in mine if row["codes"] == codes]
            _sizes(axes[2, column], at_codes, "vectors", lambda row: row["seconds"], f"seconds, {codes:,} codes")
        _schedule(axes[-1, column], [row for row in entries if row["rank"] == rank and row["part"] == "schedule"])
    axes[0, 0].legend(fontsize=8)
    figure.suptitle(f"Soft assignment on {result['device']}", fontsize=10)
    figure.savefig(path, dpi=110)


def _sizes(axis: Axes, rows: Rows, over: str, value: Callable[[dict[str, Any]], float], label: str) -> None:
    for writing, colour in COLOURS.items():
        for temperature, dashes in DASHES.items():
            mine = [row for row in rows if (row["writing"], row["temperature"]) == (writing, temperature)]
            points = sorted((row[over], value(row)) for row in mine)
            if points:
                name = f"{writing}, τ = {temperature:g}"
                axis.loglog(*zip(*points, strict=True), dashes, marker="o", color=colour, label=name)
    axis.set(xlabel=over, ylabel=label)
    axis.grid(alpha=0.3)


def _schedule(axis: Axes, rows: Rows) -> None:
    absolute = sorted((row["tau"], row["seconds"], row["skipped"]) for row in rows if not row["relative"])
    relative = sorted((row["tau"], row["seconds"], row["skipped"]) for row in rows if row["relative"])
    other = axis.twinx()
    for points, marker, name in ((absolute, "o", "τ"), (relative, "x", "τ of lgq's schedule, 1 to 0.05 gaps")):
        if points:
            tau, seconds, skipped = zip(*points, strict=True)
            axis.semilogx(tau, seconds, "-", marker=marker, color="C0", label=f"seconds over {name}")
            other.semilogx(tau, [100 * share for share in skipped], ":", marker=marker, color="C1")
    axis.set(xlabel="τ (16,384 codes)", ylabel="seconds", ylim=(0, None))
    axis.invert_xaxis()
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    other.set_ylabel("% of assignments not computed", color="C1")
