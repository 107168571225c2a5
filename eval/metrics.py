"""The metrics, as pure functions of features, logits or pairs of images.

What torch-fidelity measures is computed by torch-fidelity's own functions, so that the numbers are its numbers. What it
lacks is here: standard errors, and the distances between an image and its reconstruction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

JACKKNIFE_BLOCKS = 20  # block b holds the rows whose position is b modulo 20
EXPANDED_IMAGES = 4  # for every feature: from so many on, blocks need no eigendecomposition of their own
LIMIT_IMAGES = 4  # images that a limit needs for every feature


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error, None where that is not known.

    without_block: the number without each of the blocks in turn, where it was measured so; then the standard error is their
    jackknife. Two numbers of the same images in the same order have the same blocks, so these give a paired standard error.
    """

    value: float
    standard_error: float | None = None
    without_block: tuple[float, ...] | None = None

    def scaled(self, factor: float) -> Estimate:
        """The estimate of `factor` times the number."""
        error = None if self.standard_error is None else abs(factor) * self.standard_error
        without = None if self.without_block is None else tuple(factor * value for value in self.without_block)
        return Estimate(factor * self.value, error, without)

    def minus(self, other: Estimate) -> Estimate:
        """The difference of two numbers of the same blocks; its standard error is not known where either's are not."""
        if self.without_block is None or other.without_block is None:
            return Estimate(self.value - other.value)
        without = zip(self.without_block, other.without_block, strict=True)
        return jackknifed(self.value - other.value, [mine - theirs for mine, theirs in without])


def jackknifed(value: float, without_block: Sequence[float]) -> Estimate:
    """A number with the standard error that its delete-one-block values give (Efron & Stein 1981)."""
    values, blocks = torch.tensor(without_block, dtype=torch.float64), len(without_block)
    error = ((blocks - 1) / blocks * (values - values.mean()).square().sum()).sqrt().item()
    return Estimate(value, error, tuple(values.tolist()))


def in_blocks(rows: Tensor, blocks: int = JACKKNIFE_BLOCKS) -> list[Tensor]:
    """The rows by block: b, b + blocks, b + 2 blocks ... The order of the rows is random, so the blocks are exchangeable."""
    return [rows[block::blocks] for block in range(blocks)]


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
    do: resampled sets hold duplicates, and their distances lie above the one they should surround.) With many images for every
    feature, the trace of the root is expanded to second order around all images, so one eigendecomposition serves all blocks,
    within a few per cent of as many full distances; otherwise every block has its own.
    """
    n, whole = len(generated), moments(generated)
    centred = generated.double() - whole.mean
    rows = centred @ reference.root
    if n >= EXPANDED_IMAGES * generated.shape[1]:
        eigenvalues, vectors = torch.linalg.eigh(reference.root @ whole.covariance @ reference.root)
        without_roots = lambda: _expanded_root_traces(rows, eigenvalues, vectors, blocks)  # noqa: E731
    else:
        eigenvalues = _product_spectrum(rows)
        without_roots = lambda: _root_traces(rows, blocks)  # noqa: E731
    traces = whole.covariance.trace() + reference.covariance.trace() - 2 * eigenvalues.clamp_min(0).sqrt().sum()
    value = ((whole.mean - reference.mean).square().sum() + traces).item()
    if n < 2 * blocks:
        return Estimate(value)

    without = []
    for block, root_trace in zip(in_blocks(centred, blocks), without_roots(), strict=True):
        m = n - len(block)
        shift = -block.sum(0) / m
        trace = ((n - 1) * whole.covariance.trace() - block.square().sum() - m * shift.square().sum()) / (m - 1)
        traces = trace + reference.covariance.trace() - 2 * root_trace
        without.append(((whole.mean + shift - reference.mean).square().sum() + traces).item())
    return jackknifed(value, without)


def has_limit(n: int, features: int) -> bool:
    """Whether `frechet_limit` may be measured of n images: half of them are twice as many as there are features.

    Below, the bias is no straight line in 1/n: with two or three images a feature the limit of Gaussians comes out too low by
    more than its standard error.
    """
    return n >= LIMIT_IMAGES * features


def frechet_limit(generated: Float[Tensor, "n f"], reference: Moments) -> Estimate:
    """The Frechet distance for n -> infinity (Chong & Forsyth 2020, section 3): the line through FD_n and FD_n/2 against 1/n.

    FD_n/2 is the mean over two disjoint halves. They hold whole blocks, so that the line is drawn anew without each block: the
    standard error is a jackknife of the limit itself. ValueError where not `has_limit`.
    """
    n, features = generated.shape
    if not has_limit(n, features):
        raise ValueError(f"frechet_limit: {n} images of {features} features; it needs {LIMIT_IMAGES} images a feature")
    halves = [generated[start::2] for start in (0, 1)]
    whole = frechet_distance(generated, reference)
    parts = [frechet_distance(half, reference, JACKKNIFE_BLOCKS // 2) for half in halves]
    blocks = len(whole.without_block or ())
    without = []
    for block, distance in enumerate(whole.without_block or ()):
        left = len(generated[block::blocks])
        kept = [len(half) - left * (start == block % 2) for start, half in enumerate(halves)]
        values = [part.value for part in parts]
        values[block % 2] = (parts[block % 2].without_block or ())[block // 2]
        without.append(_limit(n - left, distance, kept, values))
    return jackknifed(_limit(n, whole.value, list(map(len, halves)), [part.value for part in parts]), without)


def _limit(n: int, whole: float, halves: list[int], distances: list[float]) -> float:
    """The line through (1/n, whole) and the mean point of the halves, at 0."""
    x, y = sum(1 / half for half in halves) / 2, sum(distances) / 2
    return (whole * x - y / n) / (x - 1 / n)


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

    The standard error is a jackknife of the generated images, against the reference as it is: of the squared MMD of all
    pairs, whose changes without a block are counted from the mean over subsets. None with fewer than two images a block.
    """
    size = min(subset_size, len(generated), len(reference))
    out = kid_features_to_metric(generated, reference, kid_subsets=subsets, kid_subset_size=size, verbose=False)
    value = out["kernel_inception_distance_mean"]
    if len(generated) < 2 * JACKKNIFE_BLOCKS:
        return Estimate(value)
    all_pairs, without = mmd_without_blocks(generated, reference, JACKKNIFE_BLOCKS)
    return jackknifed(value, (value + without - all_pairs).tolist())


