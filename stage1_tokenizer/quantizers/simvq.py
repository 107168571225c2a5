"""SimVQ: a frozen codebook under one trained linear map (Zhu et al. 2024, arXiv 2411.02038)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_tokenizer.quantizers.distortion import codebook_and_commitment
from stage1_tokenizer.quantizers.estimators import straight_through
from stage1_tokenizer.quantizers.interface import Quantizer, QuantizerOutput
from stage1_tokenizer.quantizers.nearest import nearest_codes
from stage1_tokenizer.quantizers.precision import full_precision


class SimVQ(Quantizer):
    """E = B W^T, B ~ N(0, 1/c) a constant, W c x c trained; q = e_{k*}, J_z = I, and the losses of `vq`.

    The gradient of any chosen code moves W and with it every code, so none dies. W starts as nn.Linear does, without bias.
    vector-quantize-pytorch replaces the paper's straight-through gradient by the rotation trick.
    """

    frozen: Tensor

    def __init__(self, dim: int, codebook_size: int, commitment_weight: float = 0.25) -> None:
        super().__init__(dim, [codebook_size])
        self.commitment_weight = commitment_weight
        self.register_buffer("frozen", torch.randn(codebook_size, dim) * dim**-0.5)
        self.transform = nn.Linear(dim, dim, bias=False)

    def forward(self, z: Float[Tensor, "n c"]) -> QuantizerOutput:
        with torch.no_grad():
            index = nearest_codes(z, self._transformed(self.frozen))[:, None]
        codes = self.dequantize(index)
        losses = codebook_and_commitment(z, codes, self.commitment_weight) if self.training else {}
        return QuantizerOutput(straight_through(z, codes), index, losses)

    def dequantize(self, indices: Int[Tensor, "n 1"]) -> Float[Tensor, "n c"]:
        return self._transformed(F.embedding(indices[:, 0], self.frozen))

    def _transformed(self, rows: Float[Tensor, "m c"]) -> Float[Tensor, "m c"]:
        with full_precision(rows.device):
            return self.transform(rows)
