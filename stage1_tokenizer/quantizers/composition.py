"""Quantizers made of quantizers: what `base: {name: ..., ...}` in a configuration becomes."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from stage1_tokenizer.quantizers.interface import GridQuantizer, Quantizer

Base = Callable[[], Quantizer | GridQuantizer]  # makes a fresh one at every call


def make(place: str, base: Base, residual: bool = False) -> Quantizer:
    """A fresh base quantizer. Raises ValueError where it is no nested configuration, is one of grids, or cannot take
    residuals because its input is more than a code."""
    if not callable(base):
        raise ValueError(f"{place}: {base!r} is no quantizer; give a name and options, as in {{name: vq_ema, ...}}")
    part = base()
    if not isinstance(part, Quantizer):
        raise ValueError(f"{place}: {type(part).__name__} quantizes grids; give a per-vector quantizer")
    if residual and part.input_dim != part.dim:
        raise ValueError(f"{place}: {type(part).__name__} wants {part.input_dim} channels for codes of {part.dim}")
    return part


@torch.no_grad()
def hard_codes(part: Quantizer, z: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    """The codes as in eval mode, recording nothing."""
    training = part.training
    codes = part.eval()(z).codes
    part.train(training)
    return codes


def summed(losses: Sequence[dict[str, Float[Tensor, ""]]], weight: float) -> dict[str, Float[Tensor, ""]]:
    """Every named term summed over the parts, times the weight."""
    return {name: weight * torch.stack([part[name] for part in losses]).sum() for name in losses[0]}


def check_sides(place: str, sides: Sequence[int]) -> None:
    """Raises ValueError where the sides of the scales are not growing numbers of tokens."""
    if list(sides) != sorted(set(sides)) or not sides or sides[0] < 1:
        raise ValueError(f"{place}: {list(sides)}; give increasing numbers of at least 1")


def in_proportion(sides: Sequence[int], grid: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """(h, w) of every scale, the last for the whole grid; a side is rounded up."""
    return tuple((-(-grid[0] * side // sides[-1]), -(-grid[1] * side // sides[-1])) for side in sides)
