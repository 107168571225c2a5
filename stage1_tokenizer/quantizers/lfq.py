"""LFQ: lookup-free quantization (Yu et al. 2023, MAGVIT-v2, arXiv 2310.05737). The codes are the corners of a cube."""

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from stage1_tokenizer.quantizers.binary import EntropyLoss, Signs
from stage1_tokenizer.quantizers.estimators import straight_through
from stage1_tokenizer.quantizers.interface import Quantizer, QuantizerOutput


class LFQ(Quantizer):
    """q = sign(z) in {-1, 1}^bits, 0 counting as -1; J_z = I. Index: sum_j 2^j [z_j > 0] per group of `group_bits` channels.

    Losses: commitment_weight mean|z - q|^2, and entropy_weight (mean H(p_i) - H(mean p)), p_i = softmax_c(2 t z_i.c) with
    t = inverse_temperature, which factorises: P(bit_j = 1) = sigmoid(4 t z_j). Public codes list 2^bits probabilities for
    every vector, or split into groups of 9; here a group of 18 bits is exact in the memory of 9. The default is the largest
    group of at most 18 bits that divides `bits`. Weights are those of SEED-Voken.
    """

    def __init__(
        self,
        bits: int,
        group_bits: int | None = None,
        commitment_weight: float = 0.25,
        entropy_weight: float = 0.1,
        inverse_temperature: float = 100.0,
        entropy_ramp: float = 0.01,
    ) -> None:
        signs = Signs(bits, 1.0, group_bits)
        super().__init__(bits, signs.sizes)
        self.commitment_weight = commitment_weight
        self.inverse_temperature = inverse_temperature
        self.signs = signs
        self.entropy = EntropyLoss(entropy_weight, entropy_ramp, signs.group_bits)

    def forward(self, z: Float[Tensor, "n c"]) -> QuantizerOutput:
        indices = self.signs.indices(z > 0)
        codes = self.dequantize(indices)
        losses = {}
        if self.training:
            losses["commitment"] = self.commitment_weight * F.mse_loss(z, codes)
            losses["entropy"] = self.entropy(4 * self.inverse_temperature * z)
        return QuantizerOutput(straight_through(z, codes), indices, losses)

    def dequantize(self, indices: Int[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        return self.signs.codes(indices)

    def anneal(self, progress: float) -> None:
        self.entropy.anneal(progress)
