"""VQ on the sphere in few dimensions (Yu et al. 2021, arXiv 2110.04627; LlamaGen, Sun et al. 2024, arXiv 2406.06525)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_tokenizer.quantizers.distortion import codebook_and_commitment
from stage1_tokenizer.quantizers.estimators import on_sphere, straight_through
from stage1_tokenizer.quantizers.interface import Quantizer, QuantizerOutput
from stage1_tokenizer.quantizers.nearest import nearest_codes


class VQCosine(Quantizer):
    """q = e_{k*} / |e_{k*}|, k* = argmax_k cos(z, e_k); the losses of `vq` between unit vectors.

    LlamaGen's VectorQuantizer: 8 channels, K = 16384, beta = .25, no entropy term, codes that start as the directions of
    U(-1/K, 1/K), and the gradient of z passes through the normalisation: J_z = (I - u u^T) / |z| with u = z / |z|.
    """

    def __init__(self, dim: int, codebook_size: int, commitment_weight: float = 0.25) -> None:
        super().__init__(dim, [codebook_size])
        self.commitment_weight = commitment_weight
        self.codebook = nn.Parameter(F.normalize(torch.rand(codebook_size, dim) - 0.5, dim=1))

    def forward(self, z: Float[Tensor, "n c"]) -> QuantizerOutput:
        unit = on_sphere(z)
        index = nearest_codes(unit, F.normalize(self.codebook, dim=1))[:, None]
        codes = self.dequantize(index)
        losses = codebook_and_commitment(unit, codes, self.commitment_weight) if self.training else {}
        return QuantizerOutput(straight_through(unit, codes), index, losses)

    def dequantize(self, indices: Int[Tensor, "n 1"]) -> Float[Tensor, "n c"]:
        return F.normalize(F.embedding(indices[:, 0], self.codebook), dim=1)
