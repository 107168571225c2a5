"""SQ-VAE: stochastic quantization that anneals itself (Takida et al. 2022, arXiv 2205.07547; sony/sqvae, gaussian_1)."""

from jaxtyping import Float
from torch import Tensor

from stage1_tokenizer.quantizers.interface import QuantizerOutput
from stage1_tokenizer.quantizers.stochastic_codes import StochasticQuantizer


class SQVAE(StochasticQuantizer):
    """p = softmax_k(-|z - b_k|^2 / (2 s^2)), s learned; q a Gumbel-softmax sample of p in training, the nearest code in eval.

    Loss per vector: weight (|z - q|^2 / (2 s^2) - H(p)). A better decoder makes s smaller: that is the annealing.
    The published objective adds (D/2) log MSE of an image's D values and sums; divided by D, a token of f8 weighs 1/192.
    INFERRED: beside a mean absolute error of about 0.1 the same balance is a tenth of it, the default weight. T falls as
    exp(-1e-5 step); its published end, after 156 k steps, is the default. The public code keeps 1 + s^2 in place of s^2 and
    draws at random in eval; neither is kept. Ours: codes and s^2 start from data (published: N(0, 1)); s moves slowly.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        weight: float = 5e-4,
        variance_start: float = 1.0,
        temperature_start: float = 1.0,
        temperature_end: float = 0.21,
    ) -> None:
        super().__init__(dim, codebook_size, 1, variance_start, temperature_start, temperature_end)
        self.weight = weight

    def relaxed(self, z: Float[Tensor, "n c"]) -> QuantizerOutput:
        return self.evidence(z, self.weight)
