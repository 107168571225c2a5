"""FVQ: VQBridge, a vision transformer over the codebook laid out as an image (code: yfChang-cv/FVQ)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_tokenizer.quantizers.mapped_codebook import Block, MappedCodebook
from stage1_tokenizer.quantizers.precision import full_precision


class FVQ(MappedCodebook):
    """E = bridge(E_raw): E_raw, trained, from U(-1/K, 1/K), is an image of sqrt(K) x sqrt(K) pixels and c channels; patches,
    sine positions, `depth` transformer blocks, a norm, a linear layer back to the patches' pixels. Losses as in `vq`.

    The public code's "L/4": patch 4, two blocks, width 256 in 4 heads, MLP ratio 2. Sides that are no multiple of the
    patch are rounded up, and codes beyond K left out (INFERRED). Its norms are modulated by a constant label through
    adaLN-zero, which is a learned affine and gate: here norms are affine, gates 1, and the last layer starts by Xavier
    (INFERRED): a zero start makes all codes equal, and a toy reaches a fifth of the loss without it. Each step maps the
    codebook once, not once per image.
    """

    positions: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        width: int = 256,
        heads: int = 4,
        depth: int = 2,
        patch: int = 4,
        mlp_ratio: float = 2.0,
        commitment_weight: float = 0.25,
    ) -> None:
        super().__init__(dim, [codebook_size])
        self.commitment_weight = commitment_weight
        side = math.ceil((math.isqrt(codebook_size - 1) + 1) / patch) * patch
        self.raw = nn.Parameter(torch.empty(dim, side, side).uniform_(-1 / codebook_size, 1 / codebook_size))
        self.patches = nn.Conv2d(dim, width, patch, patch)
        self.blocks = nn.Sequential(*(Block(width, heads, mlp_ratio, linear=False) for _ in range(depth)))
        self.outward = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim * patch**2))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
        self.unfold = nn.PixelShuffle(patch)
        self.register_buffer("positions", sine_positions(side // patch, width), persistent=False)

    def book(self) -> Tensor:
        with full_precision(self.raw.device):
            x = self.patches(self.raw[None])
            x = self.outward(self.blocks(x[0].flatten(1).T + self.positions))
            pixels = self.unfold(x.T.unflatten(1, (math.isqrt(len(x)), -1))[None])
            return pixels[0].flatten(1).T[: self.sizes[0]]


def sine_positions(side: int, width: int) -> Tensor:
    """Sines and cosines of the column, then of the row, as in MAE: "side*side width"."""
    frequencies = 1e4 ** -(torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * frequencies
    one = torch.cat([angles.sin(), angles.cos()], 1)
    both = torch.cat([one.expand(side, -1, -1), one[:, None].expand(-1, side, -1)], 2).flatten(0, 1)
    return F.pad(both, (0, width - both.shape[1]))
