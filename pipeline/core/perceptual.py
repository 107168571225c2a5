"""How different two pictures look to a network: LPIPS-VGG where its weights are at hand, EfficientNet-Lite0 anywhere."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path

import lpips
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core.efficientnet import MIN_SIZE, Lite0Features
from pipeline.core.errors import UserError
from pipeline.core.files import sha256

VGG16_FILE = "vgg16-397923af.pth"  # torch hub's name; it ends with the first digits of the file's sha256
VGG16_SHA256_PREFIX = "397923af"
VGG16_VARIABLE = "LGQ_VGG16_WEIGHTS"


class Perceptual(nn.Module, ABC):
    """A distance between images, one number a pair: differentiable, without parameters to train and without a train mode."""

    label: str  # what a number from it is called
    sha256: str  # of the weights file

    @abstractmethod
    def forward(self, images: Float[Tensor, "b 3 y x"], others: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b"]:
        """The distances of float images in [-1, 1]."""


class Lite0Perceptual(Perceptual):
    """Squared distance of channel-normalised features at four depths of EfficientNet-Lite0, averaged over the grid and summed.

    Zhang et al. 2018 (eq. 1) with all channel weights 1: not calibrated on human judgement, so not called LPIPS. Smaller
    images are enlarged to `smallest_side` (64: the deepest of the four grids has 4x4 cells).
    """

    label = "Perceptual distance (EfficientNet-Lite0)"

    def __init__(self, smallest_side: int = 64) -> None:
        super().__init__()
        self.smallest_side = smallest_side
        self.network = Lite0Features()
        self.sha256 = self.network.sha256

    def forward(self, images: Float[Tensor, "b 3 y x"], others: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b"]:
        ours, theirs = self._taps(images), self._taps(others)
        return torch.stack([(a - b).square().sum(1).mean((1, 2)) for a, b in zip(ours, theirs, strict=True)]).sum(0)

    def _taps(self, images: Tensor) -> list[Tensor]:
        return [F.normalize(tap, dim=1, eps=1e-8) for tap in self.network.taps(_at_least(images, self.smallest_side))]


class LpipsPerceptual(Perceptual):
    """LPIPS with the VGG16 trunk (Zhang et al. 2018, version 0.1); the trunk's weights come from a file on this machine.

    Images below 32 pixels a side are refused by the trunk's five halvings; enlarge them first.
    """

    label = "LPIPS (VGG16)"

    def __init__(self, weights: Path) -> None:
        super().__init__()
        self.sha256 = sha256(weights)
        if not self.sha256.startswith(VGG16_SHA256_PREFIX):
            raise UserError(f"{weights}: sha256 begins {self.sha256[:8]}, not {VGG16_SHA256_PREFIX}; fetch it again")
        self.network = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
        _load_trunk(self.network.net, torch.load(weights, map_location="cpu", weights_only=True, mmap=True))
        self.requires_grad_(False)

    def forward(self, images: Float[Tensor, "b 3 y x"], others: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b"]:
        return self.network(images, others).flatten()


def vgg16_weights() -> Path | None:
    """The VGG16 file that $LGQ_VGG16_WEIGHTS names or torch hub has cached; None without either. Never downloads."""
    given = os.environ.get(VGG16_VARIABLE)
    if given:
        if not Path(given).is_file():
            raise UserError(f"{VGG16_VARIABLE}: no file {given}; unset it or give the path of {VGG16_FILE}")
        return Path(given)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / VGG16_FILE
    return cached if cached.is_file() else None


def lite0_perceptual() -> Perceptual:
    """The distance that works anywhere."""
    return Lite0Perceptual()


def native_lite0_perceptual() -> Perceptual:
    """The same at the images' own size from 32 pixels on: at 32 pixels a third of the cost, and a coarser judge."""
    return Lite0Perceptual(smallest_side=MIN_SIZE)


def lpips_perceptual() -> Perceptual:
    """The field's distance; UserError where its weights are not on this machine."""
    weights = vgg16_weights()
    if weights is None:
        raise UserError(
            f"perceptual: lpips needs torchvision's {VGG16_FILE}, which is not in torch hub's cache; "
            f"give its path in {VGG16_VARIABLE}, or use efficientnet_lite0"
        )
    return LpipsPerceptual(weights)


PERCEPTUAL = {
    "lpips": lpips_perceptual,
    "efficientnet_lite0": lite0_perceptual,
    "efficientnet_lite0_native": native_lite0_perceptual,
}


def load_perceptual(name: str) -> Perceptual | None:
    """The distance of that name, frozen; None for "none"."""
    if name == "none":
        return None
    if name not in PERCEPTUAL:
        raise UserError(f"perceptual: no {name!r}; choose from {', '.join([*PERCEPTUAL, 'none'])}")
    return PERCEPTUAL[name]().eval()


def best_perceptual() -> Perceptual:
    """LPIPS-VGG where its weights are on this machine, else EfficientNet-Lite0: what an evaluation reports under its label."""
    return (lpips_perceptual() if vgg16_weights() else lite0_perceptual()).eval()


def _at_least(images: Tensor, side: int) -> Tensor:
    smallest = min(images.shape[-2:])
    if smallest >= side:
        return images
    return F.interpolate(images, scale_factor=side / smallest, mode="bilinear", align_corners=False)


def _load_trunk(trunk: nn.Module, weights: dict[str, Tensor]) -> None:
    """torchvision's `features.<i>.weight` into lpips' slices, which keep the numbers i."""
    own = trunk.state_dict()
    renamed = {key: weights[f"features.{key.split('.', 1)[1]}"] for key in own}
    trunk.load_state_dict(renamed)
