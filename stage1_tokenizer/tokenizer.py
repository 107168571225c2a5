"""A tokenizer: encoder, quantizer, decoder. The only place that flattens, projects and pins precision."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float, Int
from torch import Tensor, nn

from pipeline.core.config import require_kinds
from pipeline.core.token_spec import TokenSpec
from stage1_tokenizer.backbone import Backbone, ImageDecoder, ImageEncoder, token_grid
from stage1_tokenizer.quantizers import QUANTIZERS, QuantizerOutput, build_quantizer, on_grid
from stage1_tokenizer.vision import build_vision


class Tokenizer(ModelMixin, ConfigMixin):
    """Images to token indices and back.

    `quantizer_config` is a name and its options as in `configs/quantizer/`; `backbone_config` the fields of `Backbone`;
    `vision_config` is what takes the place of the encoder if the backbone says so, as in `configs/vision/`.
    Saved by `save_pretrained` as safetensors and `config.json`, loaded by `from_pretrained`, with nothing else needed.

    While `frozen` the encoder gets no gradient. It is a matter of a training, not saved.

    Raises ValueError where the image size is not a multiple of the backbone's factor, or an option is unknown.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        image_size: Sequence[int],
        backbone_config: dict[str, Any],
        quantizer_config: dict[str, Any],
        vision_config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        shape = Backbone(**{**backbone_config, "channels": tuple(backbone_config["channels"])})
        if shape.pretrained != (vision_config is not None):
            raise ValueError("backbone.pretrained: true needs the configuration of a vision network, and false none")
        self.frozen = False
        self.grid = token_grid(image_size, shape.factor)
        self.quantizer = on_grid(build_quantizer(**quantizer_config))
        width = shape.channels[-1]
        self.encoder = ImageEncoder(shape) if vision_config is None else build_vision(vision_config, self.grid)
        self.to_code = nn.Linear(self.encoder.channels, self.quantizer.input_dim)
        self.norm = nn.LayerNorm(self.quantizer.input_dim, elementwise_affine=False) if shape.latent_norm else nn.Identity()
        self.from_code = nn.Linear(self.quantizer.dim, width)
        self.decoder = ImageDecoder(shape, width)
        self.spec = TokenSpec(
            sizes=self.quantizer.sizes,
            scales=self.quantizer.scales(self.grid),
            image_size=(int(image_size[0]), int(image_size[1])),
        )

    @classmethod
    def create(
        cls, image_size: int, backbone: Backbone, quantizer: dict[str, Any], vision: dict[str, Any] | None = None
    ) -> Tokenizer:
        """A tokenizer of square images with fresh weights; `vision` is needed where the encoder is pretrained.

        Raises ValueError for options of another kind than the quantizer's or the network's constructor declares.
        """
        options = {key: value for key, value in quantizer.items() if key != "name"}
        kind = QUANTIZERS.get(quantizer["name"])
        if kind is not None:
            require_kinds("quantizer", kind.__init__, options)
        fields = dataclasses.asdict(backbone) | {"channels": list(backbone.channels)}
        return cls([image_size, image_size], fields, quantizer, vision if backbone.pretrained else None)

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b 3 y x"]) -> Int[Tensor, "b t d"]:
        """Token indices of images in [-1, 1]."""
        return self.quantize(self.latents(images)).indices

    @torch.no_grad()
    def decode(self, indices: Int[Tensor, "b t d"]) -> Float[Tensor, "b 3 y x"]:
        """Images, about [-1, 1], of token indices."""
        return self.render(self.quantizer.dequantize(indices, self.grid))

    def latents(self, images: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b h w c"]:
        """What the quantizer sees, in float32 whatever the precision of the encoder."""
        return self.project(self.features(images))

    def features(self, images: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b h w f"]:
        """What the encoder gives, in its precision."""
        if tuple(images.shape[-2:]) != self.spec.image_size:
            raise ValueError(f"images of {tuple(images.shape[-2:])} pixels; this tokenizer takes {self.spec.image_size}")
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.encoder(images).permute(0, 2, 3, 1)

    def project(self, features: Float[Tensor, "b h w f"]) -> Float[Tensor, "b h w c"]:
        """Latents of features, in float32."""
        with torch.autocast(features.device.type, enabled=False):
            return self.norm(self.to_code(features.float()))

    def quantize(self, latents: Float[Tensor, "b h w c"]) -> QuantizerOutput:
        """Codes "b h w c", indices "b t d" and the quantizer's losses, in float32."""
        with torch.autocast(latents.device.type, enabled=False):
            return self.quantizer(latents)

    def render(self, codes: Float[Tensor, "b h w c"]) -> Float[Tensor, "b 3 y x"]:
        """Images, about [-1, 1], of codes."""
        return self.decoder(self.from_code(codes).permute(0, 3, 1, 2))
