"""Numbers in sentences."""

from __future__ import annotations


def counted(number: int, what: str, many: str | None = None) -> str:
    """A number of things: 1 seed, 3 seeds, 2 processes; `many`: a plural that neither s nor es makes."""
    plural = many or what + ("es" if what.endswith("s") else "s")
    return f"{number:,} {what if number == 1 else plural}"
