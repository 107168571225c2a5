"""GM-VQ: codes as the means of a Gaussian mixture, sampled in training (Yan et al. 2024, arXiv 2410.10180)."""

import math

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from stage1_tokenizer.quantizers.global_batch import global_mean
from stage1_tokenizer.quantizers.interface import QuantizerOutput
from stage1_tokenizer.quantizers.noise import Noise
from stage1_tokenizer.quantizers.stochastic_codes import StochasticQuantizer
from stage1_tokenizer.quantizers.usage import entropy


class GMVQ(StochasticQuantizer):
    """w = softmax_k(-|z - mu_k|^2 / (2 sigma^2)), o a Gumbel-softmax sample of w; codes o mu + s noise in training.

    Losses: the aggregated posterior's KL(mean_i w_i || uniform) = log K - H(mean_i w_i), over the global batch, and
    gamma mean|z - o mu|^2. T falls from 1 to .1. In eval mode the nearest mean, without noise.
    INFERRED (known from reviews): gamma = .25; s^2 = |z - o mu|^2 / c without gradient (the paper's is divided by a learned
    variance besides, which would make the noise depend on the latents' scale); the KL's weight, published as 1 beside a
    likelihood, is .01 beside losses that are means of pixels. Ours: means and sigma start from data.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        kl_weight: float = 0.01,
        commitment_weight: float = 0.25,
        variance_start: float = 1.0,
        temperature_start: float = 1.0,
        temperature_end: float = 0.1,
    ) -> None:
        super().__init__(dim, codebook_size, 1, variance_start, temperature_start, temperature_end)
        self.kl_weight = kl_weight
        self.commitment_weight = commitment_weight
        self.noise = Noise()

    def relaxed(self, z: Float[Tensor, "n c"]) -> QuantizerOutput:
        sample = self.layers[0].sample(z, self.temperature)
        deviation = (z - sample.codes).detach().square().mean(1, keepdim=True).sqrt()
        usage = global_mean(sample.usage)
        losses = {
            "kl": self.kl_weight * (math.log(len(usage)) - entropy(usage)),
            "commitment": self.commitment_weight * F.mse_loss(z, sample.codes),
        }
        return QuantizerOutput(sample.codes + deviation * self.noise.normal(z), sample.index[:, None], losses)
