"""Progress bars with the time left, the same everywhere."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(total: int, description: str, unit: str = "img", start: int = 0, enabled: bool = True) -> tqdm[Any]:
    """A bar on standard error; where that is a file, a line every ten seconds in place of many a second."""
    terminal = sys.stderr.isatty()
    return tqdm(
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
