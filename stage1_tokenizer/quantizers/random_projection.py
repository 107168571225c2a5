"""RPQ: fixed random codes on the sphere (BEST-RQ, Chiu et al. 2022, arXiv 2202.01855)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from stage1_tokenizer.quantizers.unit_codes import UnitCodes


class RandomProjection(UnitCodes):
    """k* = argmax_k cos(z, e_k), e_k the directions of N(0, I), fixed by `seed`; q = e_{k*}.

    BEST-RQ's codes are training targets of a speech encoder, after a LayerNorm and a frozen projection. As a tokenizer's
    quantizer this is the "NPQ" baseline of the Lambda24 paper (`leech`): unit latents, straight-through, no loss. Which
    projection leads to the latents is the tokenizer's matter, and there it is trained (INFERRED: a frozen one is public
    only for targets).
    """

    codebook: Tensor

    def __init__(self, dim: int, codebook_size: int, seed: int = 0) -> None:
        super().__init__(dim, [codebook_size])
        codes = torch.randn(codebook_size, dim, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("codebook", F.normalize(codes, dim=1))

    @property
    def directions(self) -> Tensor:
        return self.codebook
