"""Gumbel-softmax VQ (Jang et al. 2016, arXiv 1611.01144; DALL-E's dVAE, arXiv 2102.12092; taming's GumbelQuantize)."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_tokenizer.quantizers.codebooks import STARTS, start_from_data
from stage1_tokenizer.quantizers.estimators import straight_through
from stage1_tokenizer.quantizers.interface import Quantizer, QuantizerOutput
from stage1_tokenizer.quantizers.nearest import largest_products
from stage1_tokenizer.quantizers.noise import Noise
from stage1_tokenizer.quantizers.options import one_of
from stage1_tokenizer.quantizers.relaxed_samples import relaxed_sample
from stage1_tokenizer.quantizers.schedules import cosine
from stage1_tokenizer.quantizers.soft_assignment import soft_assign


class Gumbel(Quantizer):
    """logits l = W z + b; in training k ~ softmax(l), q = e_k, with the gradient of softmax((l + g) / T) E for the logits.

    g is the Gumbel noise that drew k. Loss: kl_weight KL(softmax(l) || uniform). T falls from 1 to 1/16 by a cosine (DALL-E;
    taming keeps its kl_weight 5e-4 constant, DALL-E's ramps). In eval mode k = argmax l; taming draws noise there as well.
    W and b are the method's own: the logits need not be distances. The start is ours: W = 2 E and b = -|e|^2, with which
    softmax(l) is that of -|z - e|^2, and codes from data.
    """

    temperature: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        temperature_start: float = 1.0,
        temperature_end: float = 0.0625,
        kl_weight: float = 5e-4,
        start: str = "distinct",
    ) -> None:
        super().__init__(dim, [codebook_size])
        self.temperature_start = temperature_start
        self.temperature_end = temperature_end
        self.kl_weight = kl_weight
        self.start = one_of("Gumbel.start", start, STARTS)
        self.codebook = nn.Parameter(torch.randn(codebook_size, dim))
        self.to_logits = nn.Linear(dim, codebook_size)
        self.noise = Noise()
        self.register_buffer("temperature", torch.tensor(float(temperature_start)))
        self._logits_from_distances()

    def forward(self, z: Float[Tensor, "n c"]) -> QuantizerOutput:
        weight, bias = self.to_logits.weight, self.to_logits.bias
        if not self.training:
            index = largest_products(z, weight, bias)
            return QuantizerOutput(F.embedding(index, self.codebook), index[:, None], {})
        soft, index = relaxed_sample(z, self.to_logits, self.codebook.detach(), self.temperature, self.noise)
        chosen = F.embedding(index, self.codebook)
        posterior = soft_assign(z, weight, 1.0, "dot", prior=bias, values=torch.cat([weight, bias[:, None]], 1))
        # H(p) = log Z - sum_k p l
        entropy = posterior.log_partition - (z * posterior.codes[:, :-1]).sum(1) - posterior.codes[:, -1]
        divergence = math.log(len(self.codebook)) - entropy.mean()
        return QuantizerOutput(straight_through(soft + chosen, chosen), index[:, None], {"kl": self.kl_weight * divergence})

    def dequantize(self, indices: Int[Tensor, "n 1"]) -> Float[Tensor, "n c"]:
        return F.embedding(indices[:, 0], self.codebook)

    @torch.no_grad()
    def initialize(self, z: Float[Tensor, "n c"]) -> None:
        self.codebook.copy_(start_from_data(z, len(self.codebook), self.start))
        self._logits_from_distances()

    def anneal(self, progress: float) -> None:
        self.temperature.fill_(cosine(self.temperature_start, self.temperature_end, progress))

    @torch.no_grad()
    def _logits_from_distances(self) -> None:
        self.to_logits.weight.copy_(2 * self.codebook)
        self.to_logits.bias.copy_(-self.codebook.square().sum(1))
