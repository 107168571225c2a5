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
    has_limit,
    in_blocks,
    inception_score,
    jackknifed,
    kernel_distance,
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


def error_of(found) -> float:
    assert found.standard_error is not None
    return found.standard_error


def blocks_of(found) -> list[float]:
    assert found.without_block is not None
    return list(found.without_block)


def without(blocks, i):
    return torch.cat([*blocks[:i], *blocks[i + 1 :]])


# with fewer than four images a feature every block is exact
@pytest.mark.parametrize(
    ("n", "dim", "shift", "exact"),
    [
        (600, 8, 0.0, False),
        (600, 32, 0.4, False),
        (400, 96, 0.1, False),
        (192, 96, 0.1, True),
        (96, 96, 0.1, True),
        (130, 300, 0.2, True),
    ],
)
def test_frechet_distance_without_each_block_is_torch_fidelitys(n, dim, shift, exact):
    x, reference = gaussian(n, dim, 6, shift), gaussian(2 * n + dim, dim, 7)
    blocks = in_blocks(x)
    wanted = np.array([fidelitys(without(blocks, i), reference) for i in range(20)])
    found = frechet_distance(x, moments(reference))
    error = math.sqrt(19 / 20 * np.square(wanted - wanted.mean()).sum())
    assert found.standard_error == pytest.approx(error, rel=1e-4 if exact else 0.05)
    np.testing.assert_allclose(blocks_of(found), wanted, atol=1e-4 if exact else 0.05 * error * math.sqrt(20))


def test_block_b_holds_the_images_at_b_modulo_20():
    assert [block.tolist() for block in in_blocks(torch.arange(50))][3] == [3, 23, 43]
    assert torch.equal(torch.cat(in_blocks(torch.arange(47))).sort().values, torch.arange(47))


def test_paired_differences_have_the_noise_that_is_not_shared():
    shared, reference = gaussian(400, 8, 30), moments(gaussian(4000, 8, 31))
    mine, theirs = shared + 0.05 * gaussian(400, 8, 32), shared + 0.05 * gaussian(400, 8, 33)
    ours, other = frechet_distance(mine, reference), frechet_distance(theirs, reference)
    apart = ours.minus(other)
    assert apart.value == ours.value - other.value
    wanted = jackknifed(0.0, [a - b for a, b in zip(blocks_of(ours), blocks_of(other), strict=True)])
    assert error_of(apart) == error_of(wanted) < 0.5 * error_of(ours)
    assert ours.scaled(-2).standard_error == pytest.approx(2 * error_of(ours))
    assert blocks_of(ours.scaled(-2)) == [-2 * value for value in blocks_of(ours)]


def test_two_standard_errors_cover_the_expected_distance():
    reference = moments(gaussian(4000, 8, 8))
    found = [frechet_distance(gaussian(300, 8, seed, shift=0.2), reference) for seed in range(100, 160)]
    values, errors = np.array([f.value for f in found]), np.array([f.standard_error for f in found])
    assert (np.abs(values - values.mean()) < 2 * errors).mean() >= 0.9
    assert errors.mean() < 2 * values.std()  # and they are not just large


def test_too_few_images_for_a_standard_error_get_none():
    x, y = gaussian(30, 8, 0), gaussian(30, 8, 1)
    for found in (frechet_distance(x, moments(y)), kernel_distance(x, y, subsets=2)):
        assert found.standard_error is None and found.without_block is None


def limits(n, dim, trials, decay, shift, scale):
    """Limits of Gaussian sets of n, against the moments that another Gaussian really has; and their plain distances."""
    deviations = (torch.arange(dim, dtype=torch.float64) + 1) ** -decay
    moved = shift * deviations
    reference = Moments(10**9, moved, torch.diag((scale * deviations) ** 2))
    true = (moved.square() + ((scale - 1) * deviations).square()).sum().item()  # the distance of Gaussians that commute
    sets = [
        torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) * deviations.float()
        for seed in range(300, 300 + trials)
    ]
    plain = np.array([frechet_distance(x, reference).value for x in sets])
    found = [frechet_limit(x, reference) for x in sets]
    return true, plain, np.array([limit.value for limit in found]), np.array([limit.standard_error for limit in found])


