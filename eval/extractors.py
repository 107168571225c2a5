"""The networks whose features the metrics compare, and what a metric from each of them may be called.

Inception-v3 with the 2015 weights is what the literature calls FID and IS; its weights are a file that the user brings.
EfficientNet-Lite0 installs as a package and works anywhere; every number from it says so in its label.
"""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

from pipeline.core.efficientnet import Lite0Features
from pipeline.core.errors import UserError
from pipeline.core.files import sha256

INCEPTION_FILE = URL_INCEPTION_V3.rsplit("/", 1)[1]
INCEPTION_SHA256_PREFIX = "6726825d"
INCEPTION_VARIABLE = "LGQ_INCEPTION_WEIGHTS"
LITE0_IN_FIDELITY = "efficientnet-lite0"
# the published names, which belong to Inception alone
INCEPTION_LABELS = {"fd": "FID", "is": "IS", "kid": "KID", "precision": "Precision", "recall": "Recall"}
LAYERS = {"isc": "logits", "fid": "pool", "kid": "pool", "prc": "pool"}


class Extractor(nn.Module, ABC):
    """uint8 images in, pooled features and logits out (float32); frozen, in eval mode."""

    name: str  # part of every label
    sha256: str  # of the weights file
    resize: str  # how images reach the network's size, for the record

    @abstractmethod
    def forward(self, images: UInt8[Tensor, "b 3 y x"]) -> tuple[Float[Tensor, "b f"], Float[Tensor, "b k"]]:
        """Pooled features and class logits."""

    @abstractmethod
    def label(self, metric: str) -> str:
        """What to call a metric ("fd", "is", "kid", "precision", "recall") that this network measured."""

    def describe(self) -> dict[str, str]:
        """What decides the features: numbers are comparable where this is equal."""
        return {"name": self.name, "sha256": self.sha256, "resize": self.resize}


class Lite0Extractor(Extractor):
    """EfficientNet-Lite0: 1280 features, 1000 logits.

    Small images are enlarged to 96 pixels: at their own size its last grid would be a single cell, and 128 pixels cost
    twice as much. Images above 96 pixels come at the weights' own 224.
    """

    name = "EfficientNet-Lite0"
    resize = "bilinear with antialiasing to 96 px, to 224 px above 96"

    def __init__(self) -> None:
        super().__init__()
        self.network = Lite0Features()
        self.sha256 = self.network.sha256

    def forward(self, images: UInt8[Tensor, "b 3 y x"]) -> tuple[Float[Tensor, "b f"], Float[Tensor, "b k"]]:
        side = 96 if max(images.shape[-2:]) <= 96 else 224
        pixels = images.float() / 127.5 - 1
        if tuple(images.shape[-2:]) != (side, side):
            pixels = F.interpolate(pixels, (side, side), mode="bilinear", align_corners=False, antialias=True)
        return self.network(pixels)

    def label(self, metric: str) -> str:
        own = "FD" if metric == "fd" else INCEPTION_LABELS[metric]
        return f"{own} ({self.name})"


class InceptionExtractor(Extractor):
    """Inception-v3 with TensorFlow's weights of 2015, as torch-fidelity ported it: 2048 features, 1008 logits without bias."""

    name = "Inception-v3"
    resize = "bilinear as in TensorFlow 1 to 299 px"

    def __init__(self, weights: Path) -> None:
        super().__init__()
        self.sha256 = sha256(weights)
        if not self.sha256.startswith(INCEPTION_SHA256_PREFIX):
            raise UserError(f"{weights}: sha256 begins {self.sha256[:8]}, not {INCEPTION_SHA256_PREFIX}; fetch it again")
        # torch-fidelity unpickles whatever it is given: it gets a copy of what the safe loader accepted
        copy = io.BytesIO()
        torch.save(torch.load(weights, map_location="cpu", weights_only=True), copy)
        copy.seek(0)
        self.network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], copy)
        self.requires_grad_(False)

    def forward(self, images: UInt8[Tensor, "b 3 y x"]) -> tuple[Float[Tensor, "b f"], Float[Tensor, "b k"]]:
        return self.network(images)

    def label(self, metric: str) -> str:
        return INCEPTION_LABELS[metric]


def inception_weights(path: str | Path | None = None) -> Path | None:
    """Inception's file: the given path, else $LGQ_INCEPTION_WEIGHTS, else torch hub's cache, else None. Never downloads."""
    for source, given in (("extractor weights", path), (INCEPTION_VARIABLE, os.environ.get(INCEPTION_VARIABLE))):
        if given:
            if not Path(given).is_file():
                raise UserError(f"{source}: no file {given}; get it from {URL_INCEPTION_V3}")
            return Path(given)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    return cached if cached.is_file() else None


def _inception(weights: str | Path | None) -> Extractor:
    found = inception_weights(weights)
    if found is None:
        raise UserError(
            f"extractor: inception-v3 needs {INCEPTION_FILE}; get it from {URL_INCEPTION_V3} and give its path in "
            f"{INCEPTION_VARIABLE}, or use efficientnet-lite0"
        )
    return InceptionExtractor(found)


def _lite0(weights: str | Path | None) -> Extractor:
    if weights:
        raise UserError(f"extractor: efficientnet-lite0 brings its own weights; leave out {weights}")
    return Lite0Extractor()


def _best(weights: str | Path | None) -> Extractor:
    return _inception(weights) if inception_weights(weights) else _lite0(None)


EXTRACTORS: dict[str, Callable[[str | Path | None], Extractor]] = {
    "auto": _best,  # Inception where its weights are on this machine, else EfficientNet-Lite0
    "inception-v3": _inception,
    "efficientnet-lite0": _lite0,
}


def load_extractor(name: str = "auto", weights: str | Path | None = None, device: str | torch.device = "cpu") -> Extractor:
    """The extractor of that name in `EXTRACTORS`; UserError where its weights are missing or not the published ones."""
    if name not in EXTRACTORS:
        raise UserError(f"extractor: no {name!r}; choose from {', '.join(EXTRACTORS)}")
    return EXTRACTORS[name](weights).eval().to(device)


class Lite0InFidelity(FeatureExtractorBase):
    """The same extractor under torch-fidelity's interface, so that `calculate_metrics(feature_extractor=...)` knows it."""

    def __init__(self, name: str, features_list: list[str], **options: Any) -> None:
        super().__init__(name, features_list)
        self.extractor = Lite0Extractor()

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("pool", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return LAYERS[metric]

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        provided = dict(zip(self.get_provided_features_list(), self.extractor(input), strict=True))
        return tuple(provided[name] for name in self.features_list)


if LITE0_IN_FIDELITY not in FEATURE_EXTRACTORS_REGISTRY:  # this module may be loaded twice, the registry may not
    register_feature_extractor(LITE0_IN_FIDELITY, Lite0InFidelity)
