"""Can the judge be trusted? Quantizers of image patches whose order is known come out in that order."""

from typing import Any

import pytest
import torch

from eval.features import extract
from eval.metrics import frechet_distance, moments
from eval.perturbation import perturbed
from pipeline.api import build_quantizer

PATCH = 4
IMAGES = 96


class PatchQuantizer:
    """k-means codes of 4 x 4 patches: a tokenizer without networks. `disabled`: that share of the codes is never chosen."""

    def __init__(self, images, size, seed=0, disabled=0.0):
        torch.manual_seed(seed)
        self.quantizer: Any = build_quantizer("lgq", dim=3 * PATCH**2, codebook_size=size).eval()
        patches = patches_of(images)
        self.quantizer.initialize(patches[torch.randperm(len(patches))[: 16 * size]])
        self.sizes = self.quantizer.sizes
        self.codes = self.quantizer.codebook.detach().clone()
        self.enabled = torch.randperm(size)[round(disabled * size) :]

    def encode(self, images):
        return self.enabled[torch.cdist(patches_of(images), self.codes[self.enabled]).argmin(1)].view(len(images), -1, 1)

    def decode(self, tokens):
        b, side = len(tokens), 32 // PATCH
        patches = self.codes[tokens.flatten()].view(b, side, side, 3, PATCH, PATCH)
        images = patches.permute(0, 3, 1, 4, 2, 5).reshape(b, 3, 32, 32)
        return (255 * images + 127.5).round().clamp(0, 255).to(torch.uint8)


def patches_of(images):
    pixels = (images.float() - 127.5) / 255
    return pixels.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3 * PATCH**2)


@pytest.fixture(scope="module")
def judged(crops, extractor, noisy):
    """rFD and pFD (a tenth of the indices replaced) of every quantizer, as estimates, and the rFD of the images themselves."""
    images = crops[:IMAGES]
    reference = moments(extract([images], extractor, IMAGES, "real").pool)

    def distance(others):
        return frechet_distance(extract([others], extractor, IMAGES, "copies").pool, reference)

    def both(quantizer, noise=0.0):
        tokens = quantizer.encode(images)
        decoded = [quantizer.decode(tokens), quantizer.decode(perturbed(tokens, quantizer.sizes, 0.1, range(IMAGES)))]
        return [distance(noisy(copy, noise) if noise else copy) for copy in decoded]

    good = PatchQuantizer(crops, 256)
    return {
        "real": [distance(images)],
        "good": both(good),
        "other seed": both(PatchQuantizer(crops, 256, seed=1)),
        "fewer bits": both(PatchQuantizer(crops, 16)),
        "half disabled": both(PatchQuantizer(crops, 256, disabled=0.5)),
        "noise": both(good, noise=24.0),
    }


def test_real_images_win(judged):
    assert abs(judged["real"][0].value) < 1e-3 < min(found[0].value for name, found in judged.items() if name != "real")


@pytest.mark.parametrize("worse", ["fewer bits", "half disabled", "noise"])
def test_a_worse_quantizer_ranks_lower(judged, worse):
    good, bad = judged["good"], judged[worse]
    assert bad[0].value > good[0].value + 2 * max(good[0].standard_error, bad[0].standard_error)
    assert bad[1].value > bad[0].value and good[1].value > good[0].value  # perturbed indices hurt


def test_two_seeds_of_one_method_tie(judged):
    for first, second, worse in zip(judged["good"], judged["other seed"], judged["fewer bits"], strict=True):
        apart = abs(first.value - second.value)
        assert apart < 2 * (first.standard_error**2 + second.standard_error**2) ** 0.5
        assert apart < (worse.value - first.value) / 3


def test_the_order_is_the_same_with_perturbed_indices(judged):
    for which in (0, 1):
        order = sorted(("good", "half disabled", "fewer bits"), key=lambda name: judged[name][which].value)
        assert order == ["good", "half disabled", "fewer bits"]
