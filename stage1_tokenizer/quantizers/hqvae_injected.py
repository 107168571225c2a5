"""SQ-VAE-2, HQ-VAE of injected top-down layers (Takida et al. 2024, arXiv 2401.00365, section 4), of any base quantizer.

With `vq_ema` as base this is the hierarchy of VQ-VAE-2 (Razavi et al. 2019, arXiv 1906.00446), which SQ-VAE-2 makes Bayesian.
"""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_tokenizer.quantizers.composition import Base, check_sides, hard_codes, in_proportion, make, summed
from stage1_tokenizer.quantizers.interface import GridQuantizer, Quantizer, QuantizerOutput
from stage1_tokenizer.quantizers.precision import full_precision


class InjectedTopDown(GridQuantizer):
    """Layer l, coarse to fine, quantizes zhat_l = G_l(H_l(x), Z_1 ... Z_{l-1}); the decoder is given Z_1 ... Z_L side by side.

    Loss sum_l sum_tokens of the base's, per position of the finest grid: with `sqvae` the evidence of the paper, |zhat_l -
    Z_l|^2 / (2 s_l^2) - H(p_l) with codes and an s_l per layer. Every layer has K codes, since a token's alphabet is one.

    sides: tokens per side and layer, those of the last for a whole grid; other grids in proportion.
    base: the nested configuration of a layer's quantizer; a code has the channels of all layers, `len(sides)` times its.

    INFERRED (the paper is known from its overview): H_l and G_l, which are networks there; here a layer has its own block
    of the latents' channels, filled by the encoder's last layer and averaged over its cells, as H_l, and G_l adds to it a
    3x3 convolution of the codes above, enlarged by repetition, that starts at zero. So at first layers do not know each other.
    """

    layers: Sequence[Quantizer]

    def __init__(self, base: Base, sides: Sequence[int] = (1, 2)) -> None:
        check_sides("InjectedTopDown.sides", sides)
        layers = [make("InjectedTopDown.base", base) for _ in sides]
        first = layers[0]
        super().__init__(len(sides) * first.dim, first.sizes, len(sides) * first.input_dim)
        self.sides = tuple(sides)
        self.layers = cast("Sequence[Quantizer]", nn.ModuleList(layers))
        self.injections = nn.ModuleList(
            nn.Conv2d(above * first.dim, first.input_dim, 3, padding=1) for above in range(1, len(sides))
        )
        for injection in self.injections.parameters():
            nn.init.zeros_(injection)

    def scales(self, grid: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        return in_proportion(self.sides, grid)

    def forward(self, z: Float[Tensor, "b h w input_dim"]) -> QuantizerOutput:
        scales = self.scales((z.shape[1], z.shape[2]))
        codes, outputs = z.new_empty(len(z), 0, *scales[-1]), []
        for number, (h, w) in enumerate(scales):
            outputs.append(self.layers[number](self._seen(z, codes, number, (h, w))))
            codes = torch.cat([codes, enlarged(outputs[-1].codes, (h, w), scales[-1])], 1)
        indices = torch.cat([out.indices.unflatten(0, (len(z), -1)) for out in outputs], 1)
        shares = [h * w / (scales[-1][0] * scales[-1][1]) for h, w in scales]
        losses = [{name: share * loss for name, loss in out.losses.items()} for out, share in zip(outputs, shares, strict=True)]
        return QuantizerOutput(codes.permute(0, 2, 3, 1), indices, summed(losses, 1.0))

    def dequantize(self, indices: Int[Tensor, "b t d"], grid: tuple[int, int]) -> Float[Tensor, "b h w c"]:
        scales = self.scales(grid)
        parts = indices.split([h * w for h, w in scales], 1)
        each = zip(self.layers, parts, scales, strict=True)
        codes = [enlarged(layer.dequantize(part.flatten(0, 1)), scale, grid) for layer, part, scale in each]
        return torch.cat(codes, 1).permute(0, 2, 3, 1)

    @torch.no_grad()
    def initialize(self, z: Float[Tensor, "b h w input_dim"]) -> None:
        """Layer after layer, each from what it sees when those above have started."""
        scales = self.scales((z.shape[1], z.shape[2]))
        codes = z.new_empty(len(z), 0, *scales[-1])
        for number, (layer, scale) in enumerate(zip(self.layers, scales, strict=True)):
            seen = self._seen(z, codes, number, scale)
            layer.initialize(seen)
            codes = torch.cat([codes, enlarged(hard_codes(layer, seen), scale, scales[-1])], 1)

    def anneal(self, progress: float) -> None:
        for layer in self.layers:
            layer.anneal(progress)

    def _seen(
        self, z: Float[Tensor, "b h w input_dim"], above: Float[Tensor, "b c h w"], number: int, scale: tuple[int, int]
    ) -> Float[Tensor, "n part"]:
        """zhat of a layer: its block of the latents, and what the codes above add."""
        block = z.chunk(len(self.layers), 3)[number].permute(0, 3, 1, 2).contiguous()  # one layout, whatever the input's
        with full_precision(z.device):
            if number:
                block = block + self.injections[number - 1](above)
            return F.adaptive_avg_pool2d(block, scale).permute(0, 2, 3, 1).flatten(0, 2)


def enlarged(codes: Float[Tensor, "n c"], scale: tuple[int, int], grid: tuple[int, int]) -> Float[Tensor, "b c h w"]:
    """Codes of the cells of a coarse grid, repeated over the whole one."""
    return F.interpolate(codes.unflatten(0, (-1, *scale)).permute(0, 3, 1, 2), size=grid, mode="nearest")
