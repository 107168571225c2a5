"""The report's plots, as SVG text whose lines and words have the page's own colour, so that they fit dark and light pages."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

INK = "#010203"  # stands for the page's text colour
ACCENTS = ("#2f6fdb", "#d9622b", "#2a9d6f", "#8d5bd1")
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.hashsalt": "lgq",
}


def usage_curve(rank: Sequence[int], count: Sequence[int], size: int, tokens: int) -> str:
    """How often each code occurs, most frequent first, against perfectly even use."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.2, 2.7))
        share = [100 * value / tokens for value in count]
        x = [value + 1 for value in rank]
        axes.fill_between(x, share, color=ACCENTS[0], alpha=0.16, linewidth=0)
        axes.plot(x, share, color=ACCENTS[0], linewidth=1.8, label="measured")
        axes.axhline(100 / size, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.7, label="perfectly even use")
        axes.set_xlim(1, size)
        axes.set_ylim(0)
        axes.set_xlabel("codes, the most frequent first")
        axes.set_ylabel("% of all tokens")
        axes.legend(loc="upper right")
        return as_svg(figure)


def training_curves(runs: Mapping[str, Sequence[tuple[float, float]]], title: str) -> str:
    """One quantity over the images seen, a line per run."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(3.5, 2.1))
        for color, (name, points) in zip(ACCENTS * len(runs), runs.items(), strict=False):
            x, y = zip(*points, strict=True)
            axes.plot(x, y, color=color, linewidth=1.5, label=name, marker="o" if len(points) < 3 else None)
        axes.set_title(title)
        axes.set_xlabel("images seen")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        if len(runs) > 1:
            axes.legend(loc="best")
        return as_svg(figure)


def comparison(
    names: Sequence[str],
    values: Sequence[float],
    errors: Sequence[float | None],
    words: Sequence[str],
    title: str,
    muted: Sequence[bool],
) -> str:
    """One measure of several sets of images as bars with two standard errors, and its value in words; yardsticks are muted."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(3.6, 0.55 + 0.34 * len(names)))
        positions = range(len(names))
        for y, value, error, word, quiet in zip(positions, values, errors, words, muted, strict=True):
            axes.barh(y, value, height=0.62, color=INK if quiet else ACCENTS[0], alpha=0.22 if quiet else 0.85, linewidth=0)
            if error:
                axes.errorbar(value, y, xerr=2 * error, color=INK, linewidth=1, capsize=2)
            end = (max(value, 0) + 2 * (error or 0), y)
            axes.annotate(word, end, xytext=(4, 0), textcoords="offset points", va="center")
        axes.set_yticks(list(positions), list(names))
        axes.invert_yaxis()
        axes.tick_params(length=0)
        axes.xaxis.set_visible(False)
        axes.spines["bottom"].set_visible(False)
        axes.margins(x=0.22)
        axes.set_xlim(left=min(0, *values))
        axes.set_title(title)
        return as_svg(figure)


def _short(value: float) -> str:
    for limit, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:g}{letter}"
    return f"{value:g}"


def as_svg(figure: Figure) -> str:
    """The figure as SVG text for a page: its ink is the page's text colour, its ids are its own."""
    figure.tight_layout(pad=0.6)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)  # the page's own
    # several plots share a page: their ids must not
    unique = f"p{zlib.crc32(text.encode()):08x}-"
    text = re.sub(r'id="', f'id="{unique}', text)
    return re.sub(r"(url\(#|xlink:href=\"#|href=\"#)", rf"\g<1>{unique}", text)
