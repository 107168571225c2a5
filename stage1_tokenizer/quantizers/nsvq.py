"""NS-VQ: non-stationary vector quantization (code: CAIR-LAB-WFUSM/NS-VQ-TransVQ). Not Vali and Backstrom's NSVQ."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_tokenizer.quantizers.assignment.scores import Scores
from stage1_tokenizer.quantizers.assignment.weighted import weighted_sums
from stage1_tokenizer.quantizers.distortion import weighted_distortion
from stage1_tokenizer.quantizers.estimators import straight_through
from stage1_tokenizer.quantizers.interface import Quantizer, QuantizerOutput
from stage1_tokenizer.quantizers.nearest import nearest_codes
from stage1_tokenizer.quantizers.precision import full_precision
from stage1_tokenizer.quantizers.schedules import geometric


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
        """sum_ik w_ik |z_i - e_k|^2, through sums of the weights: nothing of size n k is held."""
        steepness = self.pull * self.sizes[0]

        def weigh(p: Tensor, vector: Tensor, code: Tensor) -> Tensor:
            return torch.where(index[vector] == code, 1.0, (steepness * p).clamp_max(1))

        with torch.no_grad(), full_precision(z.device):
            scores = Scores.of(z, self.codebook, 1 / self.temperature, None, True)
            of_vectors, of_codes, sums = weighted_sums(scores, weigh, steepness, z)
        # z has no gradient here, which is all that the weighted means of the codes would be for
        return weighted_distortion(z, self.codebook, of_vectors, of_codes, sums)
