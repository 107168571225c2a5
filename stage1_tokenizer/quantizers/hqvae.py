"""RSQ-VAE, the residual HQ-VAE: stochastic codes of residuals (Takida et al. 2024, arXiv 2401.00365, section 4)."""

from jaxtyping import Float
from torch import Tensor

from stage1_tokenizer.quantizers.interface import QuantizerOutput
from stage1_tokenizer.quantizers.stochastic_codes import StochasticQuantizer


class HQVAE(StochasticQuantizer):
    """Layer l samples Z_l for R_l = z - sum_{m<l} Z_m as `sqvae` does, with codes and an s_l of its own; q = sum_l Z_l.

    Loss per vector: weight (|z - q|^2 / (2 sum_l s_l^2) - sum_l H(p_l)); in eval the nearest code of each residual, as RQ
    without sampling. The other half of the paper, injected top-down layers (SQ-VAE-2), is `hqvae_injected`.
    INFERRED: the variance of the sum in the distance term (the paper is known from its overview), and what `sqvae` infers.
    Ours as there: codes and variances start from data, layer after layer. Not built: networks between the layers.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        depth: int = 2,
        weight: float = 5e-4,
        variance_start: float = 1.0,
        temperature_start: float = 1.0,
        temperature_end: float = 0.21,
    ) -> None:
        super().__init__(dim, codebook_size, depth, variance_start, temperature_start, temperature_end)
        self.weight = weight

    def relaxed(self, z: Float[Tensor, "n c"]) -> QuantizerOutput:
        return self.evidence(z, self.weight)
