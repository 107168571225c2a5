"""Measures of single images by their nearest neighbours in feature space: density, coverage, memorised training images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from eval.metrics import Estimate, share

ROWS = 1024  # of a matrix of distances, at a time


@dataclass(frozen=True)
class Memorised:
    """`share` of the generated images lies nearer to a training image than `threshold`, the `alpha` quantile of held-out ones.

    A generator that copies nothing, and draws from where the held-out images come from, is expected at `alpha`.
    distances, nearest: of every generated image to its nearest training image, and which one that is.
    """

    share: Estimate
    alpha: float
    threshold: float
    distances: Float[Tensor, "n"]
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
    counts = inside.double() / neighbours
    return Estimate(counts.mean().item(), (counts.std() / math.sqrt(len(counts))).item()), Estimate(covered / len(reference))


def nearest(
    points: Float[Tensor, "n f"], others: Float[Tensor, "m f"]
) -> tuple[Float[Tensor, "n"], Int[Tensor, "n"]]:
    """The Euclidean distance of every point to the nearest of the others, and which one that is."""
    found = [torch.cdist(part, others).min(1) for part in points.split(ROWS)]
    return torch.cat([part.values for part in found]), torch.cat([part.indices for part in found])


def memorised(
    generated: Float[Tensor, "n f"], training: Float[Tensor, "m f"], held_out: Float[Tensor, "h f"], alpha: float = 0.05
) -> Memorised:
    """How many generated images are suspiciously near to a training image (see `Memorised`).

    The standard error is that of a share of n images, and of a quantile of h images where both have equal distances.
    """
    threshold = nearest(held_out, training)[0].double().quantile(alpha).item()
    distances, indices = nearest(generated, training)
    found = share((distances < threshold).double().mean().item(), len(generated))
    error = math.hypot(found.standard_error or 0.0, math.sqrt(alpha * (1 - alpha) / len(held_out)))
    return Memorised(Estimate(found.value, error), alpha, threshold, distances, indices)
