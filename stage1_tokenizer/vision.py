"""Pretrained vision networks as grids of features: an encoder for a tokenizer, and what its latents are compared with."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel

from pipeline.core.efficientnet import Lite0Trunk
from pipeline.core.errors import UserError
from stage1_tokenizer.quantizers.options import one_of


class VisionNetwork(nn.Module, ABC):
    """Images in [-1, 1] -> features "b c h w", one vector per token: images are resized so that its patches are the grid.

    Made with weights at random, so that a saved tokenizer brings its own; `load_pretrained` takes the published ones.
    Its dropout and the like stay off: it has no train mode.
    """

    channels: int
    stride: int  # pixels of a patch, along one side

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid

    @abstractmethod
    def features(self, images: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b c h w"]:
        """Features of images in [-1, 1] whose patches are the grid."""

    @abstractmethod
    def load_pretrained(self) -> None:
        """Load the published weights; UserError where they are not to be had."""

    def forward(self, images: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b c h w"]:
        size = (self.grid[0] * self.stride, self.grid[1] * self.stride)
        if tuple(images.shape[-2:]) != size:
            images = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
        return self.features(images)

    def train(self, mode: bool = True) -> VisionNetwork:
        return super().train(False)


class Lite0Network(VisionNetwork):
    """EfficientNet-Lite0 down to a grid of 2, 4, 8 or 16 pixels, with 16, 24, 40 or 112 channels; works without a network."""

    def __init__(self, grid: tuple[int, int], stride: int = 16) -> None:
        super().__init__(grid)
        self.stride = stride
        self.trunk = Lite0Trunk(stride, weights=False)
        self.channels = self.trunk.channels

    def features(self, images: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b c h w"]:
        return self.trunk(images)

    def load_pretrained(self) -> None:
        self.trunk.load_state_dict(Lite0Trunk(self.stride).state_dict())


class TransformersNetwork(VisionNetwork):
    """A vision transformer of the transformers library: the patches' last hidden states, after its final norm.

    weights:      a name on the Hugging Face Hub or a folder with the published weights.
    mean, std:    of the images' channels, for images in [0, 1].
    architecture: the `model_type` of its configuration, and what differs from that type's defaults.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, grid: tuple[int, int], weights: str, mean: Sequence[float], std: Sequence[float], architecture: dict[str, Any]
    ) -> None:
        super().__init__(grid)
        config: Any = AutoConfig.for_model(**architecture)
        if not isinstance(getattr(config, "patch_size", None), int):
            raise ValueError(f"vision.architecture: {architecture.get('model_type')} has no patches; give a vision transformer")
        self.weights = weights
        self.stride = config.patch_size
        self.channels = config.hidden_size
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.body: Any = AutoModel.from_config(config)
        # some interpolate their position embeddings to the images' size unasked, others only if told to
        known = inspect.signature(self.body.forward).parameters
        self.options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in known else {}
        self.eval()

    def features(self, images: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b c h w"]:
        hidden = self.body((images * 0.5 + 0.5 - self.mean) / self.std, **self.options).last_hidden_state
        h, w = self.grid
        return hidden[:, -h * w :].transpose(1, 2).unflatten(2, (h, w))  # class and register tokens come first

    def load_pretrained(self) -> None:
        try:
            published, report = AutoModel.from_pretrained(
                self.weights, config=self.body.config, dtype=torch.float32, output_loading_info=True, use_safetensors=True
            )
        except OSError:
            raise UserError(
                f"vision.weights: {self.weights} is no folder of a model, not in the Hugging Face cache, and cannot be fetched "
                "from the Hub; give a folder, or use vision=efficientnet_lite0, which installs with the project"
            ) from None
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{self._misfit()} ({str(error).strip().splitlines()[0]})") from None
        if report["missing_keys"]:
            raise UserError(f"{self._misfit()} (it has no {min(report['missing_keys'])})")
        self.body.load_state_dict(published.state_dict())

    def _misfit(self) -> str:
        return f"vision.architecture: does not fit the weights {self.weights}; take the values of its config.json"


NETWORKS: dict[str, type[VisionNetwork]] = {"efficientnet_lite0": Lite0Network, "transformers": TransformersNetwork}


def build_vision(config: dict[str, Any], grid: tuple[int, int]) -> VisionNetwork:
    """The network of a configuration as in `configs/vision/`, with weights at random, for a grid of tokens.

    Raises ValueError for an unknown name or option, or a value that the network refuses.
    """
    options = {key: value for key, value in config.items() if key != "name"}
    kind = NETWORKS[one_of("vision.name", config["name"], NETWORKS)]
    known = list(inspect.signature(kind).parameters)[1:]
    for option in options:
        one_of(f"vision: option of {config['name']}", option, known)
    return kind(grid, **options)


def load_vision(config: dict[str, Any], grid: tuple[int, int]) -> VisionNetwork:
    """The same with its published weights, to compare with: none of them is trained."""
    network = build_vision(config, grid)
    network.load_pretrained()
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
