"""The plots of a benchmark: every method keeps its colour and its marker, and every mean its error."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from eval.plots import INK, STYLE, as_svg

# of middle lightness, so that they stand on light and dark paper
COLORS = (
    "#2f6fdb",
    "#d9622b",
    "#2a9d6f",
    "#8d5bd1",
    "#c2478f",
    "#b3891a",
    "#1f97ad",
    "#7d8894",
    "#a0553a",
    "#6d9426",
    "#5a63c7",
    "#c24a4a",
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
SMALL, LARGE = (3.55, 2.5), (5.2, 3.6)
FEW = 4  # values of an axis that are its ticks
DPI = 130  # of clouds of points, which are pictures inside the plot

Series = Mapping[str, Sequence[tuple[float, float, float | None]]]  # label -> (x, y, standard error of y)


def colors(labels: Sequence[str]) -> dict[str, str]:
    """A colour for every method, by its place in the list."""
    return {label: COLORS[number % len(COLORS)] for number, label in enumerate(labels)}


@dataclass(frozen=True)
class Ranked:
    """A ranking as it is drawn: `rows` from best to worst, and what real images score."""

    rows: Sequence[Mapping[str, Any]]
    title: str
    floor: float | None


def ranking(ranked: Ranked, color: Mapping[str, str], margin: float) -> str:
    """Methods from best to worst: each seed a dot, a line with `margin` standard errors at the mean, the letters of its
    group.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(SMALL[0], 0.8 + 0.27 * len(ranked.rows)))
        _draw_ranking(axes, ranked, color, margin)
        return as_svg(figure)


def overview(rankings: Sequence[Sequence[Ranked | None]], color: Mapping[str, str], margin: float) -> bytes:
    """Rows of rankings as one PNG picture, for a page that takes no SVG; those of a column share their axis."""
    with plt.rc_context(STYLE):
        most = max(len(ranked.rows) for row in rankings for ranked in row if ranked)
        size = (3.9 * len(rankings[0]), (0.75 + 0.25 * most) * len(rankings))
        figure, grid = plt.subplots(len(rankings), len(rankings[0]), figsize=size, sharex="col", squeeze=False)
        for axes, ranked in zip(grid.flat, (ranked for row in rankings for ranked in row), strict=True):
            if ranked is None:
                axes.set_axis_off()
            else:
                _draw_ranking(axes, ranked, color, margin)
                axes.tick_params(axis="x", labelbottom=True)
        figure.tight_layout(pad=0.8, w_pad=2.5)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=2 * DPI, facecolor="white", metadata={"Software": None})
        plt.close(figure)
    return buffer.getvalue()


