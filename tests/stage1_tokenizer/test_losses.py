"""The losses against plain writings of their definitions, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stage1_tokenizer.losses import PatchDiscriminator, adaptive_weight, hinge_loss, picture_loss


class Squares(nn.Module):
    """A small perceptual distance: mean squared differences after a fixed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 5, 3).double().requires_grad_(False)

    def forward(self, images, others):
        return (self.layer(images) - self.layer(others)).square().mean((1, 2, 3))


class Decoder(nn.Module):
    """Codes to images; `last` is where VQGAN compares gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, codes):
        return self.last(torch.tanh(self.first(codes)))


@pytest.fixture
def parts():
    """Decoder, codes, images, perceptual distance and discriminator, all in float64."""
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(8, 2).double().eval()
    return Decoder().double(), torch.randn(4, 4, 16, 16).double(), torch.rand(4, 3, 16, 16).double(), Squares(), discriminator


@pytest.fixture(autouse=True)
def in_double(monkeypatch):
    """The loss computes in float32; here that is float64, to compare to the last digits."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


@pytest.mark.parametrize("gan_weight", [0.0, 0.7])
def test_the_gradient_is_that_of_the_weighted_sum(parts, gan_weight):
    decoder, codes, images, perceptual, discriminator = parts
    ours = picture_loss(decoder(codes), images, perceptual, 0.3, discriminator, gan_weight, decoder.last.weight)
    found = torch.autograd.grad(ours.surrogate, list(decoder.parameters()))

    reconstruction = decoder(codes)
    pixel = (reconstruction - images).abs().mean((1, 2, 3)).sum()
    distance = perceptual(reconstruction, images).sum()
    adversarial = -discriminator(reconstruction).mean((1, 2, 3)).sum()
    expected = torch.autograd.grad(pixel + 0.3 * distance + gan_weight * adversarial, list(decoder.parameters()))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    plain = {"pixel": pixel, "perceptual": distance, "gan": adversarial}
    for name, value in ours.terms.items():
        torch.testing.assert_close(value, plain[name].detach(), rtol=1e-12, atol=0)
    assert all(parameter.grad is None for parameter in discriminator.parameters())


def test_the_adaptive_weight_is_vqgans(parts):
    decoder, codes, images, perceptual, discriminator = parts
    ours = picture_loss(decoder(codes), images, perceptual, 0.3, discriminator, 0.0, decoder.last.weight)

    # taming-transformers, VQLPIPSWithDiscriminator.calculate_adaptive_weight
    reconstruction = decoder(codes)
    nll = (reconstruction - images).abs().mean((1, 2, 3)).sum() + 0.3 * perceptual(reconstruction, images).sum()
    g = -discriminator(reconstruction).mean((1, 2, 3)).sum()
    (nll_gradient,) = torch.autograd.grad(nll, decoder.last.weight, retain_graph=True)
    (g_gradient,) = torch.autograd.grad(g, decoder.last.weight)
    expected = torch.clamp(nll_gradient.norm() / (g_gradient.norm() + 1e-4), 0.0, 1e4)
    torch.testing.assert_close(adaptive_weight(*ours.last_layer), expected, rtol=1e-10, atol=0)


def test_the_adaptive_weight_is_bounded():
    assert adaptive_weight(torch.full((3,), 1e9), torch.zeros(3)) == 1e4
    assert adaptive_weight(torch.zeros(3), torch.zeros(3)) == 0


def test_without_a_discriminator_and_a_perceptual_network_it_is_l1(parts):
    decoder, codes, images, *_ = parts
    ours = picture_loss(decoder(codes), images, None, 1.0, None, 1.0, decoder.last.weight)
    (found,) = torch.autograd.grad(ours.surrogate, decoder.last.weight)
    (expected,) = torch.autograd.grad(F.l1_loss(decoder(codes), images) * 4, decoder.last.weight)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert set(ours.terms) == {"pixel"} and not any(gradient.any() for gradient in ours.last_layer)


def test_hinge():
    assert hinge_loss(torch.tensor([2.0, 1.0]), torch.tensor([-1.0, -3.0])) == 0
    assert hinge_loss(torch.tensor([0.0, 1.0]), torch.tensor([0.0, -3.0])) == 0.5 * (0.5 + 0.5)
    assert hinge_loss(torch.tensor([-1.0]), torch.tensor([1.0])) == 2


def test_the_discriminator_judges_patches_of_each_image_alone(parts):
    *_, images, _, discriminator = parts
    logits = discriminator(images)
    assert logits.shape == (4, 1, 4, 4)
    torch.testing.assert_close(discriminator(images[2:3]), logits[2:3], rtol=1e-12, atol=0)
    for layer in discriminator.body:
        if isinstance(layer, nn.Conv2d):
            assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2) < 1.3  # spectral norm, by power iteration
