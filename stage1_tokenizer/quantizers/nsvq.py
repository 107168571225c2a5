"""NS-VQ: non-stationary vector quantization (code: CAIR-LAB-WFUSM/NS-VQ-TransVQ). Not Vali and Backstrom's NSVQ."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_tokenizer.quantizers.estimators import straight_through
from stage1_tokenizer.quantizers.interface import Quantizer, QuantizerOutput
from stage1_tokenizer.quantizers.nearest import nearest_codes, squared_distances
from stage1_tokenizer.quantizers.schedules import geometric

TILE = 1 << 20  # weights held at once


class NSVQ(Quantizer):
    """VQ whose codebook term also pulls the codes that were not chosen, by annealed weights.

    Loss (1/NC) sum_ik w_ik |sg z_i - e_k|^2 + beta mean|z - sg q|^2; w_ik = min(1, lam K softmax_k(-|z_i - e_k|^2 / tau)),
    without gradient, and 1 for the chosen code. tau falls geometrically, to almost plain VQ.

    lam .01, tau from 1 halved per epoch are the public code's CelebA settings; the end of tau is INFERRED, a tenth
    halving. Left out: its option of a 2 / numel share of straight-through gradient for codes, and the replacement of
    unused codes once per epoch. Its ImageNet variant tests `epoch is None` the wrong way round and cannot run.
    """

    temperature: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        pull: float = 0.01,
        temperature_start: float = 1.0,
        temperature_end: float = 0.001,
        commitment_weight: float = 0.25,
    ) -> None:
        super().__init__(dim, [codebook_size])
        self.pull = pull
        self.temperature_start = temperature_start
        self.temperature_end = temperature_end
        self.commitment_weight = commitment_weight
        self.codebook = nn.Parameter(torch.empty(codebook_size, dim).uniform_(-1 / codebook_size, 1 / codebook_size))
        self.register_buffer("temperature", torch.tensor(float(temperature_start)))

    def forward(self, z: Float[Tensor, "n c"]) -> QuantizerOutput:
        index = nearest_codes(z, self.codebook)
        codes = F.embedding(index, self.codebook)
        losses = {}
        if self.training:
            losses["codebook"] = self._pulls(z.detach(), index) / z.numel()
            losses["commitment"] = self.commitment_weight * F.mse_loss(z, codes.detach())
        return QuantizerOutput(straight_through(z, codes), index[:, None], losses)

    def dequantize(self, indices: Int[Tensor, "n 1"]) -> Float[Tensor, "n c"]:
        return F.embedding(indices[:, 0], self.codebook)

    def anneal(self, progress: float) -> None:
        self.temperature.fill_(geometric(self.temperature_start, self.temperature_end, progress))

    def _pulls(self, z: Float[Tensor, "n c"], index: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        """sum_ik w_ik |z_i - e_k|^2, through the weights' row sums, so that no n * k matrix is kept for the gradient."""
        with torch.no_grad():
            mass, sums, total = torch.zeros_like(self.codebook[:, 0]), torch.zeros_like(self.codebook), z.new_zeros(())
            rows = max(1, TILE // len(self.codebook))
            for part, chosen in zip(z.split(rows), index[:, None].split(rows), strict=True):
                distances = squared_distances(part, self.codebook)
                weights = (self.pull * self.sizes[0] * (-distances / self.temperature).softmax(1)).clamp_max(1)
                weights.scatter_(1, chosen, 1.0)
                mass += weights.sum(0)
                sums += weights.T @ part
                total += (weights * distances).sum()
            pulled = sums - mass[:, None] * self.codebook  # minus half the gradient
        # value: the total; gradient: 2 (mass e - sums)
        return total - 2 * (pulled * (self.codebook - self.codebook.detach())).sum()
