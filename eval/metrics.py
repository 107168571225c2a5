"""The metrics, as pure functions of features, logits or pairs of images.

What torch-fidelity measures is computed by torch-fidelity's own functions, so that the numbers are its numbers. What it
lacks is here: standard errors, and the distances between an image and its reconstruction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

JACKKNIFE_BLOCKS = 20
LIMIT_PARTS = 4  # subsets of n, n/2, n/3, n/4 images


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error, None where that is not known."""

    value: float
    standard_error: float | None = None


@dataclass(frozen=True)
class Moments:
    """Mean and covariance (unbiased, float64) of n feature vectors."""

    n: int
    mean: Float[Tensor, "f"]
    covariance: Float[Tensor, "f f"]

    @cached_property
    def root(self) -> Float[Tensor, "f f"]:
        """The symmetric R with R R = covariance."""
        eigenvalues, vectors = torch.linalg.eigh(self.covariance)
        return (vectors * eigenvalues.clamp_min(0).sqrt()) @ vectors.T


def moments(features: Float[Tensor, "n f"]) -> Moments:
    """The moments of feature vectors; a single one has covariance 0, so that `combine` may take it."""
    centred = features.double()
    mean = centred.mean(0)
    centred = centred - mean
    return Moments(len(features), mean, centred.T @ centred / max(len(features) - 1, 1))


def combine(parts: list[Moments]) -> Moments:
    """The moments of all vectors together, from those of disjoint parts (Chan et al. 1979)."""
    n = sum(part.n for part in parts)
    weights = [part.n / n for part in parts]
    mean = torch.stack([w * part.mean for w, part in zip(weights, parts, strict=True)]).sum(0)
    scatter = torch.zeros_like(parts[0].covariance)
    for part in parts:
        shift = part.mean - mean
        scatter += (part.n - 1) * part.covariance + part.n * torch.outer(shift, shift)
    return Moments(n, mean, scatter / (n - 1))