# the last is a distance of 0, as of real images to real images; the first has as few images as a limit may have
@pytest.mark.parametrize(("n", "decay", "shift", "scale"), [(64, 0.0, 0.3, 1.2), (160, 0.5, 0.3, 1.2), (320, 0.5, 0.0, 1.0)])
def test_two_standard_errors_of_the_limit_cover_the_distance_of_the_distributions(n, decay, shift, scale):
    true, plain, values, errors = limits(n, 16, 60, decay, shift, scale)
    bias = plain.mean() - true
    assert bias > plain.std()  # what so few images add
    assert abs(values.mean() - true) < 0.2 * bias
    assert (np.abs(values - true) < 2 * errors).mean() >= 0.9
    assert errors.mean() < 2 * values.std()  # and they are not just large


def test_the_limit_is_the_line_through_the_whole_and_two_halves():
    x, reference = gaussian(240, 8, 16, shift=0.2), gaussian(400, 8, 17)
    half = sum(fidelitys(x[start::2], reference) for start in (0, 1)) / 2
    found = frechet_limit(x, moments(reference))
    assert found.value == pytest.approx(np.polyfit([1 / 240, 1 / 120], [fidelitys(x, reference), half], 1)[1], rel=1e-4)
    assert found.standard_error == pytest.approx(jackknifed(0.0, blocks_of(found)).standard_error)

    by_hand = []  # without an image of each block the halves are of 119 and 120, 109 and 120 ...
    for block in range(20):
        keep = torch.arange(240) % 20 != block
        halves = [x[(torch.arange(240) % 2 == start) & keep] for start in (0, 1)]
        inverse = [1 / keep.sum().item(), np.mean([1 / len(part) for part in halves])]
        distances = [fidelitys(x[keep], reference), np.mean([fidelitys(part, reference) for part in halves])]
        by_hand.append(np.polyfit(np.array(inverse), np.array(distances), 1)[1])
    wanted = jackknifed(0.0, by_hand).standard_error
    assert found.standard_error == pytest.approx(wanted, rel=0.05)


def test_too_few_images_for_a_limit_are_refused():
    assert has_limit(50_000, 2048) and not has_limit(4000, 1280)
    with pytest.raises(ValueError, match="31 images of 8 features"):
        frechet_limit(gaussian(31, 8, 18), moments(gaussian(400, 8, 19)))


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
    blocks = in_blocks(a, 5)

    def all_pairs(x):
        kernel = lambda p, q: (p.double() @ q.double().T / 8 + 1) ** 3  # noqa: E731
        among = kernel(x, x)
        return (among.sum() - among.diagonal().sum()) / (len(x) * (len(x) - 1)) - 2 * kernel(x, b).mean()

    whole, found = mmd_without_blocks(a, b, 5)
    torch.testing.assert_close(whole, all_pairs(a), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, torch.stack([all_pairs(without(blocks, i)) for i in range(5)]), rtol=1e-5, atol=1e-5)


def test_kernel_standard_error_is_the_spread_over_repetitions():
    reference = gaussian(400, 8, 13)
    trials = [gaussian(200, 8, seed, shift=0.1) for seed in range(200, 230)]
    found = [kernel_distance(x, reference[:200], subsets=1, subset_size=200) for x in trials]
    spread, errors = np.std([f.value for f in found]), np.mean([error_of(f) for f in found])
    assert spread / 2 < errors < 2 * spread
    assert np.mean(blocks_of(found[0])) == pytest.approx(found[0].value, rel=0.1)


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


@pytest.mark.parametrize("n", [400, 407])
def test_a_mean_of_many_values_has_the_jackknife_of_its_blocks(n):
    values = torch.randn(n, generator=torch.Generator().manual_seed(n))
    found = mean(values)
    wanted = [without(in_blocks(values), i).double().mean().item() for i in range(20)]
    assert found.without_block == pytest.approx(wanted)
    assert found.standard_error == pytest.approx(values.std().item() / math.sqrt(n), rel=0.5)
