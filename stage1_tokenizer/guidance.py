"""What a pretrained vision network asks of a tokenizer while it is trained: VF alignment and self-distillation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_tokenizer.losses import adaptive_weight
from stage1_tokenizer.quantizers.global_batch import global_mean
from stage1_tokenizer.vision import VisionNetwork


def marginal_cosine(ours: Float[Tensor, "b n f"], features: Float[Tensor, "b n f"], margin: float) -> Float[Tensor, "b"]:
    """L_mcos: relu(1 - margin - cos(z'_i, f_i)), the mean over the positions i of an image."""
    return F.relu(1 - margin - F.cosine_similarity(ours, features, dim=2)).mean(1)


def marginal_distances(ours: Float[Tensor, "b n c"], features: Float[Tensor, "b n f"], margin: float) -> Float[Tensor, "b"]:
    """L_mdms: relu(|cos(z_i, z_j) - cos(f_i, f_j)| - margin), the mean over the pairs of positions of an image."""
    similarities = [unit @ unit.transpose(1, 2) for unit in (F.normalize(ours, dim=2), F.normalize(features, dim=2))]
    return F.relu((similarities[0] - similarities[1]).abs() - margin).mean((1, 2))


@dataclass(frozen=True)
class Guidance:
    """`loss` to add, the mean over the images; `terms` to report, without their weights."""

    loss: Float[Tensor, ""]
    terms: dict[str, Float[Tensor, ""]]


class VisionGuide(nn.Module):
    """VF alignment of latents z (VA-VAE, Yao & Wang 2025, arXiv 2501.01423) and VQRAE's self-distillation (arXiv 2511.23386).

    Alignment: L_mcos of W z and L_mdms of z with the network's features f, weighted by `vf_weight` times, if `vf_adaptive`,
    |grad of the pictures' losses| / |grad of the alignment| at the encoder's last layer, both of the global batch. W is
    trained here and is no part of the tokenizer: only the comparison needs it. Lambda24-SQ's VF variant uses this loss.
    Public code that follows the paper takes W z in both terms. Ours: the pictures' losses include the adversarial one,
    which the paper leaves out of the ratio; the ratio costs another backward pass through the decoder.

    Distillation: `distillation_weight` mean (Z - T(X))^2 between the encoder's features Z and the network's, T(X) (eq. 5).
    """

    def __init__(
        self,
        network: VisionNetwork,
        latent_channels: int,
        vf_weight: float,
        vf_adaptive: bool,
        vf_margins: tuple[float, float],
        distillation_weight: float,
    ) -> None:
        super().__init__()
        self.vf_weight = vf_weight
        self.vf_adaptive = vf_adaptive
        self.vf_margins = vf_margins
        self.distillation_weight = distillation_weight
        self.to_features = nn.Linear(latent_channels, network.channels, bias=False) if vf_weight else nn.Identity()
        self._judges: dict[str, Any] = {"network": network}  # kept out of the module tree, as in the objective

    def forward(
        self,
        images: Float[Tensor, "b 3 y x"],
        micro_batch: int,
        run: Callable[..., Any],
        features: Float[Tensor, "b h w f"],
        latents: Float[Tensor, "b h w c"],
        pictures: Float[Tensor, ""],
        last_weight: Tensor,
        frozen: bool,
    ) -> Guidance:
        """`pictures`: the pictures' losses, summed over the images, with a gradient at `last_weight`; `frozen`: the encoder."""
        distilling = self.distillation_weight > 0 and not frozen
        loss, terms = torch.zeros((), device=images.device), {}
        if not (distilling or self.vf_weight):
            return Guidance(loss, terms)
        with torch.no_grad():
            chunks = [self._judges["network"](chunk) for chunk in images.split(micro_batch)]
            targets = torch.cat(chunks).permute(0, 2, 3, 1).float()
        with torch.autocast(images.device.type, enabled=False):
            if distilling:
                terms["distillation"] = (features.float() - targets).square().mean()
                loss = loss + self.distillation_weight * terms["distillation"]
            if self.vf_weight:
                pairs = zip(latents.split(micro_batch), targets.split(micro_batch), strict=True)
                alignment = torch.stack([run(self.alignment, *pair) for pair in pairs]).sum()
                weight = self._weight(pictures, alignment, last_weight, len(images))
                terms |= {"alignment": alignment / len(images), "vf_weight": weight}
                loss = loss + weight * terms["alignment"]
        return Guidance(loss, {name: term.detach() for name, term in terms.items()})

    def alignment(self, latents: Float[Tensor, "b h w c"], features: Float[Tensor, "b h w f"]) -> Float[Tensor, ""]:
        """L_mcos + L_mdms, summed over the images."""
        z, f = latents.flatten(1, 2), features.flatten(1, 2)
        cosines, pairs = self.vf_margins
        return (marginal_cosine(self.to_features(z), f, cosines) + marginal_distances(z, f, pairs)).sum()

    def _weight(self, pictures: Tensor, alignment: Tensor, last_weight: Tensor, n: int) -> Float[Tensor, ""]:
        if not self.vf_adaptive:
            return torch.full((), self.vf_weight, device=alignment.device)
        # of the sums, which fp16 keeps, then of the means
        gradients = [torch.autograd.grad(loss, last_weight, retain_graph=True)[0] / n for loss in (pictures, alignment)]
        return self.vf_weight * adaptive_weight(*map(global_mean, gradients))
