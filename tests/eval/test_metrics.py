"""The metrics against other writings of them: scipy, scikit-image, brute force, closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from eval.metrics import (
    Moments,
    combine,
    frechet_distance,
    frechet_limit,
    inception_score,
    kernel_distance,
    kernel_standard_error,
    mean,
    mmd_without_blocks,
    moments,
    precision_recall,
    psnr,
    ssim,
)
from eval.pictures import blur


def gaussian(n, dim, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator) * torch.linspace(0.2, 2, dim) + shift


def test_moments_are_numpys():
    x = gaussian(50, 5, 0)
    found = moments(x)
    assert found.n == 50
    np.testing.assert_allclose(found.mean, x.double().mean(0))
    np.testing.assert_allclose(found.covariance, np.cov(x.double().numpy(), rowvar=False), rtol=1e-12)


def test_moments_of_parts_combine_exactly():
    x = gaussian(101, 6, 1, shift=30.0)
    whole, parts = moments(x), combine([moments(part) for part in x.split([7, 60, 34])])
    assert parts.n == 101
    torch.testing.assert_close(parts.mean, whole.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parts.covariance, whole.covariance, rtol=1e-9, atol=1e-11)


def fidelitys(a, b):
    """torch-fidelity's Frechet distance of two sets of features."""
    first, second = ({"mu": m.mean.numpy(), "sigma": m.covariance.numpy()} for m in (moments(a), moments(b)))
    return fid_statistics_to_metric(first, second, verbose=False)["frechet_inception_distance"]


@pytest.mark.parametrize(("n", "dim"), [(300, 16), (40, 64)])  # the second has fewer images than features
def test_frechet_distance_is_the_formula_in_float64_and_torch_fidelitys(n, dim):
    x, y = gaussian(n, dim, 2), gaussian(n + 50, dim, 3, shift=0.3)
    a, b = moments(x), moments(y)
    root = np.real(np.asarray(sqrtm((a.covariance @ b.covariance).numpy())))
    wanted = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * np.trace(root)
    found = frechet_distance(x, b).value
    assert found == pytest.approx(float(wanted), rel=1e-5)
    assert found == pytest.approx(fidelitys(x, y), rel=1e-6)


def test_frechet_distance_of_a_set_to_itself_is_zero_and_symmetric():
    x, y = gaussian(400, 12, 4), gaussian(300, 12, 5, shift=1.0)
    assert abs(frechet_distance(x, moments(x)).value) < 1e-6
    assert frechet_distance(x, moments(y)).value == pytest.approx(frechet_distance(y, moments(x)).value, rel=1e-9)


@pytest.mark.parametrize(("n", "dim", "shift"), [(600, 8, 0.0), (600, 32, 0.4), (192, 96, 0.1)])
def test_frechet_standard_error_is_the_jackknife_by_hand(n, dim, shift):
    x, reference = gaussian(n, dim, 6, shift), gaussian(2 * n, dim, 7)
    blocks = x.tensor_split(20)
    values = np.array([fidelitys(torch.cat([*blocks[:i], *blocks[i + 1 :]]), reference) for i in range(20)])
    wanted = math.sqrt(19 / 20 * np.square(values - values.mean()).sum())
    assert frechet_distance(x, moments(reference)).standard_error == pytest.approx(wanted, rel=0.05)


def test_two_standard_errors_cover_the_expected_distance():
    reference = moments(gaussian(4000, 8, 8))
    found = [frechet_distance(gaussian(300, 8, seed, shift=0.2), reference) for seed in range(100, 160)]
    values, errors = np.array([f.value for f in found]), np.array([f.standard_error for f in found])
    assert (np.abs(values - values.mean()) < 2 * errors).mean() >= 0.9
    assert errors.mean() < 2 * values.std()  # and they are not just large


def test_too_few_images_for_a_standard_error_get_none():
    assert frechet_distance(gaussian(30, 8, 0), moments(gaussian(30, 8, 1))).standard_error is None


def limits(n, dim, trials, decay=0.0):
    """Distances and limits of Gaussian sets of n, against the moments that a shifted Gaussian really has."""
    scale = (torch.arange(dim, dtype=torch.float64) + 1) ** -decay
    shift = torch.full((dim,), 0.3, dtype=torch.float64) * scale
    reference = Moments(10**9, shift, torch.diag((1.2 * scale) ** 2))
    true = (shift.square() + (0.2 * scale).square()).sum().item()
    found = []
    for seed in range(300, 300 + trials):
        x = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) * scale.float()
        whole = frechet_distance(x, reference)
        found.append((whole, frechet_limit(x, reference, whole)))
    return true, found


def test_the_limit_is_the_distance_of_the_distributions():
    true, found = limits(n=800, dim=32, trials=24)
    plain = np.array([whole.value for whole, _ in found])
    values = np.array([limit.value for _, limit in found])
    errors = np.array([limit.standard_error for _, limit in found])
    bias = plain.mean() - true
    assert bias > 2 * plain.std()  # what 800 images add
    assert abs(values.mean() - true) < 0.05 * bias
    assert (np.abs(values - true) < 2 * errors).mean() >= 0.9
    assert errors.mean() < 2 * values.std()