def mmd_without_blocks(
    generated: Float[Tensor, "n f"], reference: Float[Tensor, "m f"], blocks: int
) -> tuple[Float[Tensor, ""], Float[Tensor, "blocks"]]:
    """The unbiased squared MMD of all pairs, and without each block of the generated images.

    Both up to the reference's own constant, which no change of the generated images moves.
    """
    parts, m = in_blocks(generated, blocks), len(reference)
    sizes = torch.tensor([len(part) for part in parts], dtype=torch.float64)
    among = torch.stack([torch.stack([_kernel(a, b).sum() for b in parts]) for a in parts])
    itself = torch.stack([(part.double().square().mean(1) + 1).pow(3).sum() for part in parts])
    across = torch.stack([_kernel(part, reference).sum() for part in parts])
    n, total = sizes.sum() - sizes, sizes.sum()
    pairs = among.sum() - 2 * among.sum(1) + among.diagonal() - (itself.sum() - itself)
    whole = (among.sum() - itself.sum()) / (total * (total - 1)) - 2 * across.sum() / (total * m)
    return whole, pairs / (n * (n - 1)) - 2 * (across.sum() - across) / (n * m)


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
    """The mean over n independent images, with its standard error: from the blocks where they hold two images each."""
    values, n = values.double(), len(values)
    if n >= 2 * JACKKNIFE_BLOCKS:
        without = [(values.sum() - block.sum()).item() / (n - len(block)) for block in in_blocks(values)]
        return jackknifed(values.mean().item(), without)
    return Estimate(values.mean().item(), (values.std() / math.sqrt(n)).item() if n > 1 else None)


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


def _product_spectrum(rows: Float[Tensor, "n f"]) -> Float[Tensor, "r"]:
    """The same eigenvalues, from centred rows (x - mean) R: of n x n or f x f products, whichever are fewer."""
    products = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows
    return torch.linalg.eigvalsh(products) / max(len(rows) - 1, 1)


def _root_traces(rows: Float[Tensor, "n f"], blocks: int) -> list[Tensor]:
    """tr (C1 C2)^(1/2) without each block, of centred rows (x - mean) R."""
    position = torch.arange(len(rows)) % blocks
    others = [rows[position != block] for block in range(blocks)]
    return [_product_spectrum(some - some.mean(0)).clamp_min(0).sqrt().sum() for some in others]


def _expanded_root_traces(
    rows: Float[Tensor, "n f"], eigenvalues: Float[Tensor, "f"], vectors: Float[Tensor, "f f"], blocks: int
) -> list[Tensor]:
    """The same, to second order around the trace of all rows."""
    n, kept = len(rows), eigenvalues > eigenvalues[-1] * 1e-10
    roots = eigenvalues[kept].sqrt()
    curvature = 1 / (roots[:, None] * roots * (roots[:, None] + roots))
    traces = []
    for block in in_blocks(rows @ vectors[:, kept], blocks):
        m = n - len(block)
        shift = -block.sum(0) / m
        scatter = torch.diag((n - 1) * roots**2) - block.T @ block - m * torch.outer(shift, shift)
        change = scatter / (m - 1) - torch.diag(roots**2)
        traces.append((roots + change.diagonal() / roots / 2).sum() - (change.square() * curvature).sum() / 4)
    return traces


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    # float64 after the product: the sums of millions of kernel values nearly cancel
    return (a @ b.T).double().div_(a.shape[1]).add_(1).pow_(3)
