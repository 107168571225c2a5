"""What a reconstruction is judged by while it is learned: pixels, features, and a discriminator."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from pipeline.core.perceptual import Perceptual


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017): one logit per patch. Spectral norm in place of batch norm, so images stay independent."""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        widths = [3, *(channels * min(2**layer, 8) for layer in range(layers))]
        body: list[nn.Module] = []
        for before, after in pairwise(widths):
            body += [spectral_norm(nn.Conv2d(before, after, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*body, spectral_norm(nn.Conv2d(widths[-1], 1, 3, padding=1)))

    def forward(self, images: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b 1 h w"]:
        return self.body(images)


def hinge_loss(real: Float[Tensor, "..."], fake: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """The discriminator's loss (Lim & Ye 2017): real logits above 1, fake ones below -1."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


@dataclass(frozen=True)
class PictureLoss:
    """What one chunk of images contributes, summed so that chunks and processes can be added up.

    `surrogate` has the gradient of the whole loss and no meaningful value; `terms` are the values to report;
    `last_layer` holds the gradients of reconstruction and adversarial loss at the decoder's last weight.
    """

    surrogate: Float[Tensor, ""]
    terms: dict[str, Float[Tensor, ""]]
    last_layer: tuple[Tensor, Tensor]


def picture_loss(
    reconstruction: Float[Tensor, "b 3 y x"],
    images: Float[Tensor, "b 3 y x"],
    perceptual: Perceptual | None,
    perceptual_weight: float,
    discriminator: nn.Module | None,
    gan_weight: float | Tensor,
    last_weight: Tensor,
) -> PictureLoss:
    """L1 + perceptual + weighted adversarial loss, sums over the images.

    The three are differentiated at the reconstruction, once each; the decoder then carries their weighted sum. VQGAN's
    adaptive weight needs the two gradients at the last layer: from here they cost one convolution each.
    """
    leaf = reconstruction.detach().float().requires_grad_()
    images = images.float()
    terms = {"pixel": (leaf - images).abs().mean((1, 2, 3)).sum()}
    loss = terms["pixel"]
    if perceptual is not None:
        terms["perceptual"] = perceptual(leaf, images).sum()
        loss = loss + perceptual_weight * terms["perceptual"]
    (gradient,) = torch.autograd.grad(loss, leaf)
    last_layer = (torch.zeros_like(last_weight), torch.zeros_like(last_weight))
    if discriminator is not None:
        frozen = {name: value.detach() for name, value in discriminator.named_parameters()}
        terms["gan"] = -functional_call(discriminator, frozen, (leaf,)).mean((1, 2, 3)).sum()
        (gan_gradient,) = torch.autograd.grad(terms["gan"], leaf)
        last_layer = (
            _gradient_at(reconstruction, last_weight, gradient),
            _gradient_at(reconstruction, last_weight, gan_gradient),
        )
        gradient = gradient + gan_weight * gan_gradient
    surrogate = (reconstruction.float() * gradient).sum()
    return PictureLoss(surrogate, {name: term.detach() for name, term in terms.items()}, last_layer)


def _gradient_at(output: Tensor, weight: Tensor, cotangent: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(output, weight, cotangent.to(output.dtype), retain_graph=True)
    return gradient.detach()


def adaptive_weight(reconstruction_gradient: Tensor, gan_gradient: Tensor) -> Float[Tensor, ""]:
    """VQGAN's lambda (Esser et al. 2021, eq. 7): the ratio of the two gradients at the decoder's last layer, at most 1e4."""
    ratio = reconstruction_gradient.norm() / (gan_gradient.norm() + 1e-4)
    return ratio.clamp(0.0, 1e4)
