"""VQ: vector quantization with a codebook trained by gradient (van den Oord et al. 2017, arXiv 1711.00937)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_tokenizer.quantizers.distortion import codebook_and_commitment
from stage1_tokenizer.quantizers.estimators import straight_through
from stage1_tokenizer.quantizers.interface import Quantizer, QuantizerOutput
from stage1_tokenizer.quantizers.nearest import nearest_codes


class VQ(Quantizer):
    """q = e_{k*}, k* = argmin_k |z - e_k|^2, loss mean|sg z - q|^2 + beta mean|z - sg q|^2 (equation 3), J_z = I.

    This is taming-transformers' VectorQuantizer2 with legacy=False (its legacy form puts beta on the codebook term),
    with its start U(-1/K, 1/K) and no maintenance of the codebook.
    """

    def __init__(self, dim: int, codebook_size: int, commitment_weight: float = 0.25) -> None:
        super().__init__(dim, [codebook_size])
        self.commitment_weight = commitment_weight
        self.codebook = nn.Parameter(torch.empty(codebook_size, dim).uniform_(-1 / codebook_size, 1 / codebook_size))

    def forward(self, z: Float[Tensor, "n c"]) -> QuantizerOutput:
        index = nearest_codes(z, self.codebook)
        codes = F.embedding(index, self.codebook)
        losses = codebook_and_commitment(z, codes, self.commitment_weight) if self.training else {}
        return QuantizerOutput(straight_through(z, codes), index[:, None], losses)

    def dequantize(self, indices: Int[Tensor, "n 1"]) -> Float[Tensor, "n c"]:
        return F.embedding(indices[:, 0], self.codebook)
