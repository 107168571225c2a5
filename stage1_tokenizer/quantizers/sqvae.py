"""SQ-VAE: stochastic quantization that anneals itself (Takida et al. 2022, arXiv 2205.07547; sony/sqvae, gaussian_1)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from stage1_tokenizer.quantizers.interface import Quantizer, QuantizerOutput
from stage1_tokenizer.quantizers.nearest import nearest_codes
from stage1_tokenizer.quantizers.schedules import geometric
from stage1_tokenizer.quantizers.stochastic_codes import StochasticCodes
from stage1_tokenizer.quantizers.usage import entropy


class SQVAE(Quantizer):
    """p = softmax_k(-|z - b_k|^2 / (2 s^2)), s learned; q a Gumbel-softmax sample of p in training, the nearest code in eval.

    Loss per vector: weight (|z - q|^2 / (2 s^2) - H(p)). A better decoder makes s smaller: that is the annealing.
    The published objective adds (D/2) log MSE of an image's D values and sums; divided by D, a token of f8 weighs 1/192.
    INFERRED: beside a mean absolute error of about 0.1 the same balance is a tenth of it, the default weight. T falls as
    exp(-1e-5 step); its published end, after 156 k steps, is the default. The public code keeps 1 + s^2 in place of s^2 and
    draws at random in eval; neither is kept. Ours: codes and s^2 start from data (published: N(0, 1)); s moves slowly.
    """

    temperature: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        weight: float = 5e-4,
        variance_start: float = 1.0,
        temperature_start: float = 1.0,
        temperature_end: float = 0.21,
    ) -> None:
        super().__init__(dim, [codebook_size])
        self.weight = weight
        self.temperature_start = temperature_start
        self.temperature_end = temperature_end
        self.stochastic = StochasticCodes(dim, codebook_size, variance_start)
        self.register_buffer("temperature", torch.tensor(float(temperature_start)))

    def forward(self, z: Float[Tensor, "n c"]) -> QuantizerOutput:
        if not self.training:
            index = nearest_codes(z, self.stochastic.codes)[:, None]
            return QuantizerOutput(self.dequantize(index), index, {})
        sample = self.stochastic.sample(z, self.temperature)
        losses = {
            "distance": self.weight * ((z - sample.codes).square().sum(1) / (2 * self.stochastic.variance)).mean(),
            "entropy": -self.weight * entropy(sample.posterior).mean(),
        }
        return QuantizerOutput(sample.codes, sample.index[:, None], losses)

    def dequantize(self, indices: Int[Tensor, "n 1"]) -> Float[Tensor, "n c"]:
        return F.embedding(indices[:, 0], self.stochastic.codes)

    def initialize(self, z: Float[Tensor, "n c"]) -> None:
        self.stochastic.initialize(z)

    def anneal(self, progress: float) -> None:
        self.temperature.fill_(geometric(self.temperature_start, self.temperature_end, progress))
