"""Density, coverage and the check for copies against brute force, closed forms and planted copies."""

import numpy as np
import pytest
import torch

from eval.metrics import precision_recall
from eval.neighbours import density_coverage, memorised, nearest


def gaussian(n, dim, seed, shift=0.0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) + shift


@pytest.mark.parametrize(("n", "m", "shift"), [(90, 70, 0.5), (40, 1100, 1.0)])  # the second in more than one chunk
def test_density_and_coverage_are_their_definitions(n, m, shift):
    generated, real = gaussian(n, 6, 0, shift), gaussian(m, 6, 1)
    x, y = real.double().numpy(), generated.double().numpy()
    radius = np.sort(np.linalg.norm(x[:, None] - x[None], axis=2), 1)[:, 5]  # column 0 is the image itself
    inside = np.linalg.norm(x[:, None] - y[None], axis=2) < radius[:, None]
    density, coverage = density_coverage(generated, real)
    assert density.value == pytest.approx(inside.sum() / (5 * n))
    assert coverage.value == pytest.approx(inside.any(1).mean())
    assert density.standard_error == pytest.approx((inside.sum(0) / 5).std(ddof=1) / np.sqrt(n))


def test_real_images_have_density_one_and_the_coverage_of_the_closed_form():
    density, coverage = density_coverage(gaussian(1000, 8, 2), gaussian(1000, 8, 3))
    assert density.value == pytest.approx(1, abs=0.05)
    assert coverage.value == pytest.approx(1 - 1 / 2**5, abs=0.02)  # Naeem et al. 2020, eq. 9, for n = m -> infinity


def test_an_outlier_spoils_recall_and_not_coverage():
    generated, real = gaussian(200, 8, 4, 1.0), gaussian(200, 8, 5)
    spoilt = torch.cat([generated[1:], -30 * torch.ones(1, 8)])
    assert abs(density_coverage(spoilt, real)[1].value - density_coverage(generated, real)[1].value) < 0.02
    assert precision_recall(spoilt, real)[1].value > precision_recall(generated, real)[1].value


def test_too_few_real_images_are_refused():
    with pytest.raises(ValueError, match="5 neighbours"):
        density_coverage(gaussian(9, 2, 0), gaussian(5, 2, 1))


def test_nearest_is_brute_force():
    points, others = gaussian(1500, 5, 6), gaussian(60, 5, 7)
    distances = np.linalg.norm(points.double().numpy()[:, None] - others.double().numpy()[None], axis=2)
    found, index = nearest(points, others)
    np.testing.assert_allclose(found, distances.min(1), rtol=1e-4)
    np.testing.assert_array_equal(index, distances.argmin(1))


def test_planted_copies_are_found_and_an_honest_generator_is_at_alpha():
    training, held_out, honest = (gaussian(2000, 16, seed) for seed in (8, 9, 10))
    found = memorised(honest, training, held_out)
    assert abs(found.share.value - 0.05) < 3 * (found.share.standard_error or 1) < 0.03
    copies = torch.cat([training[:500] + 0.02 * gaussian(500, 16, 11), honest[:1500]])
    found = memorised(copies, training, held_out)
    assert found.share.value == pytest.approx(0.25 + 0.75 * 0.05, abs=0.02)
    assert found.nearest[:500].tolist() == list(range(500))


def test_the_share_at_alpha_keeps_its_standard_error():
    shares = []
    for seed in range(20, 50):
        parts = gaussian(700, 4, seed).split([300, 200, 200])
        shares.append(memorised(parts[1], parts[0], parts[2], alpha=0.2).share)
    errors = np.array([(share.value - 0.2) / share.standard_error for share in shares])
    assert 0.5 < errors.std() < 1.5 and abs(errors.mean()) < 1