def frechet_distance(generated: Float[Tensor, "n f"], reference: Moments, blocks: int = JACKKNIFE_BLOCKS) -> Estimate:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Heusel et al. 2017, eq. 6); biased upwards by about 1/n.

    Equal to torch-fidelity's, by the eigenvalues of a symmetric matrix, which take a tenth of the time. The standard error is
    a delete-one-block jackknife against the reference as it is, so the features come in random order. (A bootstrap would not
    do: resampled sets hold duplicates, and their distances lie above the one they should surround.) The trace of the root is
    expanded to second order around all images, so one eigendecomposition serves all blocks; where there are more images than
    features that is within a few per cent of as many full distances.
    """
    n, whole = len(generated), moments(generated)
    eigenvalues, vectors = _shared_spectrum(generated, whole, reference)
    kept = eigenvalues > eigenvalues[-1] * 1e-10
    value = _distance(whole, reference, eigenvalues)
    if n < 2 * blocks:
        return Estimate(value)

    roots, basis = eigenvalues[kept].sqrt(), reference.root @ vectors[:, kept]
    curvature = 1 / (roots[:, None] * roots * (roots[:, None] + roots))
    without = []
    for block in (generated.double() - whole.mean).tensor_split(blocks):
        m = n - len(block)
        shift, inside = -block.sum(0) / m, block @ basis
        scatter = torch.diag((n - 1) * roots**2) - inside.T @ inside - m * torch.outer(shift @ basis, shift @ basis)
        change = scatter / (m - 1) - torch.diag(roots**2)
        trace = ((n - 1) * whole.covariance.trace() - block.square().sum() - m * shift.square().sum()) / (m - 1)
        root_trace = (roots + change.diagonal() / roots / 2).sum() - (change.square() * curvature).sum() / 4
        without.append((whole.mean + shift - reference.mean).square().sum() + trace - 2 * root_trace)
    return Estimate(value, _jackknife(torch.stack(without)))


def frechet_limit(generated: Float[Tensor, "n f"], reference: Moments, whole: Estimate, most: int = LIMIT_PARTS) -> Estimate:
    """The Frechet distance for n -> infinity (Chong & Forsyth 2020, section 3): a line through FD_m against 1/m, at 0.

    `whole` is `frechet_distance` of the same features, m = n; for m = n/2, n/3, ... the mean over 2, 3, ... disjoint subsets.
    Since every m uses every image, the sampling error of the images is to first order that of `whole`; the standard error adds
    that of the line. Where there are fewer images than features the bias is no straight line: then this corrects a part of it.
    """
    inverse, values = [1 / len(generated)], [whole.value]
    for count in range(2, most + 1):
        subsets = generated.tensor_split(count)
        distances = []
        for subset in subsets:
            own = moments(subset)
            distances.append(_distance(own, reference, _shared_spectrum(subset, own, reference)[0]))
        inverse.append(sum(1 / len(subset) for subset in subsets) / count)
        values.append(sum(distances) / count)
    x, y = torch.tensor(inverse, dtype=torch.float64), torch.tensor(values, dtype=torch.float64)
    spread = (x - x.mean()).square().sum()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / spread
    residual = (y - y.mean() - slope * (x - x.mean())).square().sum() / (len(x) - 2)
    line = residual * (1 / len(x) + x.mean().square() / spread)
    error = None if whole.standard_error is None else math.hypot(whole.standard_error, line.sqrt().item())
    return Estimate((y.mean() - slope * x.mean()).item(), error)


def inception_score(logits: Float[Tensor, "n k"], splits: int = 10) -> Estimate:
    """exp of the mean divergence between an image's class distribution and their mean (Salimans et al. 2016).

    As in torch-fidelity: shuffled with its seed, the mean over `splits` parts. Few images per part lower it.
    """
    out = isc_features_to_metric(logits, splits=splits)
    return Estimate(out["inception_score_mean"], out["inception_score_std"] / math.sqrt(splits))


def kernel_distance(
    generated: Float[Tensor, "n f"], reference: Float[Tensor, "m f"], subsets: int = 100, subset_size: int = 1000
) -> Estimate:
    """Squared MMD with the cubic kernel (Binkowski et al. 2018), the mean over random subsets; unbiased at any n.

    The standard error is a jackknife of the generated images, against the reference as it is.
    """
    size = min(subset_size, len(generated), len(reference))
    out = kid_features_to_metric(generated, reference, kid_subsets=subsets, kid_subset_size=size, verbose=False)
    return Estimate(out["kernel_inception_distance_mean"], kernel_standard_error(generated, reference))


def kernel_standard_error(
    generated: Float[Tensor, "n f"], reference: Float[Tensor, "m f"], blocks: int = JACKKNIFE_BLOCKS
) -> float:
    """The delete-one-block jackknife standard error of the squared MMD of all pairs; the features come in random order."""
    values = mmd_without_blocks(generated, reference, blocks)
    return _jackknife(values)


def mmd_without_blocks(
    generated: Float[Tensor, "n f"], reference: Float[Tensor, "m f"], blocks: int
) -> Float[Tensor, "blocks"]:
    """The unbiased squared MMD of all pairs without each block of the generated images, up to the reference's own constant."""
    parts, m = generated.tensor_split(blocks), len(reference)
    sizes = torch.tensor([len(part) for part in parts], dtype=torch.float64)
    among = torch.stack([torch.stack([_kernel(a, b).sum() for b in parts]) for a in parts])
    itself = torch.stack([(part.double().square().mean(1) + 1).pow(3).sum() for part in parts])
    across = torch.stack([_kernel(part, reference).sum() for part in parts])
    n = sizes.sum() - sizes
    pairs = among.sum() - 2 * among.sum(1) + among.diagonal() - (itself.sum() - itself)
    return pairs / (n * (n - 1)) - 2 * (across.sum() - across) / (n * m)


def precision_recall(
    generated: Float[Tensor, "n f"], reference: Float[Tensor, "m f"], neighbours: int = 3
) -> tuple[Estimate, Estimate]:
    """The share of generated images within the reference's manifold, and the reverse (Kynkaanniemi et al. 2019).

    The standard error of precision is that of a share of n images, with the reference as it is; recall's is not known.
    """
    out = prc_features_to_metric(
        generated, reference, prc_neighborhood=neighbours, save_cpu_ram=len(generated) * len(reference) > 2**26, verbose=False
    )
    return share(out["precision"], len(generated)), Estimate(out["recall"])


