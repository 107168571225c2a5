"""What the two stages must agree on: how many tokens an image has, where they sit and how many codes each may take."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

LARGEST = 2**31 - 1  # of an index: stores and files hold 32 bits
MOST_TOKENS = 2**20


@dataclass(frozen=True)
class TokenSpec:
    """The shape and the alphabet of an image's tokens: `t` positions with `d` indices each.

    `sizes[j]` is the number of codes of index j; `scales` the grids (h, w) whose cells, row-major and coarse to fine,
    are the positions; `image_size` the picture's (y, x) in pixels.
    """

    sizes: tuple[int, ...]
    scales: tuple[tuple[int, int], ...]
    image_size: tuple[int, int]

    def __post_init__(self) -> None:
        if not self.sizes or not 1 <= min(self.sizes) <= max(self.sizes) <= LARGEST:
            raise ValueError(f"TokenSpec.sizes: {self.sizes}; every index needs at least one code, and {LARGEST} at most")
        if not self.scales or any(min(scale) < 1 for scale in self.scales) or self.t > MOST_TOKENS:
            raise ValueError(f"TokenSpec.scales: {self.scales}; every grid needs a cell, and all have {MOST_TOKENS} at most")
        if not 1 <= min(self.image_size) <= max(self.image_size) <= MOST_TOKENS:
            raise ValueError(f"TokenSpec.image_size: {self.image_size}; a picture has pixels, and {MOST_TOKENS} a side at most")

    @property
    def d(self) -> int:
        """Indices per position."""
        return len(self.sizes)

    @property
    def t(self) -> int:
        """Positions per image, all scales together."""
        return sum(h * w for h, w in self.scales)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the finest scale."""
        return self.scales[-1]

    @property
    def bits_per_token(self) -> float:
        """Nominal bits of one position: log2 of the number of its codes."""
        return sum(math.log2(size) for size in self.sizes)

    @property
    def bits_per_image(self) -> float:
        """Nominal bits of an image."""
        return self.t * self.bits_per_token

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and integers, for JSON."""
        return {key: _listed(value) for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TokenSpec:
        """The inverse of `to_dict`; ValueError where the values cannot be those of one."""
        try:
            y, x = values["image_size"]
            return cls(
                sizes=tuple(int(size) for size in values["sizes"]),
                scales=tuple((int(h), int(w)) for h, w in values["scales"]),
                image_size=(int(y), int(x)),
            )
        except (ArithmeticError, KeyError, TypeError) as error:
            raise ValueError(f"TokenSpec: {type(error).__name__}: {error}") from None

    def __str__(self) -> str:
        grids = " + ".join(f"{h}x{w}" for h, w in self.scales)
        codes = " x ".join(str(size) for size in self.sizes)
        return f"{grids} tokens of {codes} codes, {self.bits_per_token:.2f} bits per token, {self.bits_per_image:.0f} per image"


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, tuple) else value
