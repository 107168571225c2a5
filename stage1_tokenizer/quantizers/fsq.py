"""FSQ: finite scalar quantization (Mentzer et al. 2023, arXiv 2309.15505). No codebook, no losses, no parameters."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from stage1_tokenizer.quantizers.scalar_grid import ScalarGrid

# the paper's levels for a budget of about as many codes (its table 1; 1000, 4375, 15360, 64000 codes)
LEVELS = {
    256: (8, 6, 5),
    1024: (8, 5, 5, 5),
    4096: (7, 5, 5, 5, 5),
    16384: (8, 8, 8, 6, 5),
    65536: (8, 8, 8, 5, 5, 5),
}


def chosen_levels(place: str, levels: Sequence[int] | None, codebook_size: int | None) -> list[int]:
    """The levels, given themselves or as a codebook_size of the table. Raises ValueError for neither, both or too few."""
    if (levels is None) == (codebook_size is None):
        raise ValueError(f"{place}: give either levels or codebook_size")
    if codebook_size is not None and codebook_size not in LEVELS:
        known = ", ".join(map(str, LEVELS))
        raise ValueError(f"{place}: codebook_size {codebook_size!r} has no published levels; give levels, or {known}")
    levels = list(levels or LEVELS.get(codebook_size or 0, ()))
    if not levels or min(levels) < 2:
        raise ValueError(f"{place}: levels {list(levels)}; every channel needs at least 2")
    return levels


class FSQ(ScalarGrid):
    """Every channel is bounded by a tanh and rounded to `levels[j]` values; the index is the mixed-radix number.

    Give `levels`, or a `codebook_size` of the paper's table. The levels decide the dim: one channel each. As in the
    paper's code an even number of levels lies half a step off centre, so two levels mean -1 and 0. Float32 throughout:
    rounding in bfloat16 leaves the range.
    """

    def __init__(self, levels: Sequence[int] | None = None, codebook_size: int | None = None) -> None:
        super().__init__(chosen_levels("FSQ", levels, codebook_size))

    def bound(self, z: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """The paper's appendix A.1."""
        half = (self.level - 1).to(z.dtype) * (1 + 1e-3) / 2
        offset = (self.level % 2 == 0).to(z.dtype) / 2
        return (z + (offset / half).atanh()).tanh() * half - offset