def _draw_ranking(axes: Axes, ranked: Ranked, color: Mapping[str, str], margin: float) -> None:
    for y, row in enumerate(ranked.rows):
        own, values = color[row["label"]], [*row["values"].values()]
        axes.plot(values, [y] * len(values), "o", color=own, markersize=4, alpha=0.4, markeredgewidth=0)
        error = margin * (row["standard_error"] or 0) or None
        style = {"color": own, "markersize": 9, "markeredgewidth": 1.8, "capsize": 2.5, "linewidth": 1.4}
        axes.errorbar(row["mean"], y, xerr=error, fmt="|", **style)
        axes.annotate(row["letters"], (1, y), xycoords=("axes fraction", "data"), va="center", ha="left", fontsize=8)
    if ranked.floor is not None:
        axes.set_xlabel(f"real images: {ranked.floor:.3g}", fontsize=8)
    axes.set_yticks(range(len(ranked.rows)), [row["label"] for row in ranked.rows])
    axes.set_ylim(len(ranked.rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=INK, alpha=0.1, linewidth=0.6)
    axes.set_title(ranked.title)


def scatter(
    points: Sequence[Mapping[str, Any]], x: str, y: str, title: str, color: Mapping[str, str], log: bool = False
) -> str:
    """Two measures of methods with two standard errors each; a marker per budget; points on the front are joined by a line."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=SMALL if log else LARGE)
        budgets = sorted({point["bits"] for point in points})
        for point in points:
            own = color[point["label"]]
            marker = MARKERS[budgets.index(point["bits"]) % len(MARKERS)]
            axes.errorbar(
                point["x"],
                point["y"],
                xerr=2 * point["x_error"] if point.get("x_error") else None,
                yerr=2 * point["y_error"] if point.get("y_error") else None,
                fmt=marker,
                color=own,
                markersize=6,
                linewidth=1,
                capsize=0,
            )
            if not log:
                place = {"xytext": (6, 4), "textcoords": "offset points"}
                axes.annotate(point["label"], (point["x"], point["y"]), fontsize=7.5, color=own, **place)
        front = sorted((point["x"], point["y"]) for point in points if point.get("front"))
        if front:
            axes.plot(*zip(*front, strict=True), color=INK, linewidth=1, alpha=0.5, drawstyle="steps-post", zorder=0)
        places = sorted({point["x"] for point in points})
        if log and 0 < 4 * places[0] < places[-1]:
            axes.set_xscale("log", base=2)
        if len(places) <= FEW:
            axes.set_xticks(places)
            axes.set_xticks([], minor=True)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.set_title(title)
        if len(budgets) > 1:
            for number, bits in enumerate(budgets):
                axes.plot([], [], MARKERS[number % len(MARKERS)], color=INK, alpha=0.6, markersize=5, label=f"{bits:g} bits")
            axes.legend(loc="best", fontsize=7.5)
        axes.margins(0.1)
        return as_svg(figure)


def lines(
    series: Series, title: str, x: str, y: str, color: Mapping[str, str], log: bool = False, marker: str | None = "o"
) -> str:
    """A line per method, with a standard error where there is one."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=SMALL)
        for label, points in series.items():
            at, values, errors = zip(*points, strict=True)
            axes.plot(at, values, color=color[label], linewidth=1.4, marker=marker, markersize=3)
            if any(errors):
                low = [value - (error or 0) for value, error in zip(values, errors, strict=True)]
                high = [value + (error or 0) for value, error in zip(values, errors, strict=True)]
                axes.fill_between(at, low, high, color=color[label], alpha=0.15, linewidth=0)
        if log:
            axes.set_yscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axes.set_title(title)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        return as_svg(figure)


def forest(rows: Sequence[Mapping[str, Any]], title: str) -> str:
    """Rank correlations with their intervals; 0 is chance."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(SMALL[0], 0.9 + 0.25 * len(rows)))
        for number, row in enumerate(rows):
            low, high = row["spearman_interval"]
            sure = low > 0 or high < 0
            axes.plot([low, high], [number] * 2, color=COLORS[0] if sure else INK, alpha=1 if sure else 0.4, linewidth=1.6)
            axes.plot(row["spearman"], number, "o", color=COLORS[0] if sure else COLORS[7], markersize=5)
        axes.axvline(0, color=INK, linewidth=0.8, alpha=0.6)
        axes.set_xlim(-1.05, 1.05)
        axes.set_yticks(range(len(rows)), [row["label"] + " (\u00b1)" * (row["better"] == "neither") for row in rows])
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color=INK, alpha=0.1, linewidth=0.6)
        axes.set_xlabel("Spearman's \u03c1 with gFD, 95 % interval")
        axes.set_title(title)
        return as_svg(figure)


def geometry(value: Mapping[str, Any], title: str) -> str:
    """Latents as a grey cloud, and the codes among them: the darker and larger, the more often used; crosses are never used."""
    with plt.rc_context({**STYLE, "savefig.dpi": DPI}):
        figure, axes = plt.subplots(figsize=(2.5, 2.5))
        _cloud(axes, value["latents"], s=4, color="#8b949e", alpha=0.4)
        used = [(point, count) for point, count in zip(value["codes"], value["count"], strict=True) if count]
        unused = [point for point, count in zip(value["codes"], value["count"], strict=True) if not count]
        if used:
            most = max(count for _, count in used)
            share = [(count / most) ** 0.5 for _, count in used]
            _cloud(axes, [point for point, _ in used], c=share, cmap="plasma", s=[5 + 25 * part for part in share], alpha=0.9)
        _cloud(axes, unused, s=8, marker="x", color="#c24a4a", linewidth=0.6, alpha=0.8)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_aspect("equal", "datalim")
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        axes.set_title(title)
        return as_svg(figure)


def gersho(value: Mapping[str, Any], title: str, color: str) -> str:
    """Volume of each code's cell against the density of latents there, with the line found and the one theory expects."""
    with plt.rc_context({**STYLE, "savefig.dpi": DPI}):
        figure, axes = plt.subplots(figsize=(2.5, 2.4))
        x, y = value["log_density"], value["log_volume"]
        _cloud(axes, list(zip(x, y, strict=True)), s=4, color=color, alpha=0.5)
        middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
        for slope, style in ((value["slope"], "-"), (value["expected_slope"], (0, (4, 3)))):
            if slope is not None:
                ends = [min(x), max(x)]
                axes.plot(ends, [middle_y + slope * (end - middle_x) for end in ends], color=INK, linewidth=1, linestyle=style)
        axes.set_xlabel("log density")
        axes.set_ylabel("log volume")
        axes.set_title(title)
        return as_svg(figure)


def short(value: float) -> str:
    """A number for an axis: 1.5k, 20M."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.3g}"


def _cloud(axes: Axes, points: Sequence[Sequence[float]], **style: Any) -> None:
    if points:
        x, y = zip(*points, strict=True)
        axes.scatter(x, y, rasterized=True, linewidths=style.pop("linewidth", 0), **style)
