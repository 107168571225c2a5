"""Progress bars with the time left, the same everywhere."""

from __future__ import annotations

import sys
from typing import Any
from weakref import WeakSet

from tqdm import tqdm

_BARS: WeakSet[tqdm[Any]] = WeakSet()


class Bar(tqdm):
    """A tqdm that a signal may interrupt while it is made: half made it has nothing to close, yet tqdm's `__del__` tries to."""

    def __del__(self) -> None:
        if hasattr(self, "start_t"):  # what tqdm's constructor sets last
            super().__del__()


def progress_bar(total: int, description: str, unit: str = "img", start: int = 0, enabled: bool = True) -> tqdm[Any]:
    """A bar on standard error; where that is a file, a line every ten seconds in place of many a second."""
    terminal = sys.stderr.isatty()
    bar = Bar(
        total=total,
        initial=start,
        desc=description,
        unit=unit,
        unit_scale=True,
        dynamic_ncols=terminal,
        ncols=None if terminal else 110,
        mininterval=0.2 if terminal else 10,
        maxinterval=10,
        disable=not enabled,
    )
    _BARS.add(bar)
    return bar


def close_bars() -> None:
    """End the line of every bar, so that what is said next has a line of its own."""
    for bar in list(_BARS):
        bar.close()
