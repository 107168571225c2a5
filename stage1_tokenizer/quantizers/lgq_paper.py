"""LGQ as published: soft assignment of learnable codes, hard in value.

The objective is to the letter that of the public code's default mode (MultiBinDiscretizer, "lmb": flattened, "l2_sq").
`lgq` is ours.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_tokenizer.quantizers.estimators import straight_through
from stage1_tokenizer.quantizers.global_batch import from_first_process
from stage1_tokenizer.quantizers.interface import Quantizer, QuantizerOutput
from stage1_tokenizer.quantizers.nearest import nearest_codes
from stage1_tokenizer.quantizers.schedules import linear
from stage1_tokenizer.quantizers.soft_assignment import soft_assign
from stage1_tokenizer.quantizers.usage import peak_penalty, perplexity, usage_penalty


class LGQPaper(Quantizer):
    """q = q_soft + sg(q_hard - q_soft); loss mean(q - z)^2 + l_peak L_peak + l_bins L_bins + l_floor L_floor.

    The usage in L_bins and L_floor is that of this process's vectors, as published. Where we differ: the temperature
    moves per step, not per epoch, and the value is exactly the code's, which q_soft + (q_hard - q_soft) is not.
    """

    temperature: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        temperature_start: float = 1.0,
        temperature_end: float = 0.1,
        peak_weight: float = 0.005,
        usage_weight: float = 0.005,
        floor_weight: float = 0.0,
        min_perplexity: float = 0.0,
    ) -> None:
        super().__init__(dim, [codebook_size])
        self.temperature_start = temperature_start
        self.temperature_end = temperature_end
        self.peak_weight = peak_weight
        self.usage_weight = usage_weight
        self.floor_weight = floor_weight
        self.min_perplexity = min_perplexity
        self.codebook = nn.Parameter(torch.randn(codebook_size, dim))
        self.register_buffer("temperature", torch.tensor(float(temperature_start)))

    def forward(self, z: Float[Tensor, "n c"]) -> QuantizerOutput:
        if not self.training:
            index = nearest_codes(z, self.codebook)
            return QuantizerOutput(F.embedding(index, self.codebook), index[:, None], {})
        soft = soft_assign(z, self.codebook, self.temperature)
        codes = straight_through(soft.codes, F.embedding(soft.index, self.codebook))
        losses = {
            "reconstruction": F.mse_loss(codes, z),
            "peak": self.peak_weight * peak_penalty(soft.purity),
            "usage": self.usage_weight * usage_penalty(soft.usage),
            "floor": self.floor_weight * (self.min_perplexity - perplexity(soft.usage)).relu().square(),
        }
        return QuantizerOutput(codes, soft.index[:, None], losses)

    def dequantize(self, indices: Int[Tensor, "n 1"]) -> Float[Tensor, "n c"]:
        return F.embedding(indices[:, 0], self.codebook)

    @torch.no_grad()
    def initialize(self, z: Float[Tensor, "n c"]) -> None:
        """Codes are vectors of the first batch; with fewer of them than codes they repeat, with N(0, .01^2) added."""
        draw = torch.Generator().manual_seed(0)
        k = len(self.codebook)
        order = torch.randperm(len(z), generator=draw).repeat(-(-k // len(z)))[:k].to(z.device)
        noise = 0.01 * torch.randn(self.codebook.shape, generator=draw).to(z)
        self.codebook.copy_(from_first_process(z[order] + (noise if len(z) < k else 0)))

    def anneal(self, progress: float) -> None:
        self.temperature.fill_(linear(self.temperature_start, self.temperature_end, progress))
