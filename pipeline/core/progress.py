"""Progress bars with the time left, the same everywhere."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


class Bar(tqdm):
    """A tqdm that ends its line even where a signal interrupts its end."""

    def close(self) -> None:
        try:
            super().close()
        except BaseException:
            self.fp.write("\n")  # `close_bars` no longer finds this bar
            raise


def progress_bar(total: int, description: str, unit: str = "img", start: int = 0, enabled: bool = True) -> tqdm[Any]:
    """A bar on standard error; where that is a file, a line every ten seconds in place of many a second."""
    terminal = sys.stderr.isatty()
    return Bar(
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


def close_bars() -> None:
    """End the line of every bar, those of libraries too, so that what is said next has a line of its own.

    To be called while an error that interrupted the making of a bar is being handled: the error's frames hold the half-made
    bar, which tqdm's `__del__` would fail to close, past every `except`.
    """
    for bar in list(tqdm._instances):  # pyright: ignore[reportAttributeAccessIssue]  # where a bar is from its first moment on
        if hasattr(bar, "start_t"):  # what tqdm's constructor sets last
            bar.close()
            continue
        bar.disable = True  # nothing is left for `__del__`
        if hasattr(bar, "sp"):  # it may have been drawn
            bar.fp.write("\n")
