"""Residual FSQ: finite scalar quantization of what the stages before left over (Parker et al. 2024, arXiv 2411.19842)."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stage1_tokenizer.quantizers.estimators import straight_through
from stage1_tokenizer.quantizers.interface import Quantizer, QuantizerOutput
from stage1_tokenizer.quantizers.mixed_radix import pack, radices, unpack


class ResidualFSQ(Quantizer):
    """Stage i rounds the residual over s_i = L^-i to the L values from -1 to 1 (both ends included); codes are summed.

    As in vector-quantize-pytorch's ResidualFSQ, z is softly clamped first, a tanh(z / a) with a = 1 + 1 / (L - 1), and
    stages clamp hard. There every stage passes the whole gradient on, which adds up to `stages` times it; here J is that of
    the soft clamp. One index per stage, coarse to fine.
    """

    radix: Tensor
    level: Tensor
    limit: Tensor
    scales: Tensor

    def __init__(self, levels: Sequence[int], stages: int) -> None:
        if not levels or min(levels) < 2 or stages < 1:
            raise ValueError(f"ResidualFSQ: levels {list(levels)}, stages {stages}; at least 2 levels each, and one stage")
        super().__init__(len(levels), [math.prod(levels)] * stages)
        level = torch.tensor(levels)
        self.register_buffer("radix", radices(levels), persistent=False)
        self.register_buffer("level", level, persistent=False)
        self.register_buffer("limit", 1 + 1 / (level - 1.0), persistent=False)
        self.register_buffer("scales", torch.stack([level.float() ** -i for i in range(stages)]), persistent=False)

    def forward(self, z: Float[Tensor, "n c"]) -> QuantizerOutput:
        clamped = (z / self.limit).tanh() * self.limit
        residual, indices = clamped.detach(), []
        for scale in self.scales:
            steps = ((residual / scale).clamp(-1, 1) + 1) / 2 * (self.level - 1)
            indices.append(pack((steps + 0.5).floor().long(), self.radix))
            residual = residual - self._stage(indices[-1], scale)
        joined = torch.cat(indices, 1)
        return QuantizerOutput(straight_through(clamped, self.dequantize(joined)), joined, {})

    def dequantize(self, indices: Int[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        stages = zip(indices.split(1, 1), self.scales, strict=True)
        return torch.stack([self._stage(index, scale) for index, scale in stages]).sum(0)

    def _stage(self, index: Int[Tensor, "n 1"], scale: Float[Tensor, " c"]) -> Float[Tensor, "n c"]:
        return (2 * unpack(index, self.radix, self.level) / (self.level - 1).to(scale) - 1) * scale
