"""What FSQ and its relatives share: bounded channels, each rounded to a few values."""

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stage1_tokenizer.quantizers.estimators import straight_through
from stage1_tokenizer.quantizers.interface import Quantizer, QuantizerOutput
from stage1_tokenizer.quantizers.mixed_radix import pack, radices, unpack


class ScalarGrid(Quantizer):
    """Channel j is bounded and rounded to one of `levels[j]` integers around 0; the index is the mixed-radix number.

    Codes are the integers over levels[j] // 2, so they lie in [-1, 1]. The levels decide the dim: one channel each.
    """

    radix: Tensor
    level: Tensor
    unit: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__(len(levels), [math.prod(levels)])
        self.register_buffer("radix", radices(levels), persistent=False)
        self.register_buffer("level", torch.tensor(levels), persistent=False)
        self.register_buffer("unit", torch.tensor([float(level // 2) for level in levels]), persistent=False)

    @abstractmethod
    def bound(self, z: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """z squashed so that rounding gives exactly `levels` values per channel."""

    def forward(self, z: Float[Tensor, "n c"]) -> QuantizerOutput:
        bounded = self.bound(z)
        digits = (bounded.detach().round() + self.unit).long()
        indices = pack(digits, self.radix)
        return QuantizerOutput(straight_through(bounded / self.unit, self.dequantize(indices)), indices, {})

    def dequantize(self, indices: Int[Tensor, "n 1"]) -> Float[Tensor, "n c"]:
        return (unpack(indices, self.radix, self.level) - self.unit) / self.unit
