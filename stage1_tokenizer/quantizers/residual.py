"""RQ: residual quantization (RQ-VAE, Lee et al. 2022, arXiv 2203.01941), of any base quantizer."""

import functools
from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stage1_tokenizer.quantizers.composition import Base, hard_codes, make, summed
from stage1_tokenizer.quantizers.estimators import straight_through
from stage1_tokenizer.quantizers.interface import Quantizer, QuantizerOutput


class Residual(Quantizer):
    """r_0 = z, q_d = Q(r_{d-1}), r_d = r_{d-1} - sg q_d; the code is sum_d q_d, with D indices.

    With `vq_ema` as base this is RQ-VAE: loss beta mean_d |z - sg zhat_d|^2, straight-through, one codebook for all
    depths (`shared`) or one each. For any other base (INFERRED) its estimator and its losses apply at every depth: the
    gradient of z is the mean over the depths, of codes and losses alike, and codebooks get their whole gradient from
    each. So the losses are reported as sums over depths, D times the published mean. Summing every depth's
    straight-through gradient, as public code does, would multiply the encoder's gradient by D. Further codes, where the
    base has any, are the last depth's on top of the depths before.
    """

    layers: Sequence[Quantizer]

    def __init__(self, base: Base, depth: int = 4, shared: bool = True) -> None:
        layers = [make("Residual.base", base, residual=True) for _ in range(1 if shared else depth)]
        super().__init__(layers[0].dim, layers[0].sizes * depth)
        self.depth = depth
        self.layers = cast("Sequence[Quantizer]", nn.ModuleList(layers))

    def forward(self, z: Float[Tensor, "n c"]) -> QuantizerOutput:
        codes, outputs, further = torch.zeros_like(z), [], ()
        for layer in self._each():
            outputs.append(layer(straight_through(z / self.depth, z - codes)))
            further = tuple(codes + others for others in outputs[-1].further)
            codes = codes + outputs[-1].codes
        indices = torch.cat([out.indices for out in outputs], 1)
        return QuantizerOutput(codes, indices, summed([out.losses for out in outputs], 1.0), further)

    def dequantize(self, indices: Int[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        """Fewer than D columns are the coarser approximation of that depth."""
        width = len(self.sizes) // self.depth
        each = zip(self._each(), indices.split(width, 1), strict=False)
        return functools.reduce(torch.add, [layer.dequantize(index) for layer, index in each])

    @torch.no_grad()
    def initialize(self, z: Float[Tensor, "n c"]) -> None:
        """Each depth from its residuals; a shared codebook first from z, then from the residuals of all depths."""
        residuals = [z]
        for depth, layer in enumerate(self._each()):
            if depth == 0 or len(self.layers) > 1:
                layer.initialize(residuals[-1])
            residuals.append(residuals[-1] - hard_codes(layer, residuals[-1]))
        if len(self.layers) == 1 < self.depth:
            self.layers[0].initialize(torch.stack(residuals[:-1], 1).flatten(0, 1))

    def anneal(self, progress: float) -> None:
        for layer in self.layers:
            layer.anneal(progress)

    def _each(self) -> list[Quantizer]:
        """The layer of every depth."""
        return [self.layers[depth % len(self.layers)] for depth in range(self.depth)]
