"""A mixture of Gaussians at the codes, of one learned variance: its posterior over codes, and relaxed samples from it."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_tokenizer.quantizers.codebooks import evenly, start_from_data
from stage1_tokenizer.quantizers.global_batch import global_mean
from stage1_tokenizer.quantizers.interface import Quantizer, QuantizerOutput
from stage1_tokenizer.quantizers.nearest import nearest_codes, squared_distances, two_nearest
from stage1_tokenizer.quantizers.noise import Noise
from stage1_tokenizer.quantizers.relaxed_samples import relaxed_sample
from stage1_tokenizer.quantizers.schedules import geometric
from stage1_tokenizer.quantizers.soft_assignment import soft_assign

ROWS = 256  # vectors that the variance starts from


@dataclass(frozen=True)
class Sample:
    codes: Float[Tensor, "n c"]  # sum_k o_ik b_k, o a Gumbel-softmax sample: between the codes unless the temperature is low
    index: Int[Tensor, " n"]  # argmax_k p_ik, which is the nearest code
    entropy: Float[Tensor, " n"]  # H(p_i) in nats
    usage: Float[Tensor, " k"]  # mean_i p_ik
    logits: Callable[[], Float[Tensor, "n k"]]

    @property
    def posterior(self) -> Float[Tensor, "n k"]:
        """p, all of it: to look at."""
        return self.logits().softmax(1)


class StochasticCodes(nn.Module):
    """p_ik = softmax_k(-|z_i - b_k|^2 / (2 s^2)), b ~ N(0, 1) and log s^2 at the start."""

    def __init__(self, dim: int, codebook_size: int, variance: float) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.randn(codebook_size, dim))
        self.log_variance = nn.Parameter(torch.tensor(variance).log())
        self.noise = Noise()

    def sample(self, z: Float[Tensor, "n c"], temperature: Float[Tensor, ""]) -> Sample:
        """Gumbel-softmax of the posterior, gradient to z, codes and variance; nothing of size n k is kept."""
        codes, _ = relaxed_sample(z, self._logits, self.codes, temperature, self.noise)
        centre = self.codes.detach().mean(0)  # with distances from it less cancels
        centred, squares = self.codes - centre, (self.codes - centre).square().sum(1, keepdim=True)
        soft = soft_assign(z, self.codes, 2 * self.variance, values=torch.cat([centred, squares], 1))
        distance = (z - centre - 2 * soft.codes[:, :-1]).mul(z - centre).sum(1) + soft.codes[:, -1]  # sum_k p |z - b_k|^2
        entropy = soft.log_partition + distance / (2 * self.variance)
        return Sample(codes, soft.index, entropy, soft.usage, lambda: self._logits(z))

    def _logits(self, z: Float[Tensor, "n c"]) -> Float[Tensor, "n k"]:
        return -squared_distances(z, self.codes) / (2 * self.variance)

    @property
    def variance(self) -> Float[Tensor, ""]:
        return self.log_variance.exp()

    @torch.no_grad()
    def initialize(self, z: Float[Tensor, "n c"]) -> None:
        """Codes by k-means; per channel the variance is the mean squared distance to the second-nearest code."""
        self.codes.copy_(start_from_data(z, len(self.codes), "kmeans"))
        second = two_nearest(z[:: evenly(len(z), ROWS)], self.codes)[:, 1]
        self.log_variance.copy_(global_mean(second.mean() / z.shape[1]).clamp_min(1e-6).log())


class StochasticQuantizer(Quantizer):
    """Stochastic codes of z, and of what the layers before leave: relaxed samples in training, the nearest codes in eval.

    A subclass says what training does; the temperature of its samples falls geometrically.
    """

    temperature: Tensor

    def __init__(
        self, dim: int, codebook_size: int, depth: int, variance_start: float, temperature_start: float, temperature_end: float
    ) -> None:
        super().__init__(dim, [codebook_size] * depth)
        self.temperature_start = temperature_start
        self.temperature_end = temperature_end
        layers = nn.ModuleList(StochasticCodes(dim, codebook_size, variance_start) for _ in range(depth))
        self.layers = cast("Sequence[StochasticCodes]", layers)
        self.register_buffer("temperature", torch.tensor(float(temperature_start)))

    @abstractmethod
    def relaxed(self, z: Float[Tensor, "n c"]) -> QuantizerOutput:
        """Forward in train mode."""

    def forward(self, z: Float[Tensor, "n c"]) -> QuantizerOutput:
        if self.training:
            return self.relaxed(z)
        indices = []
        for layer in self.layers:
            indices.append(nearest_codes(z, layer.codes))
            z = z - F.embedding(indices[-1], layer.codes)
        indices = torch.stack(indices, 1)
        return QuantizerOutput(self.dequantize(indices), indices, {})

    def dequantize(self, indices: Int[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        parts = [F.embedding(index, layer.codes) for index, layer in zip(indices.unbind(1), self.layers, strict=True)]
        return torch.stack(parts).sum(0)

    @torch.no_grad()
    def initialize(self, z: Float[Tensor, "n c"]) -> None:
        for layer in self.layers:
            layer.initialize(z)
            z = z - F.embedding(nearest_codes(z, layer.codes), layer.codes)

    def anneal(self, progress: float) -> None:
        self.temperature.fill_(geometric(self.temperature_start, self.temperature_end, progress))

    def evidence(self, z: Float[Tensor, "n c"], weight: float) -> QuantizerOutput:
        """Relaxed samples q of all layers, and weight (|z - q|^2 / (2 sum s^2) - sum H(p)) of them, per vector."""
        codes, samples = torch.zeros_like(z), []
        for layer in self.layers:
            samples.append(layer.sample(z - codes, self.temperature))
            codes = codes + samples[-1].codes
        variance = torch.stack([layer.variance for layer in self.layers]).sum()
        information = torch.stack([sample.entropy.mean() for sample in samples]).sum()
        losses = {
            "distance": weight * ((z - codes).square().sum(1) / (2 * variance)).mean(),
            "entropy": -weight * information,
        }
        return QuantizerOutput(codes, torch.stack([sample.index for sample in samples], 1), losses)
