"""GM-VQ: codes as the means of a Gaussian mixture, sampled in training (Yan et al. 2024, arXiv 2410.10180)."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from stage1_tokenizer.quantizers.global_batch import global_mean
from stage1_tokenizer.quantizers.interface import Quantizer, QuantizerOutput
from stage1_tokenizer.quantizers.nearest import nearest_codes
from stage1_tokenizer.quantizers.noise import Noise
from stage1_tokenizer.quantizers.schedules import geometric
from stage1_tokenizer.quantizers.stochastic_codes import StochasticCodes
from stage1_tokenizer.quantizers.usage import entropy


class GMVQ(Quantizer):
    """w = softmax_k(-|z - mu_k|^2 / (2 sigma^2)), o a Gumbel-softmax sample of w; codes o mu + s noise in training.

    Losses: the aggregated posterior's KL(mean_i w_i || uniform) = log K - H(mean_i w_i), over the global batch, and
    gamma mean|z - o mu|^2. T falls from 1 to .1. In eval mode the nearest mean, without noise.
    INFERRED (known from reviews): gamma = .25; s^2 = |z - o mu|^2 / c without gradient (the paper's is divided by a learned
    variance besides, which would make the noise depend on the latents' scale); the KL's weight, published as 1 beside a
    likelihood, is .01 beside losses that are means of pixels. Ours: means and sigma start from data.
    """

    temperature: Tensor

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
        super().__init__(dim, [codebook_size])
        self.kl_weight = kl_weight
        self.commitment_weight = commitment_weight
        self.temperature_start = temperature_start
        self.temperature_end = temperature_end
        self.stochastic = StochasticCodes(dim, codebook_size, variance_start)
        self.noise = Noise()
        self.register_buffer("temperature", torch.tensor(float(temperature_start)))

    def forward(self, z: Float[Tensor, "n c"]) -> QuantizerOutput:
        if not self.training:
            index = nearest_codes(z, self.stochastic.codes)[:, None]
            return QuantizerOutput(self.dequantize(index), index, {})
        sample = self.stochastic.sample(z, self.temperature)
        deviation = (z - sample.codes).detach().square().mean(1, keepdim=True).sqrt()
        usage = global_mean(sample.posterior.mean(0))
        losses = {
            "kl": self.kl_weight * (math.log(len(usage)) - entropy(usage)),
            "commitment": self.commitment_weight * F.mse_loss(z, sample.codes),
        }
        return QuantizerOutput(sample.codes + deviation * self.noise.normal(z), sample.index[:, None], losses)

    def dequantize(self, indices: Int[Tensor, "n 1"]) -> Float[Tensor, "n c"]:
        return F.embedding(indices[:, 0], self.stochastic.codes)

    def initialize(self, z: Float[Tensor, "n c"]) -> None:
        self.stochastic.initialize(z)

    def anneal(self, progress: float) -> None:
        self.temperature.fill_(geometric(self.temperature_start, self.temperature_end, progress))
