"""MSVQ: multi-scale residual quantization (VAR, Tian et al. 2024, arXiv 2404.02905), with any base quantizer's search."""

import functools
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_tokenizer.quantizers.composition import Base, check_sides, in_proportion, make, summed
from stage1_tokenizer.quantizers.distortion import codebook_and_commitment
from stage1_tokenizer.quantizers.estimators import straight_through
from stage1_tokenizer.quantizers.interface import GridQuantizer, QuantizerOutput
from stage1_tokenizer.quantizers.precision import full_precision

TICKS = (1 / 12, 13 / 36, 23 / 36, 11 / 12)  # where between the first and the last scale each phi stands


class MultiScale(GridQuantizer):
    """For every scale s: quantize the area-averaged rest, take phi_s(bicubic_up(codes)) from it; f_hat is their sum.

    phi(h) = h/2 + conv3x3(h)/2, four of them, each for the scales nearest its tick (partially shared, as published).
    Loss mean_s [mean|f_hat_s - sg z|^2 + beta mean|sg f_hat_s - z|^2], J_z = I.

    sides: tokens per side and scale, those of the last for a whole grid: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16) for 16 x 16. On
        other grids they shrink or grow in proportion, and scales that then coincide are taken once.
    base: the nested configuration of the quantizer that all scales share. Its search and codes are used, and f_hat has
        the estimator above instead of its own; `base_weight` times its own losses, means over the scales, are added:
        0 for VAR (base `vq`), 1 for the likes of XQ-GAN whose base has an entropy term or moving averages.
    """

    def __init__(
        self,
        base: Base,
        sides: Sequence[int] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
        commitment_weight: float = 0.25,
        base_weight: float = 0.0,
    ) -> None:
        check_sides("MultiScale.sides", sides)
        part = make("MultiScale.base", base, residual=True)
        super().__init__(part.dim, part.sizes)
        self.base = part
        self.sides = tuple(sides)
        self.commitment_weight = commitment_weight
        self.base_weight = base_weight
        self.phi = nn.ModuleList(nn.Conv2d(self.dim, self.dim, 3, padding=1) for _ in TICKS)

    def scales(self, grid: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        return tuple(dict.fromkeys(in_proportion(self.sides, grid)))

    def forward(self, z: Float[Tensor, "b h w c"]) -> QuantizerOutput:
        z = z.permute(0, 3, 1, 2).contiguous()  # one layout, whatever the input's
        grid = z.shape[-2], z.shape[-1]
        scales, rest, outputs, terms = self.scales(grid), z.detach(), [], []
        approximation = torch.zeros_like(z)
        for number, scale in enumerate(scales):
            outputs.append(self.base(F.adaptive_avg_pool2d(rest, scale).permute(0, 2, 3, 1).flatten(0, 2)))
            added = self._spread(outputs[-1].indices, scales, number)
            approximation = approximation + added
            rest = rest - added.detach()
            if self.training:
                terms.append(codebook_and_commitment(z, approximation, self.commitment_weight))
        losses = summed(terms, 1 / len(scales)) if self.training else {}
        if self.base_weight:
            own = summed([out.losses for out in outputs], self.base_weight / len(scales))
            losses |= {f"base {name}": loss for name, loss in own.items()}
        indices = torch.cat([out.indices.unflatten(0, (len(z), -1)) for out in outputs], 1)
        return QuantizerOutput(straight_through(z, approximation).permute(0, 2, 3, 1), indices, losses)

    def dequantize(self, indices: Int[Tensor, "b t d"], grid: tuple[int, int]) -> Float[Tensor, "b h w c"]:
        scales = self.scales(grid)
        parts = indices.split([h * w for h, w in scales], 1)
        added = [self._spread(part.flatten(0, 1), scales, number) for number, part in enumerate(parts)]
        return functools.reduce(torch.add, added).permute(0, 2, 3, 1)

    def initialize(self, z: Float[Tensor, "b h w c"]) -> None:
        self.base.initialize(z.flatten(0, 2))

    def anneal(self, progress: float) -> None:
        self.base.anneal(progress)

    def _spread(
        self, indices: Int[Tensor, "n d"], scales: Sequence[tuple[int, int]], number: int
    ) -> Float[Tensor, "b c h w"]:
        """phi_s of the codes of one scale on the whole grid."""
        (h, w), grid = scales[number], scales[-1]
        with full_precision(indices.device):
            codes = self.base.dequantize(indices).unflatten(0, (-1, h, w)).permute(0, 3, 1, 2).contiguous()
            if (h, w) != grid:
                codes = F.interpolate(codes, size=grid, mode="bicubic")
            place = number / max(len(scales) - 1, 1)
            phi = self.phi[min(range(len(TICKS)), key=lambda tick: abs(TICKS[tick] - place))]
            return 0.5 * codes + 0.5 * phi(codes)
