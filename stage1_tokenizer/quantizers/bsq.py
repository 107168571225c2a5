"""BSQ: binary spherical quantization (Zhao et al. 2024, arXiv 2406.07548). The codes are a cube's corners on the sphere."""

from jaxtyping import Float, Int
from torch import Tensor

from stage1_tokenizer.quantizers.binary import EntropyLoss, Signs
from stage1_tokenizer.quantizers.estimators import on_sphere, straight_through
from stage1_tokenizer.quantizers.interface import Quantizer, QuantizerOutput


class BSQ(Quantizer):
    """u = z / |z|, q = sign(u) / sqrt(bits), J_u = I; |u - q|^2 < 2 - 2 / sqrt(bits), so there is no commitment term.

    Loss: entropy_weight / t (mean H(p_i) - H(mean p)), p_i = softmax_c(2 t u_i.c), t = inverse_temperature, which factorises:
    P(bit_j = 1) = sigmoid(4 t u_j / sqrt(bits)) (equations 7 to 11). H(mean p) is exact for groups of `group_bits` bits,
    which are also the indices. t = 1 as in the public configurations. Where the public code numbers codes from
    the highest bit, we do from the lowest, as `lfq` does. Published with 18 and 36 bits, in groups of 9.
    """

    def __init__(
        self,
        bits: int,
        group_bits: int | None = None,
        entropy_weight: float = 0.1,
        inverse_temperature: float = 1.0,
        entropy_ramp: float = 0.01,
    ) -> None:
        signs = Signs(bits, bits**-0.5, group_bits)
        super().__init__(bits, signs.sizes)
        self.inverse_temperature = inverse_temperature
        self.signs = signs
        self.entropy = EntropyLoss(entropy_weight / inverse_temperature, entropy_ramp, signs.group_bits)

    def forward(self, z: Float[Tensor, "n c"]) -> QuantizerOutput:
        unit = on_sphere(z)
        indices = self.signs.indices(unit > 0)
        losses = {}
        if self.training:
            losses["entropy"] = self.entropy(4 * self.inverse_temperature * self.signs.magnitude * unit)
        return QuantizerOutput(straight_through(unit, self.dequantize(indices)), indices, losses)

    def dequantize(self, indices: Int[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        return self.signs.codes(indices)

    def anneal(self, progress: float) -> None:
        self.entropy.anneal(progress)
