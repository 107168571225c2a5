"""What a misspelt option gets."""

import difflib
from collections.abc import Iterable


def one_of(place: str, value: str, known: Iterable[str]) -> str:
    """The value, if it is one of the known ones. Raises ValueError with the place, the value and the nearest known one."""
    known = sorted(known)
    if value in known:
        return value
    nearest = difflib.get_close_matches(str(value), known, n=1)
    remedy = f"did you mean {nearest[0]}?" if nearest else f"known: {', '.join(known)}"
    raise ValueError(f"{place}: {value!r} is unknown; {remedy}")
