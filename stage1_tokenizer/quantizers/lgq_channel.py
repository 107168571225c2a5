"""LGQ per channel: every scalar channel has its own few learnable levels (the public code's MultiBinDiscretizerFair)."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stage1_tokenizer.quantizers.fsq import chosen_levels
from stage1_tokenizer.quantizers.interface import Quantizer, QuantizerOutput
from stage1_tokenizer.quantizers.lgq import LGQ
from stage1_tokenizer.quantizers.mixed_radix import pack, radices, unpack


class LGQChannel(Quantizer):
    """Channel j is a scalar LGQ of `levels[j]` codes; losses are means over channels, the index is the mixed-radix number.

    Give `levels`, or a `codebook_size` of FSQ's table: FSQ's grid, whose places are learned where FSQ fixes them. The
    levels decide the dim, one channel each. The public "fair" mode puts a 1x1 convolution before and after, which is the
    tokenizer's projection here, and starts from levels evenly spaced over the data. Ours, as in `lgq`: k-means per channel,
    temperatures in gaps, the other repairs. The options are those of `lgq`.
    """

    radix: Tensor
    level: Tensor

    def __init__(
        self,
        levels: Sequence[int] | None = None,
        codebook_size: int | None = None,
        temperature_start: float = 1.0,
        temperature_end: float = 0.05,
        straight_through_weight: float = 1.0,
        commitment_weight: float = 0.25,
        peak_weight: float = 0.005,
        usage_weight: float = 0.005,
        revive_below: float = 0.1,
    ) -> None:
        levels = chosen_levels("LGQChannel", levels, codebook_size)
        super().__init__(len(levels), [math.prod(levels)])
        self.register_buffer("radix", radices(levels), persistent=False)
        self.register_buffer("level", torch.tensor(levels), persistent=False)
        self.channels = nn.ModuleList(
            LGQ(
                1,
                level,
                temperature_start,
                temperature_end,
                straight_through_weight=straight_through_weight,
                commitment_weight=commitment_weight,
                peak_weight=peak_weight,
                usage_weight=usage_weight,
                revive_below=revive_below,
            )
            for level in levels
        )

    def forward(self, z: Float[Tensor, "n c"]) -> QuantizerOutput:
        parts = [channel(x) for channel, x in zip(self.channels, z.split(1, 1), strict=True)]
        losses = {name: torch.stack([part.losses[name] for part in parts]).mean() for name in parts[0].losses}
        indices = pack(torch.cat([part.indices for part in parts], 1), self.radix)
        return QuantizerOutput(torch.cat([part.codes for part in parts], 1), indices, losses)

    def dequantize(self, indices: Int[Tensor, "n 1"]) -> Float[Tensor, "n c"]:
        digits = unpack(indices, self.radix, self.level).split(1, 1)
        return torch.cat([channel.dequantize(digit) for channel, digit in zip(self.channels, digits, strict=True)], 1)  # pyright: ignore[reportCallIssue]

    def initialize(self, z: Float[Tensor, "n c"]) -> None:
        for channel, x in zip(self.channels, z.split(1, 1), strict=True):
            channel.initialize(x)  # pyright: ignore[reportCallIssue]

    def anneal(self, progress: float) -> None:
        for channel in self.channels:
            channel.anneal(progress)  # pyright: ignore[reportCallIssue]
