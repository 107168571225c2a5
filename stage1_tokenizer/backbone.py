"""Convolutional encoder and decoder in the manner of VQGAN, made of diffusers' blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from diffusers.models.autoencoders.vae import Decoder, Encoder
from jaxtyping import Float
from torch import Tensor, nn

GROUPS = 16  # of the group normalisation


@dataclass(frozen=True)
class Backbone:
    """The size of encoder and decoder.

    patch:     pixels of a square that become channels before the first convolution (1: none). Large patches are fast.
    channels:  of each stage; the resolution halves from one stage to the next.
    layers:    residual blocks per stage (the decoder has one more).
    attention: self-attention over the coarsest grid, in the middle of both.
    latent_norm: layer norm, without gains, of the latents before the quantizer, as in LGQ's reference. It suits quantizers that
               measure distances, since their codes need not follow the latents' scale; not those with one level per channel.
    pretrained: the vision network of the configuration is the encoder, as in VQRAE; the rest then describes the decoder.
    """

    patch: int = 1
    channels: tuple[int, ...] = (128, 128, 256, 256, 512)
    layers: int = 2
    attention: bool = True
    latent_norm: bool = False
    pretrained: bool = False

    def __post_init__(self) -> None:
        if not self.channels or not all(1 <= width <= 65536 for width in self.channels):
            raise ValueError(f"channels: {list(self.channels)}; give 1 to 65536 for each of one stage or more")
        if not 1 <= self.patch <= 256 or not 1 <= self.layers <= 100:
            raise ValueError(f"patch, layers: {self.patch}, {self.layers}; give 1 to 256 and 1 to 100")
        for width in self.channels:
            if width % GROUPS:
                nearest = max(GROUPS, round(width / GROUPS) * GROUPS)
                raise ValueError(f"channels: {width} is not a multiple of {GROUPS}, the normalisation's groups; give {nearest}")

    @property
    def factor(self) -> int:
        """Pixels per token, along one side."""
        return self.patch * 2 ** (len(self.channels) - 1)


class ImageEncoder(nn.Module):
    """Images "b 3 y x" in [-1, 1] -> features "b c h w" on the token grid, with the last stage's channels."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        stages = len(backbone.channels)
        self.channels = backbone.channels[-1]
        self.patchify = nn.PixelUnshuffle(backbone.patch)
        self.body = Encoder(
            in_channels=3 * backbone.patch**2,
            out_channels=self.channels,
            down_block_types=("DownEncoderBlock2D",) * stages,
            block_out_channels=tuple(backbone.channels),
            layers_per_block=backbone.layers,
            norm_num_groups=GROUPS,
            double_z=False,
            mid_block_add_attention=backbone.attention,
        )

    def forward(self, images: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b c h w"]:
        return self.body(self.patchify(images))


class ImageDecoder(nn.Module):
    """Features "b c h w" on the token grid -> images "b 3 y x", about [-1, 1], without an output activation."""

    def __init__(self, backbone: Backbone, in_channels: int) -> None:
        super().__init__()
        stages = len(backbone.channels)
        self.body = Decoder(
            in_channels=in_channels,
            out_channels=3 * backbone.patch**2,
            up_block_types=("UpDecoderBlock2D",) * stages,
            block_out_channels=tuple(backbone.channels),
            layers_per_block=backbone.layers,
            norm_num_groups=GROUPS,
            mid_block_add_attention=backbone.attention,
        )
        self.unpatchify = nn.PixelShuffle(backbone.patch)

    @property
    def last_weight(self) -> Tensor:
        """The weight of the last convolution, where VQGAN compares gradients."""
        return self.body.conv_out.weight

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 y x"]:
        return self.unpatchify(self.body(features))


def token_grid(image_size: Sequence[int], factor: int) -> tuple[int, int]:
    """(h, w) of the tokens of an image (y, x); ValueError where the factor does not divide it."""
    for side in image_size:
        if side % factor:
            nearest = max(factor, factor * math.floor(side / factor + 0.5))
            raise ValueError(f"image_size: {side} pixels cannot be cut into tokens of {factor}; use {nearest}, for example")
    y, x = image_size
    return y // factor, x // factor
