"""Looking inside a codebook that is a table of vectors: where its codes lie among the latents, and how large their cells are.

High-rate theory: K codes of density l(x), in m dimensions, leave a squared error of about G int f(x) (K l(x))^(-2/m) dx, where
f is the density of the latents and G the shape of a cell (Gersho 1979, eq. 8; Zador 1982). Under int l = 1, Hoelder's
inequality (or a Lagrange multiplier: f l^(-2/m - 1) = constant) gives the least error at l ~ f^(m / (m + 2)). A cell has the
volume 1 / (K l), so of an optimal codebook log volume = constant - m / (m + 2) * log f: its Gersho slope.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from eval.metrics import jackknifed
from eval.neighbours import ROWS

SHOWN = 800  # points of a picture
SAMPLE = 2000  # points that show the dimension
DENSITY_NEIGHBOURS = 16
VOLUME_NEIGHBOURS = 4
FEWEST_CODES = 16  # for a slope
UNCERTAINTY = 0.3  # of a slope at 95 %; one that is known less well is not known
T_FACTOR = 2.26  # standard errors of 9 degrees of freedom that hold 95 %
PARTS = 10  # of the codes, for a slope's standard error


@dataclass(frozen=True)
class GershoSlope:
    """The line through log cell volume against log density of latents, code by code, up to constants of each axis.

    `dimension` is the latents' own (Levina & Bickel 2004), which may be less than their channels; `expected` the slope of an
    optimal codebook in that many dimensions.
    """

    log_density: Float[Tensor, "k"]
    log_volume: Float[Tensor, "k"]
    slope: float
    standard_error: float
    expected: float
    dimension: float


def gersho_slope(latents: Float[Tensor, "n c"], codes: Float[Tensor, "k c"]) -> GershoSlope | None:
    """The slope, from distances to the r-th nearest code or latent; None where it is not known to +-0.3 at 95 %, and for fewer
    than 16 codes or 64 latents.

    With r neighbours of m points at distance d, the density there is about r / (m d^dimension). The codes are those in use.
    The slope itself does not depend on the dimension that is inferred: both volumes are the same power of a distance.
    """
    if len(codes) < FEWEST_CODES or len(latents) < 4 * DENSITY_NEIGHBOURS:
        return None
    dimension = intrinsic_dimension(latents)
    to_latent = _neighbour_distances(codes, latents, DENSITY_NEIGHBOURS)[:, -1]
    to_code = _neighbour_distances(codes, codes, VOLUME_NEIGHBOURS + 1)[:, -1]  # the nearest is the code itself
    apart = (to_latent > 0) & (to_code > 0)
    if apart.sum() < FEWEST_CODES:
        return None
    log_density, log_volume = -dimension * to_latent[apart].log(), dimension * to_code[apart].log()
    slope = _slope(log_density, log_volume)
    # neighbouring codes share their neighbours, so the jackknife leaves out whole slabs along the main axis
    placed = (codes - codes.mean(0))[apart].double()
    order = (placed @ torch.linalg.svd(placed, full_matrices=False).Vh[0]).argsort()
    kept = [torch.cat([*parts[:i], *parts[i + 1 :]]) for parts in [order.tensor_split(PARTS)] for i in range(PARTS)]
    without = [_slope(log_density[rows], log_volume[rows]).item() for rows in kept]
    error = jackknifed(slope.item(), without).standard_error
    if error is None or not error * T_FACTOR <= UNCERTAINTY:
        return None
    return GershoSlope(log_density, log_volume, slope.item(), error, -dimension / (dimension + 2), dimension)


def _slope(x: Float[Tensor, "k"], y: Float[Tensor, "k"]) -> Float[Tensor, ""]:
    """Of the least-squares line."""
    centred = x - x.mean()
    return (centred * y).sum() / centred.square().sum()


def intrinsic_dimension(latents: Float[Tensor, "n c"], neighbours: int = DENSITY_NEIGHBOURS) -> float:
    """The dimension of the set that points lie on: the maximum-likelihood estimate of Levina & Bickel (2004).

    Averaged over the points before it is inverted, as MacKay & Ghahramani (2005) corrected it; equal points are left out.
    """
    points = latents[: 4 * SAMPLE].unique(dim=0)  # sorted, so that a fair sample is spread over all
    distances = _neighbour_distances(points[:: -(-len(points) // SAMPLE)], points, neighbours + 1)[:, 1:]  # not itself
    distances = distances[distances[:, 0] > 0]
    rates = (distances[:, -1:] / distances[:, :-1]).log().sum(1) / (neighbours - 1)
    return (1 / rates.mean()).item()


def geometry(latents: Float[Tensor, "n c"], codes: Float[Tensor, "k c"], counts: Int[Tensor, "k"]) -> dict[str, Any]:
    """Latents, codes and the codes' counts on the two main axes of the latents, at most 800 of each; for result files."""
    centre = latents.mean(0)
    _, _, axes = torch.linalg.svd((latents - centre).double(), full_matrices=False)
    axes = axes[:2] * axes[:2].gather(1, axes[:2].abs().argmax(1, keepdim=True)).sign()  # one of the two equal choices
    plane = lambda points: [[round(v, 3) for v in row] for row in ((points - centre).double() @ axes.T).tolist()]  # noqa: E731
    shown = torch.linspace(0, len(codes) - 1, min(len(codes), SHOWN)).round().long()
    return {"latents": plane(latents[:SHOWN]), "codes": plane(codes[shown]), "count": counts[shown].tolist()}


def _neighbour_distances(points: Float[Tensor, "n c"], others: Float[Tensor, "m c"], count: int) -> Float[Tensor, "n r"]:
    """Distances to the `count` nearest of the others, ascending, in float64."""
    others = others.double()
    parts = [torch.cdist(part.double(), others, compute_mode="donot_use_mm_for_euclid_dist") for part in points.split(ROWS)]
    return torch.cat([part.topk(min(count, len(others)), largest=False).values for part in parts])
