"""SoftVQ: a soft assignment as the code (Chen et al. 2024, arXiv 2412.10958); here with a hard path for the second stage."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_tokenizer.quantizers.estimators import on_sphere
from stage1_tokenizer.quantizers.information import negative_information
from stage1_tokenizer.quantizers.interface import Quantizer, QuantizerOutput
from stage1_tokenizer.quantizers.nearest import nearest_codes
from stage1_tokenizer.quantizers.schedules import geometric
from stage1_tokenizer.quantizers.soft_assignment import soft_assign

ENTROPY_TEMPERATURE = 0.01


class SoftVQ(Quantizer):
    """In training q = sum_k p_ik e_k, p = softmax(cos(z, sg e) / tau), unit codes; in eval mode the code of the largest p.

    The published method decodes the soft q at inference too, which has no finite number of bits: results of this class are
    those of its hard path. So that the two meet, tau may fall, from the published constant .07 to temperature_end.
    The codes' gradient comes through the mean alone, not through the logits. Loss: entropy_weight (mean H - H(mean)) at
    temperature .01. The public code applies this temperature in place; that it acts on the cosines, not on cosines / tau,
    is INFERRED, as is the start, directions of N(0, I). Its four codebooks for quarters of the sequence are left out: a
    quantizer knows no positions.
    """

    temperature: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        temperature_start: float = 0.07,
        temperature_end: float = 0.07,
        entropy_weight: float = 0.01,
    ) -> None:
        super().__init__(dim, [codebook_size])
        self.temperature_start = temperature_start
        self.temperature_end = temperature_end
        self.entropy_weight = entropy_weight
        self.codebook = nn.Parameter(F.normalize(torch.randn(codebook_size, dim), dim=1))
        self.register_buffer("temperature", torch.tensor(float(temperature_start)))

    def forward(self, z: Float[Tensor, "n c"]) -> QuantizerOutput:
        unit = on_sphere(z)
        units = F.normalize(self.codebook, dim=1)
        if not self.training:
            index = nearest_codes(unit, units)[:, None]
            return QuantizerOutput(self.dequantize(index), index, {})
        soft = soft_assign(unit, units.detach(), self.temperature, "dot", values=units)
        entropy = self.entropy_weight * negative_information(unit, units.detach(), ENTROPY_TEMPERATURE)
        return QuantizerOutput(soft.codes, soft.index[:, None], {"entropy": entropy})

    def dequantize(self, indices: Int[Tensor, "n 1"]) -> Float[Tensor, "n c"]:
        return F.normalize(F.embedding(indices[:, 0], self.codebook), dim=1)

    def anneal(self, progress: float) -> None:
        self.temperature.fill_(geometric(self.temperature_start, self.temperature_end, progress))
