"""Measures of single images by their nearest neighbours: density and coverage in feature space, memorised training images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from eval.metrics import Estimate, mean

ROWS = 1024  # of a matrix of distances, at a time
THUMBNAIL = 8  # pixels of a side


@dataclass(frozen=True)
class Memorised:
    """`share` of the generated images are nearer to a training image than to others, by a ratio below `threshold`.

    The threshold is the `alpha` quantile of held-out images' ratios, which is `threshold_error` sure of its alpha: what a
    generator scores that copies nothing and draws from where the held-out images come from. Copies come on top of it.
    ratios, nearest: of every generated image, and the training image it is nearest to.
    """

    share: Estimate
    alpha: float
    threshold_error: float
    threshold: float
    ratios: Float[Tensor, "n"]
    nearest: Int[Tensor, "n"]


def density_coverage(
    generated: Float[Tensor, "n f"], reference: Float[Tensor, "m f"], neighbours: int = 5
) -> tuple[Estimate, Estimate]:
    """Density and coverage (Naeem et al. 2020, eqs. 5 and 6).

    Around every real image lies a ball that reaches to its k-th nearest real neighbour. Density is the mean number of balls
    that hold a generated image, over k: it may exceed 1. Coverage is the share of balls that hold a generated image; it grows
    with n, so compare it at equal n and m. Density's standard error is over generated images, the balls as they are;
    coverage's is not known. ValueError where there are not more than k real images.
    """
    if len(reference) <= neighbours:
        raise ValueError(f"density_coverage: {len(reference)} real images; {neighbours} neighbours need more")
    inside, covered = torch.zeros(len(generated)), 0
    for start in range(0, len(reference), ROWS):
        part = reference[start : start + ROWS]
        among = torch.cdist(part, reference)
        among[torch.arange(len(part)), torch.arange(start, start + len(part))] = math.inf  # not a neighbour of itself
        radius = among.kthvalue(neighbours, 1).values
        holds = torch.cdist(part, generated) < radius[:, None]
        inside += holds.sum(0)
        covered += int(holds.any(1).sum())
    return mean(inside.double() / neighbours), Estimate(covered / len(reference))


def nearest(points: Float[Tensor, "n f"], others: Float[Tensor, "m f"]) -> tuple[Float[Tensor, "n"], Int[Tensor, "n"]]:
    """The Euclidean distance of every point to the nearest of the others, and which one that is."""
    found = [torch.cdist(part, others).min(1) for part in points.split(ROWS)]
    return torch.cat([part.values for part in found]), torch.cat([part.indices for part in found])


def thumbnails(images: UInt8[Tensor, "b 3 y x"]) -> Float[Tensor, "b f"]:
    """Images of 8 x 8 pixels as vectors, each pixel the mean of its share of the image: they outlive blur and compression."""
    return F.adaptive_avg_pool2d(images.float() / 255, THUMBNAIL).flatten(1)


def copy_ratio(
    points: Float[Tensor, "n f"], training: Float[Tensor, "m f"], neighbours: int = 5
) -> tuple[Float[Tensor, "n"], Int[Tensor, "n"]]:
    """The distance to the nearest training image over that to the k-th nearest, and which the nearest is.

    A copy is far nearer to one image than to all others (Carlini et al. 2023, section 4.2, compare with neighbours in pixel
    space likewise). What moves a point away from all training images, as blur or a poor model does, adds to both distances
    and brings the ratio nearer to 1. Copies of an image that the training images hold k times are not seen. ValueError where
    there are not k training images.
    """
    if len(training) < neighbours:
        raise ValueError(f"copy_ratio: {len(training)} training images; it needs {neighbours}")
    found = [torch.cdist(part, training).topk(neighbours, largest=False) for part in points.split(ROWS)]
    distances = torch.cat([part.values for part in found])
    ratios = distances[:, 0] / distances[:, -1].clamp_min(1e-12)
    return ratios, torch.cat([part.indices[:, 0] for part in found])


def with_mirrored(small: Float[Tensor, "m f"]) -> Float[Tensor, "mirrored f"]:
    """Thumbnails and behind them the mirrored ones, as training sees them: thumbnail i is of image i modulo m."""
    return torch.cat([small, small.unflatten(1, (3, THUMBNAIL, THUMBNAIL)).flip(-1).flatten(1)])


def memorised(
    generated: Float[Tensor, "n f"], training: Float[Tensor, "m f"], held_out: Float[Tensor, "h f"], alpha: float = 0.02
) -> Memorised:
    """How many generated images are copies of training images (see `Memorised`), of thumbnails.

    `training` holds the mirrored images too where a model is trained on them. The standard error is over generated images;
    that of the threshold is the same for all that are compared with it.
    """
    threshold = copy_ratio(held_out, training)[0].double().quantile(alpha).item()
    ratios, indices = copy_ratio(generated, training)
    error = math.sqrt(alpha * (1 - alpha) / len(held_out))
    return Memorised(mean((ratios < threshold).double()), alpha, error, threshold, ratios, indices)
