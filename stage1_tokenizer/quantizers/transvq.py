"""TransVQ: a frozen codebook under a small transformer (code: CAIR-LAB-WFUSM/NS-VQ-TransVQ)."""

import torch
from torch import Tensor, nn

from stage1_tokenizer.quantizers.mapped_codebook import Block, MappedCodebook
from stage1_tokenizer.quantizers.precision import full_precision


class TransVQ(MappedCodebook):
    """E = P_out LN(T(P_in B + pos)), B ~ N(0, 1/c) a constant, pos one learned row per code, T a block of linear attention.

    The losses are SimVQ's, the gradient of z is straight-through: the published ImageNet configuration turns the rotation
    trick off. There depth 1, width 256, one head, MLP ratio 2. A step costs O(K width^2), and so does decoding.
    """

    frozen: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        width: int = 256,
        depth: int = 1,
        heads: int = 1,
        mlp_ratio: float = 2.0,
        commitment_weight: float = 0.25,
    ) -> None:
        super().__init__(dim, [codebook_size])
        self.commitment_weight = commitment_weight
        self.register_buffer("frozen", torch.randn(codebook_size, dim) * dim**-0.5)
        self.inward = nn.Linear(dim, width, bias=False)
        self.positions = nn.Parameter(torch.randn(codebook_size, width))
        self.blocks = nn.Sequential(*(Block(width, heads, mlp_ratio, linear=True) for _ in range(depth)))
        self.outward = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim, bias=False))

    def book(self) -> Tensor:
        with full_precision(self.frozen.device):
            return self.outward(self.blocks(self.inward(self.frozen) + self.positions))
