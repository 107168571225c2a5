"""IBQ: index backpropagation quantization (Shi et al. 2024, arXiv 2412.02692). The one-hot choice carries the gradient."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_tokenizer.quantizers.estimators import straight_through
from stage1_tokenizer.quantizers.information import negative_information
from stage1_tokenizer.quantizers.interface import Quantizer, QuantizerOutput
from stage1_tokenizer.quantizers.nearest import largest_products
from stage1_tokenizer.quantizers.soft_assignment import soft_assign

ENTROPY_TEMPERATURE = 0.01


class IBQ(Quantizer):
    """p = softmax(z E^T), o = onehot(argmax p) + p - sg p, q = o E (equations 4 and 5): the code of the largest product.

    With g = dL/dq the logits' gradient is p (g E^T - <p, g E^T>), which reaches z and every code; the chosen code has g too.
    Losses (SEED-Voken): mean|q - z|^2, both sides with gradient, + mean|sg q - z|^2 + beta mean|q - sg z|^2, the last two
    with the plain look-up; entropy_weight (mean H(p') - H(mean p')), p' at temperature .01 and the mean global. Codes start
    as N(0, 1). Published with 256 channels. The largest product is not the nearest code unless norms are equal.
    """

    def __init__(self, dim: int, codebook_size: int, codebook_weight: float = 0.25, entropy_weight: float = 0.05) -> None:
        super().__init__(dim, [codebook_size])
        self.codebook_weight = codebook_weight
        self.entropy_weight = entropy_weight
        self.codebook = nn.Parameter(torch.randn(codebook_size, dim))

    def forward(self, z: Float[Tensor, "n c"]) -> QuantizerOutput:
        if not self.training:
            index = largest_products(z, self.codebook)[:, None]
            return QuantizerOutput(self.dequantize(index), index, {})
        soft = soft_assign(z, self.codebook, 1.0, "dot", values=self.codebook.detach())
        chosen = F.embedding(soft.index, self.codebook)
        codes = straight_through(soft.codes + chosen, chosen)
        losses = {
            "both": F.mse_loss(codes, z),
            "commitment": F.mse_loss(z, chosen.detach()),
            "codebook": self.codebook_weight * F.mse_loss(chosen, z.detach()),
            "entropy": self.entropy_weight * negative_information(z, self.codebook, ENTROPY_TEMPERATURE),
        }
        return QuantizerOutput(codes, soft.index[:, None], losses)

    def dequantize(self, indices: Int[Tensor, "n 1"]) -> Float[Tensor, "n c"]:
        return F.embedding(indices[:, 0], self.codebook)