def share(value: float, n: int) -> Estimate:
    """A share of n independent images, with its binomial standard error."""
    return Estimate(value, math.sqrt(max(value * (1 - value), 0.0) / n))


def mean(values: Float[Tensor, "n"]) -> Estimate:
    """The mean over n independent images, with its standard error."""
    error = (values.double().std() / math.sqrt(len(values))).item() if len(values) > 1 else None
    return Estimate(values.double().mean().item(), error)


def psnr(images: UInt8[Tensor, "b 3 y x"], others: UInt8[Tensor, "b 3 y x"]) -> Float[Tensor, "b"]:
    """Peak signal-to-noise ratio in dB of every pair; an exact copy counts as 100 dB."""
    error = (images.double() - others.double()).square().mean((1, 2, 3)) / 255**2
    return -10 * error.clamp_min(1e-10).log10()


def ssim(images: UInt8[Tensor, "b 3 y x"], others: UInt8[Tensor, "b 3 y x"]) -> Float[Tensor, "b"]:
    """Structural similarity of every pair (Wang et al. 2004): Gaussian window of 11 pixels, sigma 1.5, mean over the channels.

    Only windows that lie inside the image count, so a side needs 11 pixels.
    """
    if min(images.shape[-2:]) < 11:
        raise ValueError(f"ssim: images of {tuple(images.shape[-2:])} pixels; its window needs 11")
    a, b = images.double() / 255, others.double() / 255
    mean_a, mean_b = _gaussian(a), _gaussian(b)
    variance_a = _gaussian(a * a) - mean_a**2
    variance_b = _gaussian(b * b) - mean_b**2
    covariance = _gaussian(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (similarity / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))).mean((1, 2, 3))


def _gaussian(images: Tensor) -> Tensor:
    """The Gaussian mean around every pixel that has a whole window, one axis after the other."""
    window = torch.exp(-(torch.arange(-5, 6, dtype=images.dtype) ** 2) / (2 * 1.5**2))
    window = (window / window.sum()).to(images.device)
    rows = F.conv2d(images.flatten(0, 1)[:, None], window.view(1, 1, 11, 1))
    return F.conv2d(rows, window.view(1, 1, 1, 11)).view(*images.shape[:2], images.shape[-2] - 10, images.shape[-1] - 10)


def _shared_spectrum(
    generated: Float[Tensor, "n f"], own: Moments, reference: Moments
) -> tuple[Float[Tensor, "r"], Float[Tensor, "f r"]]:
    """Eigenvalues, ascending, and eigenvectors of R C1 R with R R = C2: C1 C2 has the same eigenvalues.

    Where there are fewer images than features, they come from the smaller matrix of the images' products, without the zeros.
    """
    if len(generated) > generated.shape[1]:
        return torch.linalg.eigh(reference.root @ own.covariance @ reference.root)
    rows = (generated.double() - own.mean) @ reference.root / math.sqrt(max(len(generated) - 1, 1))
    eigenvalues, sides = torch.linalg.eigh(rows @ rows.T)
    return eigenvalues, rows.T @ sides / eigenvalues.clamp_min(1e-300).sqrt()


def _distance(own: Moments, reference: Moments, eigenvalues: Float[Tensor, "r"]) -> float:
    traces = own.covariance.trace() + reference.covariance.trace() - 2 * eigenvalues.clamp_min(0).sqrt().sum()
    return ((own.mean - reference.mean).square().sum() + traces).item()


def _jackknife(values: Tensor) -> float:
    """The standard error from delete-one-block values (Efron & Stein 1981)."""
    blocks = len(values)
    return ((blocks - 1) / blocks * (values - values.mean()).square().sum()).sqrt().item()


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    # float64 after the product: the sums of millions of kernel values nearly cancel
    return (a @ b.T).double().div_(a.shape[1]).add_(1).pow_(3)
