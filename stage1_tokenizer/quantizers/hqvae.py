"""RSQ-VAE, the residual HQ-VAE: stochastic codes of residuals (Takida et al. 2024, arXiv 2401.00365, section 4)."""

from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_tokenizer.quantizers.interface import Quantizer, QuantizerOutput
from stage1_tokenizer.quantizers.nearest import nearest_codes
from stage1_tokenizer.quantizers.schedules import geometric
from stage1_tokenizer.quantizers.stochastic_codes import StochasticCodes
from stage1_tokenizer.quantizers.usage import entropy


class HQVAE(Quantizer):
    """Layer l samples Z_l for R_l = z - sum_{m<l} Z_m as `sqvae` does, with codes and an s_l of its own; q = sum_l Z_l.

    Loss per vector: weight (|z - q|^2 / (2 sum_l s_l^2) - sum_l H(p_l)); in eval the nearest code of each residual, as RQ
    without sampling. `hqvae_injected` is the other half of the paper, injected top-down layers (SQ-VAE-2).
    INFERRED: the variance of the sum in the distance term (the paper is known from its overview), and what `sqvae` infers.
    Ours as there: codes and variances start from data, layer after layer. Not built: networks between the layers.
    """

    temperature: Tensor

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
        super().__init__(dim, [codebook_size] * depth)
        self.weight = weight
        self.temperature_start = temperature_start
        self.temperature_end = temperature_end
        self.stack = nn.ModuleList(StochasticCodes(dim, codebook_size, variance_start) for _ in range(depth))
        self.register_buffer("temperature", torch.tensor(float(temperature_start)))

    @property
    def layers(self) -> list[StochasticCodes]:
        return cast(list[StochasticCodes], list(self.stack))

    def forward(self, z: Float[Tensor, "n c"]) -> QuantizerOutput:
        if not self.training:
            indices = self._nearest(z)
            return QuantizerOutput(self.dequantize(indices), indices, {})
        codes, indices, information, variance = torch.zeros_like(z), [], 0, 0
        for layer in self.layers:
            sample = layer.sample(z - codes, self.temperature)
            codes = codes + sample.codes
            indices.append(sample.index)
            information = information - entropy(sample.posterior).mean()
            variance = variance + layer.variance
        losses = {
            "distance": self.weight * ((z - codes).square().sum(1) / (2 * variance)).mean(),
            "entropy": self.weight * information,
        }
        return QuantizerOutput(codes, torch.stack(indices, 1), losses)

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

    def _nearest(self, z: Float[Tensor, "n c"]) -> Int[Tensor, "n d"]:
        indices = []
        for layer in self.layers:
            indices.append(nearest_codes(z, layer.codes))
            z = z - F.embedding(indices[-1], layer.codes)
        return torch.stack(indices, 1)
