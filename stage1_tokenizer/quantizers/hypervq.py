"""HyperVQ: codes as hyperplanes of hyperbolic space, assignment as classification (arXiv 2403.13015, TMLR 2025)."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_tokenizer.quantizers.codebooks import start_from_data
from stage1_tokenizer.quantizers.distortion import codebook_and_commitment
from stage1_tokenizer.quantizers.estimators import through_softmax
from stage1_tokenizer.quantizers.global_batch import global_mean
from stage1_tokenizer.quantizers.interface import Quantizer, QuantizerOutput
from stage1_tokenizer.quantizers.noise import Noise
from stage1_tokenizer.quantizers.precision import full_precision
from stage1_tokenizer.quantizers.schedules import geometric
from stage1_tokenizer.quantizers.usage import entropy

LARGEST = 5.0  # of |z|: cosh(2 |z|) and what float32 keeps of tanh(|z|)


class HyperVQ(Quantizer):
    """x = exp_0(z) in the unit ball; k has the logit of a hyperbolic hyperplane with direction a_k and offset r_k > 0.

    v_k(x) = 2 |a_k| asinh(lam <x, a_k / |a_k|> cosh 2 r_k - (lam - 1) sinh 2 r_k), lam = 2 / (1 - |x|^2) (HNN++, arXiv
    2006.08210, unidirectional MLR). The code is the hyperplane's point nearest to the origin, in the tangent space:
    log_0 of tanh(r_k) a_k / |a_k|, r_k a_k / |a_k|; no table besides. In training k is a Gumbel draw and the gradient that
    of the relaxed one, T from 1 to .1; in eval k = argmax v_k.
    All of training is INFERRED (known from the abstract): the draw and T, a term log K - H(mean_i p_i) against collapse,
    `vq`'s codebook and commitment terms, r_k = softplus, U(0, .5) at the start, and directions that start from data.
    Dense in vectors times codes: asinh makes the logits no product of the two, which `soft_assign` needs.
    """

    temperature: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        commitment_weight: float = 0.25,
        usage_weight: float = 0.01,
        temperature_start: float = 1.0,
        temperature_end: float = 0.1,
    ) -> None:
        super().__init__(dim, [codebook_size])
        self.commitment_weight = commitment_weight
        self.usage_weight = usage_weight
        self.temperature_start = temperature_start
        self.temperature_end = temperature_end
        self.directions = nn.Parameter(torch.randn(codebook_size, dim) / math.sqrt(dim))
        radii = 0.5 * torch.rand(codebook_size) + 1e-3
        self.offsets = nn.Parameter(radii.expm1().log())  # softplus of it is the radius
        self.noise = Noise()
        self.register_buffer("temperature", torch.tensor(float(temperature_start)))

    def codebook(self) -> Float[Tensor, "k c"]:
        return F.softplus(self.offsets)[:, None] * F.normalize(self.directions, dim=1)

    def logits(self, z: Float[Tensor, "n c"]) -> Float[Tensor, "n k"]:
        """v_k(exp_0(z)), with lam x = sinh(2 |z|) z / |z| and lam - 1 = cosh(2 |z|): never 1 - |x|^2."""
        length = z.norm(dim=1, keepdim=True)
        reach = length.clamp(1e-6, LARGEST)
        radius = 2 * F.softplus(self.offsets)
        with full_precision(z.device):
            along = (2 * reach).sinh() * (z / length.clamp_min(1e-6)) @ F.normalize(self.directions, dim=1).T
        signed = along * radius.cosh() - (2 * reach).cosh() * radius.sinh()
        return 2 * self.directions.norm(dim=1) * signed.asinh()

    def forward(self, z: Float[Tensor, "n c"]) -> QuantizerOutput:
        logits = self.logits(z)
        if not self.training:
            index = logits.argmax(1, keepdim=True)
            return QuantizerOutput(self.dequantize(index), index, {})
        noisy = logits + self.noise.gumbel(logits)
        index = noisy.argmax(1)
        codebook = self.codebook()
        chosen = F.embedding(index, codebook)
        usage = global_mean(logits.softmax(1).mean(0))
        losses = codebook_and_commitment(z, chosen, self.commitment_weight)
        losses["usage"] = self.usage_weight * (math.log(len(usage)) - entropy(usage))
        return QuantizerOutput(through_softmax(chosen, noisy / self.temperature, codebook), index[:, None], losses)

    def dequantize(self, indices: Int[Tensor, "n 1"]) -> Float[Tensor, "n c"]:
        return F.embedding(indices[:, 0], self.codebook())

    @torch.no_grad()
    def initialize(self, z: Float[Tensor, "n c"]) -> None:
        centres = F.normalize(start_from_data(z, len(self.directions), "kmeans"), dim=1)
        self.directions.copy_(torch.where(centres.norm(dim=1, keepdim=True) > 0, centres, self.directions))

    def anneal(self, progress: float) -> None:
        self.temperature.fill_(geometric(self.temperature_start, self.temperature_end, progress))
