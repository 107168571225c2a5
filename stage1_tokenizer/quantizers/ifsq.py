"""iFSQ: FSQ under another bound, for levels that a normal latent uses alike (Lin et al. 2026, arXiv 2601.17124)."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from stage1_tokenizer.quantizers.scalar_grid import ScalarGrid


class IFSQ(ScalarGrid):
    """FSQ with 2 sigmoid(1.6 z) - 1 in place of tanh(z), which takes N(0, 1) nearly to U(-1, 1).

    Odd levels, hence no offset. The two outermost values have half an interval each, as in the public code: of 17 levels
    under N(0, 1) they get a quarter of the share of the others, which differ by less than a tenth. Published with 17 levels.
    """

    def __init__(self, levels: Sequence[int]) -> None:
        if not levels or min(levels) < 3 or not all(level % 2 for level in levels):
            raise ValueError(f"IFSQ: levels {list(levels)}; every channel needs an odd number of at least 3")
        super().__init__(list(levels))

    def bound(self, z: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        return (2 * (1.6 * z).sigmoid() - 1) * self.unit
