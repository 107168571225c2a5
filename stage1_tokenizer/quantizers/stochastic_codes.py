"""A mixture of Gaussians at the codes, of one learned variance: its posterior over codes, and relaxed samples from it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stage1_tokenizer.quantizers.codebooks import evenly, start_from_data
from stage1_tokenizer.quantizers.global_batch import global_mean
from stage1_tokenizer.quantizers.nearest import squared_distances, two_nearest
from stage1_tokenizer.quantizers.noise import Noise
from stage1_tokenizer.quantizers.precision import full_precision

ROWS = 256  # vectors that the variance starts from


@dataclass(frozen=True)
class Sample:
    codes: Float[Tensor, "n c"]  # sum_k o_ik b_k, o a Gumbel-softmax sample: between the codes unless the temperature is low
    index: Int[Tensor, " n"]  # argmax_k p_ik, which is the nearest code
    posterior: Float[Tensor, "n k"]


class StochasticCodes(nn.Module):
    """p_ik = softmax_k(-|z_i - b_k|^2 / (2 s^2)), b ~ N(0, 1) and log s^2 at the start; all of n x k is held."""

    def __init__(self, dim: int, codebook_size: int, variance: float) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.randn(codebook_size, dim))
        self.log_variance = nn.Parameter(torch.tensor(variance).log())
        self.noise = Noise()

    def sample(self, z: Float[Tensor, "n c"], temperature: Float[Tensor, ""]) -> Sample:
        """Gumbel-softmax (Jang et al. 2016, arXiv 1611.01144) of the posterior, gradient to z, codes and variance."""
        logits = -squared_distances(z, self.codes) / (2 * self.variance)
        relaxed = ((logits + self.noise.gumbel(logits)) / temperature).softmax(1)
        with full_precision(z.device):
            return Sample(relaxed @ self.codes, logits.argmax(1), logits.softmax(1))

    @property
    def variance(self) -> Float[Tensor, ""]:
        return self.log_variance.exp()

    @torch.no_grad()
    def initialize(self, z: Float[Tensor, "n c"]) -> None:
        """Codes by k-means; per channel the variance is the mean squared distance to the second-nearest code."""
        self.codes.copy_(start_from_data(z, len(self.codes), "kmeans"))
        second = two_nearest(z[:: evenly(len(z), ROWS)], self.codes)[:, 1]
        self.log_variance.copy_(global_mean(second.mean() / z.shape[1]).clamp_min(1e-6).log())
