"""GRIT-VQ (arXiv 2602.01140). Known to us from its abstract alone: every equation here is INFERRED."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_tokenizer.quantizers.distortion import codebook_and_commitment
from stage1_tokenizer.quantizers.estimators import step_along, straight_through
from stage1_tokenizer.quantizers.interface import Quantizer, QuantizerOutput
from stage1_tokenizer.quantizers.nearest import nearest_codes
from stage1_tokenizer.quantizers.options import one_of
from stage1_tokenizer.quantizers.precision import full_precision

RADII = {
    "bounded": lambda gap: gap / (1 + gap),
    "distance": lambda gap: gap,
    "constant": lambda gap: gap.detach(),
}


class GRIT(Quantizer):
    """The nearest code, all codes under one trained map, with a surrogate that moves z a step of radius r towards it.

    The abstract: "hard assignment in forward", a "radius-based surrogate" that "moves latents along the quantization
    direction with a controllable, geometry-aware step", a "data-agnostic integrated transform" of all codes. Read here as
    E' = E W^T with W = I at the start, s = |e' - z|, u = (e' - z) / s without gradient, and q = e' in value with the
    gradient of z + r(s) u: J_z = I - r'(s) u u^T, J_e' = r'(s) u u^T.

    radius: "bounded", r = s / (1 + s), so that a large gap moves a code no further than a small one; "distance", r = s,
        which is DiVeQ without noise; "constant", straight-through, where the codebook term of `vq` is added, as the
        surrogate gives the codes no gradient. The commitment term is always there.
    """

    def __init__(
        self, dim: int, codebook_size: int, radius: str = "bounded", commitment_weight: float = 0.25
    ) -> None:
        super().__init__(dim, [codebook_size])
        self.radius = one_of("GRIT.radius", radius, RADII)
        self.commitment_weight = commitment_weight
        self.codebook = nn.Parameter(torch.randn(codebook_size, dim))
        self.transform = nn.Parameter(torch.eye(dim))

    def forward(self, z: Float[Tensor, "n c"]) -> QuantizerOutput:
        with torch.no_grad():
            index = nearest_codes(z, self._transformed(self.codebook))[:, None]
        codes = self.dequantize(index)
        losses = codebook_and_commitment(z, codes, self.commitment_weight) if self.training else {}
        if self.radius != "constant":
            losses.pop("codebook", None)
        path = step_along(z, codes, codes - z, RADII[self.radius])
        return QuantizerOutput(straight_through(path, codes), index, losses)

    def dequantize(self, indices: Int[Tensor, "n 1"]) -> Float[Tensor, "n c"]:
        return self._transformed(F.embedding(indices[:, 0], self.codebook))

    def _transformed(self, rows: Float[Tensor, "m c"]) -> Float[Tensor, "m c"]:
        with full_precision(rows.device):
            return rows @ self.transform.T
