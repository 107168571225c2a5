"""PQ: product quantization (Jegou et al. 2011; in tokenizers XQ-GAN, Li et al. 2024, arXiv 2412.01762)."""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stage1_tokenizer.quantizers.composition import Base, make, summed
from stage1_tokenizer.quantizers.interface import Quantizer, QuantizerOutput


class Product(Quantizer):
    """The channels in `groups` equal blocks, each with a quantizer of its own, of any kind: K = prod K_g.

    `base` is the nested configuration of one block; the dim is `groups` times its dim. Losses are means over the blocks,
    so that mean squared terms stay means over all channels. XQ-GAN supervises its two branches with different features;
    that is a matter of the tokenizer.
    """

    blocks: Sequence[Quantizer]

    def __init__(self, base: Base, groups: int = 2) -> None:
        blocks = [make("Product.base", base) for _ in range(groups)]
        super().__init__(
            sum(block.dim for block in blocks),
            [size for block in blocks for size in block.sizes],
            sum(block.input_dim for block in blocks),
        )
        self.blocks = cast("Sequence[Quantizer]", nn.ModuleList(blocks))

    def forward(self, z: Float[Tensor, "n input_dim"]) -> QuantizerOutput:
        outputs = [block(part) for block, part in zip(self.blocks, self._split(z), strict=True)]
        codes = torch.cat([out.codes for out in outputs], 1)
        indices = torch.cat([out.indices for out in outputs], 1)
        further = tuple(torch.cat(parts, 1) for parts in zip(*(out.further for out in outputs), strict=True))
        return QuantizerOutput(codes, indices, summed([out.losses for out in outputs], 1 / len(outputs)), further)

    def dequantize(self, indices: Int[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        parts = indices.chunk(len(self.blocks), 1)
        return torch.cat([block.dequantize(part) for block, part in zip(self.blocks, parts, strict=True)], 1)

    def initialize(self, z: Float[Tensor, "n input_dim"]) -> None:
        for block, part in zip(self.blocks, self._split(z), strict=True):
            block.initialize(part)

    def anneal(self, progress: float) -> None:
        for block in self.blocks:
            block.anneal(progress)

    def _split(self, z: Float[Tensor, "n input_dim"]) -> tuple[Float[Tensor, "n part"], ...]:
        return tuple(part.contiguous() for part in z.chunk(len(self.blocks), 1))
