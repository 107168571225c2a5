"""What quantizers share that replace the error, q - z, by a vector as long in a direction of their own."""

from abc import abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_tokenizer.quantizers.codebooks import Replacement
from stage1_tokenizer.quantizers.estimators import step_along
from stage1_tokenizer.quantizers.interface import Quantizer, QuantizerOutput
from stage1_tokenizer.quantizers.nearest import nearest_codes
from stage1_tokenizer.quantizers.noise import Noise


class ReplacedError(Quantizer):
    """In train mode q = z + |z - e_{k*}| u, u a unit vector without gradient; in eval mode q = e_{k*}. No losses.

    z and codes learn from this expression's gradient alone. `replace_every` steps, codes with less than `replace_below` of
    a fair share of the vectors move next to used ones.
    """

    def __init__(self, dim: int, codebook_size: int, replace_every: int, replace_below: float) -> None:
        super().__init__(dim, [codebook_size])
        self.codebook = nn.Parameter(torch.randn(codebook_size, dim))
        self.replacement = Replacement(codebook_size, replace_every, replace_below)
        self.noise = Noise()

    @abstractmethod
    def direction(self, error: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """Where u points, given e_{k*} - z."""

    def forward(self, z: Float[Tensor, "n c"]) -> QuantizerOutput:
        index = nearest_codes(z, self.codebook)
        codes = F.embedding(index, self.codebook)
        if self.training:
            self.replacement.record(index)
            codes = step_along(z, codes, self.direction(codes - z))
        return QuantizerOutput(codes, index[:, None], {})

    def dequantize(self, indices: Int[Tensor, "n 1"]) -> Float[Tensor, "n c"]:
        return F.embedding(indices[:, 0], self.codebook)

    def anneal(self, progress: float) -> None:
        self.replacement.update(self.codebook)