def test_the_limit_corrects_a_part_of_the_bias_where_images_are_fewer_than_features():
    true, found = limits(n=128, dim=192, trials=6, decay=0.5)
    plain = np.mean([whole.value for whole, _ in found]) - true
    left = np.mean([limit.value for _, limit in found]) - true
    assert 0 < left < 0.6 * plain


def test_the_limit_is_the_line_through_distances_of_disjoint_subsets():
    x, reference = gaussian(240, 8, 16, shift=0.2), gaussian(400, 8, 17)
    inverse = [count / 240 for count in (1, 2, 3, 4)]
    values = [np.mean([fidelitys(part, reference) for part in x.tensor_split(count)]) for count in (1, 2, 3, 4)]
    wanted = np.polyfit(inverse, values, 1)[1]
    whole = frechet_distance(x, moments(reference))
    found = frechet_limit(x, moments(reference), whole)
    assert found.value == pytest.approx(wanted, rel=1e-5)
    assert (found.standard_error or 0) >= (whole.standard_error or 1)


def test_inception_score_of_a_uniform_and_of_a_certain_classifier():
    assert inception_score(torch.zeros(100, 10)).value == pytest.approx(1)
    certain = 100 * torch.eye(10).repeat(1000, 1)
    assert inception_score(certain, splits=1).value == pytest.approx(10, abs=1e-3)


def test_kernel_distance_is_torch_fidelitys_and_unbiased():
    a, b = gaussian(200, 8, 9), gaussian(200, 8, 10)
    wanted = kid_features_to_metric(a, b, kid_subsets=20, kid_subset_size=50, verbose=False)
    found = kernel_distance(a, b, subsets=20, subset_size=50)
    assert found.value == wanted["kernel_inception_distance_mean"]
    assert found.standard_error is not None and abs(found.value) < 3 * found.standard_error + 0.05


def test_kernel_jackknife_leaves_out_blocks_of_the_distance_of_all_pairs():
    a, b = gaussian(60, 8, 11), gaussian(48, 8, 12, shift=0.2)
    blocks = a.tensor_split(5)

    def all_pairs(x):
        kernel = lambda p, q: (p.double() @ q.double().T / 8 + 1) ** 3  # noqa: E731
        among = kernel(x, x)
        return (among.sum() - among.diagonal().sum()) / (len(x) * (len(x) - 1)) - 2 * kernel(x, b).mean()

    wanted = torch.stack([all_pairs(torch.cat([*blocks[:i], *blocks[i + 1 :]])) for i in range(5)])
    torch.testing.assert_close(mmd_without_blocks(a, b, 5), wanted, rtol=1e-5, atol=1e-5)


def test_kernel_standard_error_is_the_spread_over_repetitions():
    reference = gaussian(400, 8, 13)
    trials = [gaussian(200, 8, seed, shift=0.1) for seed in range(200, 230)]
    values = [kid_features_to_metric(x, reference[:200], kid_subsets=1, kid_subset_size=200, verbose=False) for x in trials]
    spread = np.std([value["kernel_inception_distance_mean"] for value in values])
    errors = np.mean([kernel_standard_error(x, reference[:200]) for x in trials])
    assert spread / 2 < errors < 2 * spread


def test_precision_and_recall_by_brute_force():
    generated, real = gaussian(90, 6, 14, shift=0.8), gaussian(70, 6, 15)

    def inside(points, manifold):
        distances = torch.cdist(manifold.double(), manifold.double())
        radius = distances.sort(1).values[:, 3]
        return (torch.cdist(points.double(), manifold.double()) <= radius).any(1).double().mean().item()

    precision, recall = precision_recall(generated, real)
    assert precision.value == pytest.approx(inside(generated, real))
    assert recall.value == pytest.approx(inside(real, generated))
    assert 0 < recall.value < 1


def test_psnr_and_ssim_are_scikit_images(crops, noisy):
    for others in (noisy(crops[:6], 12.0), blur(crops[:6], 1.0)):
        found = psnr(crops[:6], others), ssim(crops[:6], others)
        for row, (image, other) in enumerate(zip(crops[:6].numpy(), others.numpy(), strict=True)):
            assert found[0][row].item() == pytest.approx(peak_signal_noise_ratio(image, other), abs=1e-9)
            wanted = structural_similarity(
                image, other, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
            )
            assert found[1][row].item() == pytest.approx(wanted, abs=1e-9)


def test_an_exact_copy(crops):
    assert psnr(crops[:2], crops[:2]).tolist() == [100, 100]
    assert ssim(crops[:2], crops[:2]).tolist() == pytest.approx([1, 1])


def test_ssim_refuses_images_smaller_than_its_window():
    with pytest.raises(ValueError, match="11"):
        ssim(*torch.zeros(2, 1, 3, 8, 8, dtype=torch.uint8))


def test_mean_has_the_standard_error_of_independent_values():
    found = mean(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert found.value == 3
    assert found.standard_error == pytest.approx(np.std([1, 2, 3, 6], ddof=1) / 2)
